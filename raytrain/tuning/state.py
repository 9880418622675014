"""A sweep's state: its trials, what it may still start, and its result."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError, FailureCode
from raytrain.ray_core.connect import cluster_address
from raytrain.reports.inline import html_table
from raytrain.runs.folder import read_run_config
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tracking.base import TRACKING, TrackedRun
from raytrain.tracking.trackers import conclude
from raytrain.training.outcome import RunStatus
from raytrain.tuning.hparams import write_hparams
from raytrain.tuning.observer import SweepObserver
from raytrain.tuning.space.schedulers import Generational
from raytrain.tuning.space.space import NUM_PARAMETERS, Space, Values, overrides_of, without_headline
from raytrain.tuning.trial import TrialPlan
from raytrain.tuning.trials import TRIALS, TrialFailure, TrialRow, TrialTable

logger = logging.getLogger(__name__)

SUMMARY = "sweep.json"


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep; the contents of sweep.json."""

    status: RunStatus
    """FINISHED, STOPPED (the same command resumes it) or FAILED (too many trials did)."""
    path: str
    metric: str
    mode: str
    best_trial: str | None = None
    best_value: float | None = None
    best_values: Values = field(default_factory=dict)
    """The values that the best trial changes in the config."""
    front: dict[str, dict[str, float]] = field(default_factory=dict)
    """The Pareto front of a space with more than one objective, the trials that no other one beats in everything, with
    what their best models reached in each objective."""
    num_trials: int = 0
    num_failed: int = 0
    steps: int = 0
    """Optimizer steps of all trials together."""
    duration_s: float = 0.0
    """Wall time of this command, seconds."""
    spent_s: float = 0.0
    """Wall time of all its commands, seconds, without those that were killed."""
    failure_code: FailureCode | None = None
    """What most of the failed trials failed of, if the sweep failed."""
    message: str = ""
    exit_code: int = 0

    def _repr_html_(self) -> str:
        best = None if self.best_value is None else f"{self.best_trial}: {self.metric} {self.best_value:.4f}"
        rows = {"status": self.status, "trials": self.num_trials, "failed": self.num_failed or None, "best": best}
        return html_table({**rows, "its values": self.best_values, "sweep": self.path, "message": self.message})


@dataclass(frozen=True)
class SweepEnd:
    """Why a sweep ends before all of its trials are over."""

    status: RunStatus
    message: str


@dataclass
class Sweep:
    """Everything that belongs to one sweep; `run_sweep` builds it."""

    config: RunConfig
    space: Space
    root: Storage
    metric: str
    mode: str
    trial_table: TrialTable
    observer: SweepObserver
    end: SweepEnd | None = None
    """Why no trial may start any more and running ones should end; None: they may continue."""
    spent_before_s: float = 0.0
    """Wall time of earlier commands."""
    began_s: float = field(default_factory=time.monotonic)
    _concluding: list[threading.Thread] = field(default_factory=list)

    @property
    def every_steps(self) -> int | None:
        """Steps per generation, in a sweep whose trials are a population; else None."""
        scheduler = self.space.scheduler
        return scheduler.every_steps if isinstance(scheduler, Generational) else None

    def spent_s(self) -> float:
        """Wall time of all commands up to now."""
        return self.spent_before_s + time.monotonic() - self.began_s

    def may_start(self) -> bool:
        """Whether the budget allows for another trial."""
        steps = self.space.budget.steps
        return self.end is None and (steps is None or self.trial_table.steps < steps)

    def reached(self, index: int) -> list[float] | None:
        """The values reached by the trial with this index; see `TrialTable.reached`."""
        return self.trial_table.reached(name_of(index), self.space.also)

    def num_wanting(self, at_once: int) -> int:
        """Trials that want workers now or are about to, if this many run concurrently."""
        trial_table = self.trial_table
        left = self.space.num_trials if self.may_start() else len(trial_table.rows)
        return min(at_once, left - trial_table.num_over)

    def tell(self, row: TrialRow, event: str) -> None:
        """Report a trial's progress; see `SweepObserver.trial`."""
        self.observer.trial(row, event)
        if event != "over":
            return
        if row.status in ("pruned", "failed"):  # ended from outside: its trackers may not know
            self._conclude(row)
        if self.config.tracking.tensorboard:
            try:
                write_hparams(self.root, row, self.metric)
            except Exception:  # a full disk, for example: it ends the sweep elsewhere
                logger.exception("%s is not shown in TensorBoard's HParams", row.name)

    def _conclude(self, row: TrialRow) -> None:
        folder = self.root.at(TRIALS, row.name)
        if not folder.exists(TRACKING):
            return
        args = (TrackedRun(folder, read_run_config(folder)), "failed" if row.status == "failed" else "killed")
        self._concluding.append(threading.Thread(target=conclude, args=args, daemon=True))
        self._concluding[-1].start()

    def wait_for_trackers(self) -> None:
        """Wait until the tracking servers know about the trials that have ended; `conclude` gives up after a while."""
        for thread in self._concluding:
            thread.join()

    def plan_of(self, broker: str) -> Callable[[int, Values], TrialPlan]:
        """A function that makes the plan of a trial from its index and values."""

        def make(index: int, values: Values) -> TrialPlan:
            repeat = index % self.space.repeats
            name = name_of(index)
            values = {**values, "seed": self.config.seed + repeat} if self.space.repeats > 1 else values
            row = self.trial_table.add(name, values)
            plan = TrialPlan(
                name=name,
                config={},
                metric=self.metric,
                sign=self.trial_table.sign,
                broker=broker,
                is_over=row.is_over,
                failure=str(row.failure) if row.failure is not None else None,
                rung=row.rung,
                value=None if row.value is None else self.trial_table.sign * row.value,
                sweep=self.root.path_of(),
                every_steps=self.every_steps,
                values=values,
            )
            try:
                config = trial_config(self.config, self.root, name, values)
                plan = replace(plan, others={o.metric: _known_before(o.metric, config) for o in self.space.also})
            except ConfigError as error:  # values that are valid one by one, but not together
                message = f"these values are not valid together: {without_headline(str(error))}"
                failure = TrialFailure(error.code, message)
                self.tell(self.trial_table.update(name, status="failed", failure=failure), "over")
                return replace(plan, is_over=True, failure=str(failure))
            if self.every_steps is not None:  # its values are applied in each generation
                config = trial_config(self.config, self.root, name, {})
            return replace(plan, config=config.model_dump(mode="json", exclude_unset=True))

        return make

    def result(self, status: RunStatus, duration_s: float) -> SweepResult:
        """The sweep's result as of now."""
        best, also = self.trial_table.best, self.space.also
        front = self.trial_table.front(also) if also else []
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
            num_trials=len(self.trial_table.rows),
            num_failed=self.trial_table.count("failed"),
            steps=self.trial_table.steps,
            duration_s=duration_s,
            spent_s=self.spent_s(),
            failure_code=self._commonest_failure() if status is RunStatus.FAILED else None,
            message=self.end.message if self.end is not None else "",
            exit_code=0 if status is RunStatus.FINISHED else 1,
        )

    def _commonest_failure(self) -> FailureCode | None:
        codes = Counter(row.failure.code for row in self.trial_table.rows.values() if row.failure is not None)
        return codes.most_common(1)[0][0] if codes else None


def trial_config(config: RunConfig, root: Storage, name: str, values: Values) -> RunConfig:
    """The run config of a trial. All trials whose data settings agree share the sweep's prepared data."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    prepared = config.data.prepared_path or Storage(config.storage_path).path_of("_prepared")
    own = {"storage_path": root.path_of(TRIALS), "name": name, "data.prepared_path": prepared}
    for tracker in ("wandb", "mlflow"):  # which group the trials of a sweep
        section = getattr(config.tracking, tracker)
        if section is not None and section.group is None:
            own[f"tracking.{tracker}.group"] = root.place()[1]
    if (address := cluster_address(config)) is not None:  # a trial's process does not get it from the environment
        own["ray.address"] = address
    return parse_config(raw, [*overrides_of(values), *overrides_of(own)])


def name_of(index: int) -> str:
    """The name of the trial with this index."""
    return f"trial_{index:04d}"


def _known_before(metric: str, config: RunConfig) -> float | None:
    """The value of an objective that does not depend on the training; None for all others. Raises ConfigError."""
    if metric != NUM_PARAMETERS:
        return None
    from raytrain.sizing.shape import shape_on_meta

    task = make_task(config.task, config.data.max_length)
    return float(shape_on_meta(config, task, task.assumed_state()).num_parameters)
