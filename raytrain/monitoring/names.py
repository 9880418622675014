"""Every metric that raytrain exports. Ray's agents put `ray_` before each name.

Gauges carry run, sweep and trial: an agent forgets a gauge within 30 s after it was last told (measured: 26), so one of
a run or a trial that is over goes away by itself. A counter it keeps for as long as its node lives; a sweep's trials
therefore count together, or a thousand of them would leave a thousand series behind on every scrape.
"""

from dataclasses import dataclass

RAY_PREFIX = "ray_"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    description: str
    labels: tuple[str, ...]

    @property
    def is_counter(self) -> bool:
        """Whether it only grows, from the beginning of each command; by Prometheus' convention its name says so."""
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
LOSS = _gauge("train_loss", "Training loss of the newest step; absent when it was no finite number.")
NOT_FINITE = _gauge("consecutive_nonfinite_losses", "Steps in a row, up to the newest, without a finite loss.")
VALIDATION = _gauge("validation_metric", "A metric of the newest evaluation of the validation split.", "metric")
LEARNING_RATE = _gauge("learning_rate", "Learning rate of the newest step.")
GRAD_NORM = _gauge("grad_norm", "Gradient norm of the newest step, before clipping.")
LOSS_SCALE = _gauge("loss_scale", "Loss scale of the newest step; only with fp16.")
SKIPPED_IN_A_ROW = _gauge("consecutive_skipped_steps", "Steps in a row, up to the newest, that fp16 overflows skipped.")
SAMPLES_PER_S = _gauge("samples_per_second", "Samples trained on per second in the last minute, pauses included.")
TOKENS_PER_S = _gauge("tokens_per_second", "Tokens trained on per second in the last minute, padding excluded.")
DATA_WAIT = _gauge("data_wait_ratio", "Share of the steps' time in the last minute in which the loop waited for data.")
WORKERS = _gauge("workers", "Workers that train now; 0 between two worker groups.")
WANTED = _gauge("workers_wanted", "Workers that the run may have: workers.max, or its share of a sweep's pool.")
WAITING_S = _gauge("waiting_for_nodes_seconds", "Seconds since which workers.min do not fit; 0: they do.")
GOODPUT = _gauge("goodput_ratio", "Share of the run's worker-seconds that went into steps that count and evaluations.")
WORKER_SECONDS = _gauge("worker_seconds", "The run's worker-seconds so far by class, as in goodput.json.", "class")
STEP_TIME = _gauge("last_step_timestamp_seconds", "When the newest step was done, or its worker group came together.")
SAVE_TIME = _gauge("last_checkpoint_timestamp_seconds", "When a checkpoint was committed last, or workers came back.")

STEPS = _counter("steps", "Steps done, those that were done again included.")
SAMPLES = _counter("samples", "Samples trained on, those of steps that were done again included.")
TOKENS = _counter("tokens", "Tokens trained on, padding excluded.")
STEPS_REDONE = _counter("steps_redone", "Steps that had been done before a crash and were done again.")
SKIPPED = _counter("skipped_steps", "Steps without an update, for an fp16 overflow.")
RESTARTS = _counter("restarts", "Worker groups that followed another one, by cause.", "cause")
STEP_S = _counter("step_seconds", "Seconds of the loop in steps, waiting for their data included.")
DATA_WAIT_S = _counter("data_wait_seconds", "Seconds of the loop in which it waited for data.")
SAVE_S = _counter("checkpoint_seconds", "Seconds of the loop in which checkpoints and snapshots blocked it.")
EVALUATION_S = _counter("evaluation_seconds", "Seconds of the loop in evaluations.")
ENDS = _counter("run_ends", "Commands that have ended, by the status of their run.", "status")

TRIALS = _of_sweep("trials", "Trials by status.", "status")
TRIALS_PLANNED = _of_sweep("trials_planned", "Trials that there are to be in the end.")
BEST_VALUE = _of_sweep("best_value", "The sweep's metric at its best evaluation so far.", "metric")
SWEEP_STEPS = _of_sweep("steps", "Steps of all trials, up to their newest evaluations.")

METRICS = {metric.name: metric for metric in list(globals().values()) if isinstance(metric, Metric)}
"""By name, without Ray's prefix."""

CAUSES = ("resize", "reclaim", "failure")
"""Of RESTARTS: as the kinds in events.jsonl."""
STATUSES = ("finished", "stopped_early", "stopped", "failed")
"""Of ENDS: as in summary.json."""
