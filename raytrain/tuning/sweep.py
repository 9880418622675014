"""A sweep: Ray Tune decides which trials run and which stop; the pool decides with how many workers."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raytrain.config import RunConfig
from raytrain.config_io import parse_config
from raytrain.elastic.capacity import worker_resources
from raytrain.elastic.lease import Lease
from raytrain.elastic.preflight import Preflight, check
from raytrain.elastic.run import read_run_config, writing_report
from raytrain.elastic.session import RaySession, cluster_address, ray_session
from raytrain.elastic.signals import StopSignals
from raytrain.errors import ConfigError
from raytrain.plan import cpus_needed
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tracking.base import TRACKING, TrackedRun
from raytrain.tracking.trackers import conclude
from raytrain.training.state import best_metric
from raytrain.tuning.board import TRIALS, Board, TrialRow
from raytrain.tuning.hparams import write_hparams
from raytrain.tuning.observer import SweepObserver
from raytrain.tuning.resume import begin_or_resume
from raytrain.tuning.schedulers import Generational
from raytrain.tuning.shares import Shares
from raytrain.tuning.space import NUM_PARAMETERS, Space, Values, check_space, overrides_of, without_headline
from raytrain.tuning.trial import TrialPlan

logger = logging.getLogger(__name__)

SUMMARY = "sweep.json"
CLUSTER_TRIALS = 8  # live trials on a cluster, at least


@dataclass(frozen=True)
class SweepResult:
    """What became of a sweep; the contents of sweep.json."""

    status: str
    """finished, stopped (on request; the same command goes on) or failed (too many trials did)."""
    path: str
    metric: str
    mode: str
    best_trial: str | None = None
    best_value: float | None = None
    best_values: Values = field(default_factory=dict)
    """What the best trial changes in the config."""
    front: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of a space with more than one objective: the trials that no other one beats in everything, and what their best
    models have in each."""
    num_trials: int = 0
    num_failed: int = 0
    steps: int = 0
    """Optimizer steps of all trials."""
    duration_s: float = 0.0
    """Wall time of this command, seconds."""
    spent_s: float = 0.0
    """Wall time of all its commands, seconds; one that was killed is not counted."""
    message: str = ""
    exit_code: int = 0


@dataclass
class Sweep:
    """All that belongs to one; `run_sweep` builds it."""

    config: RunConfig
    space: Space
    root: Storage
    metric: str
    mode: str
    board: Board
    observer: SweepObserver
    stop_message: str = ""
    """Why no trial may start any more, and those that run should end."""
    stop_status: str = "finished"
    """What the sweep is then: stopped, when the same command is to go on with it."""

    spent_before_s: float = 0.0
    """Wall time of earlier commands."""
    began_s: float = field(default_factory=time.monotonic)
    _concluding: list[threading.Thread] = field(default_factory=list)

    @property
    def every_steps(self) -> int | None:
        """Steps of a generation, in a sweep whose trials are a population."""
        scheduler = self.space.scheduler
        return scheduler.every_steps if isinstance(scheduler, Generational) else None

    def spent_s(self) -> float:
        """Wall time of all commands up to now."""
        return self.spent_before_s + time.monotonic() - self.began_s

    def may_start(self) -> bool:
        """Whether the budget allows for another trial."""
        steps = self.space.budget.steps
        return not self.stop_message and (steps is None or self.board.steps < steps)

    def reached(self, index: int) -> list[float] | None:
        """What the trial with this ordinal reached; see Board.reached."""
        return self.board.reached(name_of(index), self.space.also)

    def num_wanting(self, at_once: int) -> int:
        """Trials that want workers or are about to, with so many that live at once."""
        board = self.board
        left = self.space.num_trials if self.may_start() else len(board.rows)
        return min(at_once, left - board.num_over)

    def tell(self, row: TrialRow, event: str) -> None:
        """Pass on what a trial has come to; see `SweepObserver.trial`."""
        self.observer.trial(row, event)
        if event != "over":
            return
        if row.status in ("pruned", "failed"):  # ended from outside: its trackers may not know
            self._conclude(row)
        if self.config.tracking.tensorboard:
            try:
                write_hparams(self.root, row, self.metric)
            except Exception:  # a full disk: the sweep has better reasons to end
                logger.exception("%s is not shown in TensorBoard's HParams", row.name)

    def _conclude(self, row: TrialRow) -> None:
        folder = self.root.at(TRIALS, row.name)
        if not folder.exists(TRACKING):
            return
        args = (TrackedRun(folder, read_run_config(folder)), "failed" if row.status == "failed" else "killed")
        self._concluding.append(threading.Thread(target=conclude, args=args, daemon=True))
        self._concluding[-1].start()

    def wait_for_trackers(self) -> None:
        """Until servers know of the trials that have ended; see `conclude`, which gives up after a while."""
        for thread in self._concluding:
            thread.join()

    def plan_of(self, shares: str) -> Callable[[int, Values], TrialPlan]:
        """Makes the plan of a trial from its ordinal and values."""

        def make(index: int, values: Values) -> TrialPlan:
            repeat = index % self.space.repeats
            name = name_of(index)
            values = {**values, "seed": self.config.seed + repeat} if self.space.repeats > 1 else values
            row = self.board.add(name, values)
            plan = TrialPlan(
                name=name,
                config={},
                metric=self.metric,
                sign=self.board.sign,
                shares=shares,
                is_over=row.is_over,
                failure=row.failure,
                rung=row.rung,
                value=None if row.value is None else self.board.sign * row.value,
                sweep=self.root.path_of(),
                every_steps=self.every_steps,
                values=values,
            )
            try:
                config = trial_config(self.config, self.root, name, values)
                plan = replace(plan, others={o.metric: _known_before(o.metric, config) for o in self.space.also})
            except ConfigError as error:  # values that fit one by one, and not together
                failure = f"error: these values do not go together: {without_headline(str(error))}"
                self.tell(self.board.update(name, status="failed", failure=failure), "over")
                return replace(plan, is_over=True, failure=failure)
            if self.every_steps is not None:  # its values are laid over it in each generation
                config = trial_config(self.config, self.root, name, {})
            return replace(plan, config=config.model_dump(mode="json", exclude_unset=True))

        return make

    def result(self, status: str, duration_s: float) -> SweepResult:
        """As it stands."""
        best, also = self.board.best, self.space.also
        front = self.board.front(also) if also else []
        path = self.root.path_of()
        return SweepResult(
            status=status,
            path=path,
            metric=self.metric,
            mode=self.mode,
            best_trial=best.name if best else None,
            best_value=best.best_value if best else None,
            best_values=best.values_at_best if best else {},
            front={row.name: {self.metric: row.best_value or 0.0, **row.best_others} for row in front},
            num_trials=len(self.board.rows),
            num_failed=self.board.count("failed"),
            steps=self.board.steps,
            duration_s=duration_s,
            spent_s=self.spent_s(),
            message=self.stop_message,
            exit_code=0 if status == "finished" else 1,
        )


def run_sweep(
    raw: dict[str, Any],
    overrides: list[str],
    space: Space,
    space_name: str,
    observer: SweepObserver | None = None,
    *,
    max_concurrent: int | None = None,
) -> SweepResult:
    """Run a sweep to its end, from wherever it stands.

    Args:
        raw: The config as it was read.
        overrides: `dotted.key=value` words.
        space: What is tried.
        space_name: Ends the name of the sweep's folder, <storage_path>/<config's name>-<space_name>.
        max_concurrent: Trials that live at once; None: on a private Ray as many as have a core a worker.

    Raises:
        ConfigError, DataError: Nothing was started.
    """
    observer, started_at_s = observer or SweepObserver(), time.time()
    observer.phase("checking")
    found = check(check_space(space, raw, overrides))
    config = found.config
    metric, mode = metric_of(space, config)
    if config.training.best_metric is None and space.metric is not None:  # a trial's best model is that of this metric
        config = parse_config(config.model_dump(mode="json", exclude_unset=True), [f"training.best_metric={metric}"])
    root = Storage(config.storage_path).at(f"{config.name}-{space_name}")
    with Lease(root, lambda text: None) as lease:
        begin_or_resume(root, config, space, metric, mode)
        spent_s = json.loads(root.read_bytes(SUMMARY)).get("spent_s", 0.0) if root.exists(SUMMARY) else 0.0
        sweep = Sweep(config, space, root, metric, mode, Board(root, mode), observer, spent_before_s=spent_s)
        status = _run(sweep, found, max_concurrent, lease)
        result = sweep.result(status, time.time() - started_at_s)
        sweep.board.write_all()
        sweep.wait_for_trackers()
        root.commit_bytes(SUMMARY, json.dumps(asdict(result), indent=1).encode())
        with writing_report(observer.phase):
            from raytrain.tuning.report import build_sweep_report

            build_sweep_report(root)
    return result


def trial_config(config: RunConfig, root: Storage, name: str, values: Values) -> RunConfig:
    """The run config of a trial. All share the sweep's prepared data, as far as their data settings agree."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    prepared = config.data.prepared_path or Storage(config.storage_path).path_of("_prepared")
    own = {"storage_path": root.path_of(TRIALS), "name": name, "data.prepared_path": prepared}
    for tracker in ("wandb", "mlflow"):  # which show the trials of a sweep together
        section = getattr(config.tracking, tracker)
        if section is not None and section.group is None:
            own[f"tracking.{tracker}.group"] = root.place()[1]
    if (address := cluster_address(config)) is not None:  # a trial's process is not told by the environment
        own["ray.address"] = address
    return parse_config(raw, [*overrides_of(values), *overrides_of(own)])


def name_of(index: int) -> str:
    """Of the trial with this ordinal."""
    return f"trial_{index:04d}"


def _known_before(metric: str, config: RunConfig) -> float | None:
    """An objective that does not depend on the training; None for all others. Raises ConfigError."""
    if metric != NUM_PARAMETERS:
        return None
    from raytrain.forecast.shape import shape_on_meta

    task = make_task(config.task, config.data.max_length)
    return float(shape_on_meta(config, task, config.task.labels or ["a", "b"]).num_parameters)


def metric_of(space: Space, config: RunConfig) -> tuple[str, str]:
    """What a sweep compares its trials by: metric and mode. Raises ConfigError when there is no such metric."""
    task = make_task(config.task, config.data.max_length)
    if config.data.validation is None:
        raise ConfigError("a sweep compares trials on the validation split: set data.validation")
    for objective in space.also:
        if objective.metric not in (*task.metric_names, NUM_PARAMETERS):
            allowed = ", ".join((*task.metric_names, NUM_PARAMETERS))
            raise ConfigError(f"also names {objective.metric!r}, which is no metric of this task; allowed: {allowed}")
    if space.metric is None:
        metric, mode = best_metric(config, task)
        if any(objective.metric == metric for objective in space.also):
            raise ConfigError(f"also names {metric}, which is the metric of this sweep anyway")
        return metric, mode
    if space.metric not in task.metric_names:
        raise ConfigError(
            f"metric {space.metric!r} of the space is no metric of this task; allowed: {', '.join(task.metric_names)}"
        )
    return space.metric, space.mode or ("min" if space.metric == "loss" else "max")


def _run(sweep: Sweep, found: Preflight, max_concurrent: int | None, lease: Lease) -> str:
    """Prepare the data, then let Tune run the trials. Returns how it ended."""
    from raytrain.data.prepare import prepare

    config, observer = sweep.config, sweep.observer
    observer.phase("starting Ray")
    private = max_concurrent or _trials_on_this_machine(config)
    with ray_session(config, _private_cpus(found, private)) as session, StopSignals() as signals:
        from raytrain.tuning.tuner import run_trials  # brings Ray along, which reads its settings when it is imported

        plan = found.plan_on(session)
        observer.phase("preparing data")
        prepare(config, observer.prepared)
        live = max_concurrent or _live_trials(config, session, plan.use_gpu)
        signals.catch()
        observer.phase("trials")
        observer.begin(sweep.board, sweep.space.num_trials, sweep.metric)
        worker, least = worker_resources(config, plan.use_gpu), config.workers.min
        at_once = sweep.space.num_trials if sweep.every_steps else live  # a generation's end is waited for by all
        expected = sweep.num_wanting(at_once)
        shares = Shares(worker, config.workers.data_cpus, live * config.workers.max, least, expected)
        try:
            run_trials(sweep, shares, at_once, signals, lease.check)
        finally:
            shares.close()
    is_all_failed = bool(sweep.board.rows) and sweep.board.count("failed") == len(sweep.board.rows)
    return "failed" if is_all_failed else sweep.stop_status


def _trials_on_this_machine(config: RunConfig) -> int:
    """Trials at once with a core for each worker of their minimum."""
    return max(1, (os.cpu_count() or 1) // (config.workers.min * config.workers.cpus))


def _live_trials(config: RunConfig, session: RaySession, use_gpu: bool) -> int:
    """Trials at once: as many as fit with workers.min each, and more than that on a cluster, which may grow: those
    without room only wait."""
    least = config.workers.min
    fitting = int(session.num_gpus // least) if use_gpu else int(session.num_cpus // cpus_needed(config, least))
    if session.is_private:
        return max(1, fitting if use_gpu else min(fitting, _trials_on_this_machine(config)))
    return max(CLUSTER_TRIALS, fitting)


def _private_cpus(found: Preflight, live: int) -> int:
    """Logical CPUs of a private Ray: what the live trials need with workers.min each, or what one can use alone."""
    if not found.private_cpus or found.config.ray.num_cpus is not None:
        return found.private_cpus
    return max(found.private_cpus, round(live * cpus_needed(found.config, found.config.workers.min) + 0.5))
