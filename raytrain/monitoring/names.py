"""Every metric that raytrain exports. Ray's agents prefix each name with `ray_`.

Gauges carry run, sweep and trial labels: an agent drops a gauge within 30 s of its last update (measured: 26), so the
gauges of a finished run or trial disappear by themselves. A counter is kept as long as its node lives, so the trials of
a sweep share their counters; otherwise a thousand trials would leave a thousand series in every scrape.
"""

from dataclasses import dataclass

RAY_PREFIX = "ray_"


@dataclass(frozen=True)
class Metric:
    """A metric's name, description and labels."""

    name: str
    description: str
    labels: tuple[str, ...]

    @property
    def is_counter(self) -> bool:
        """Whether it only increases, from zero in each command. By Prometheus' convention its name ends accordingly."""
        return self.name.endswith("_total")


def _gauge(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"raytrain_{name}", description, ("run", "sweep", "trial", *labels))


def _counter(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"raytrain_{name}_total", description, ("run", "sweep", *labels))


def _of_sweep(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"raytrain_sweep_{name}", description, ("sweep", *labels))


STEP = _gauge("step", "Newest step of the run.")
TARGET_STEP = _gauge("target_step", "Step at which the run ends, unless it stops early.")
EPOCH = _gauge("epoch", "Epoch of the newest step, from 1.")
LOSS = _gauge("train_loss", "Training loss of the newest step; absent when it was not a finite number.")
NOT_FINITE = _gauge("consecutive_nonfinite_losses", "Steps in a row, up to the newest, without a finite loss.")
VALIDATION = _gauge("validation_metric", "A metric of the newest evaluation of the validation split.", "metric")
LEARNING_RATE = _gauge("learning_rate", "Learning rate of the newest step.")
GRAD_NORM = _gauge("grad_norm", "Gradient norm of the newest step, before clipping.")
LOSS_SCALE = _gauge("loss_scale", "Loss scale of the newest step; only with fp16.")
SKIPPED_IN_A_ROW = _gauge("consecutive_skipped_steps", "Steps in a row, up to the newest, skipped for fp16 overflow.")
SAMPLES_PER_S = _gauge("samples_per_second", "Samples trained on per second in the last minute, pauses included.")
TOKENS_PER_S = _gauge("tokens_per_second", "Tokens trained on per second in the last minute, padding excluded.")
DATA_WAIT = _gauge("data_wait_ratio", "Fraction of step time in the last minute in which the loop waited for data.")
WORKERS = _gauge("workers", "Workers that train now; 0 between two worker groups.")
WANTED = _gauge("workers_wanted", "Workers that the run may use: workers.max, or its allocation in a sweep.")
WAITING_S = _gauge("waiting_for_nodes_seconds", "Seconds for which workers.min have not fit; 0 if they fit.")
GOODPUT = _gauge("goodput_ratio", "Fraction of the run's worker-seconds spent in evaluations and steps that count.")
WORKER_SECONDS = _gauge("worker_seconds", "The run's worker-seconds so far by class, as in goodput.json.", "class")
STEP_TIME = _gauge("last_step_timestamp_seconds", "When the newest step finished, or its worker group started.")
SAVE_TIME = _gauge("last_checkpoint_timestamp_seconds", "When the last checkpoint was committed, or workers restarted.")

STEPS = _counter("steps", "Steps done, including those that were redone.")
SAMPLES = _counter("samples", "Samples trained on, including those of redone steps.")
TOKENS = _counter("tokens", "Tokens trained on, padding excluded.")
STEPS_REDONE = _counter("steps_redone", "Steps that were done before a crash and had to be redone.")
SKIPPED = _counter("skipped_steps", "Steps without an update, for an fp16 overflow.")
RESTARTS = _counter("restarts", "Worker groups that replaced another one, by cause.", "cause")
STEP_S = _counter("step_seconds", "Seconds that the loop spent in steps, including waiting for their data.")
DATA_WAIT_S = _counter("data_wait_seconds", "Seconds that the loop waited for data.")
SAVE_S = _counter("checkpoint_seconds", "Seconds that checkpoints and snapshots blocked the loop.")
EVALUATION_S = _counter("evaluation_seconds", "Seconds that the loop spent in evaluations.")
ENDS = _counter("run_ends", "Commands that ended, by the status of their run.", "status")

TRIALS = _of_sweep("trials", "Trials by status.", "status")
TRIALS_PLANNED = _of_sweep("trials_planned", "Planned number of trials.")
BEST_VALUE = _of_sweep("best_value", "The sweep's metric at its best evaluation so far.", "metric")
SWEEP_STEPS = _of_sweep("steps", "Steps of all trials, up to their newest evaluations.")

METRICS = {metric.name: metric for metric in list(globals().values()) if isinstance(metric, Metric)}
"""Metrics by name, without Ray's prefix."""

CAUSES = ("resize", "reclaim", "failure")
"""Label values of RESTARTS, which are kinds of events in events.jsonl."""
STATUSES = ("finished", "stopped_early", "stopped", "failed")
"""Label values of ENDS, as in summary.json."""
