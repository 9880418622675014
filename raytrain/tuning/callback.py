"""The sweep's callback for Ray Tune's events. Runs in the driver."""

import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.tune import Callback

from raytrain.errors import FailureCode, counted, first_line
from raytrain.monitoring.exporter import SweepExporter
from raytrain.runs.signals import StopSignals
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus
from raytrain.training.records import EPOCHS
from raytrain.tuning.generations import Generations
from raytrain.tuning.pool.broker import Broker, rungs_passed
from raytrain.tuning.space.schedulers import Halving
from raytrain.tuning.space.space import Space
from raytrain.tuning.state import Sweep, SweepEnd
from raytrain.tuning.trial import FAILURE, GOODPUT, KEPT, OTHERS, STATUS, STEP, VALUE
from raytrain.tuning.trials import TRIALS, TrialFailure

LOOK_EVERY_S = 0.5
FIRST_WORD_S, SAY_EVERY_S = 2.0, 15.0  # while there is no room for any trial
LEAST_OVER = 4  # trials that must be over before the share of failed ones counts


class SweepCallback(Callback):
    """Keeps the trial table, ends the sweep when it has to, and tells the pool about rungs and trials that are over."""

    def __init__(
        self, sweep: Sweep, broker: Broker, at_once: int, signals: StopSignals, check_lease: Callable[[], None]
    ):
        """`at_once`: trials that run concurrently."""
        self._at_once = at_once
        self._sweep, self._broker, self._signals, self._check_lease = sweep, broker, signals, check_lease
        self._next_look_s, self._next_word_s = 0.0, FIRST_WORD_S
        self._is_ending = False
        self._generations = Generations(sweep, broker, sweep.every_steps) if sweep.every_steps else None
        name = sweep.root.place()[1]
        self._exporter = SweepExporter(sweep.config, name, sweep.metric, sweep.space.num_trials)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a kind of resume that is not used

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune's loop several times a second."""
        if time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + LOOK_EVERY_S
        self._check_lease()
        for trial in trials:  # Tune does not report a trial for which it could not reuse an earlier trial's process
            if trial.status == "ERROR" and not self._sweep.trial_table.rows[trial_name(trial)].is_over:
                self.on_trial_error(iteration, trials, trial)
        sweep, trial_table = self._sweep, self._sweep.trial_table
        self._signals.acknowledge(sweep.observer.stopping)
        sweep.end = sweep.end or self._reason_to_end()
        if sweep.end is not None and not self._is_ending:
            self._is_ending = True
            self._broker.stop()
        num_waiting = 0
        if self._generations is not None and sweep.end is None:
            num_waiting = self._generations.advance()
        self._broker.expect(sweep.num_wanting(self._at_once) - num_waiting)
        self._exporter.look(sweep.trial_table.standing)
        now = self._broker.now()
        self._say_what_is_waited_for()
        for name, row in list(trial_table.rows.items()):
            if row.workers != now.get(name, 0):
                trial_table.update(name, workers=now.get(name, 0))

    def _say_what_is_waited_for(self) -> None:
        """Tell the user while there is no room for any trial: after a moment, and then at intervals."""
        waiting_s = self._broker.waiting_s
        if waiting_s == 0.0:
            self._next_word_s = FIRST_WORD_S
        elif waiting_s >= self._next_word_s:
            self._next_word_s = waiting_s + SAY_EVERY_S
            self._sweep.observer.waiting(waiting_s)

    def _reason_to_end(self) -> SweepEnd | None:
        """Why the sweep should end now."""
        sweep = self._sweep
        hours = sweep.space.budget.hours
        if self._signals.is_asked:
            return SweepEnd(RunStatus.STOPPED, "stopped on request")
        if hours is not None and sweep.spent_s() > hours * 3600:
            return SweepEnd(RunStatus.FINISHED, f"budget.hours {hours:g} have passed")
        wait_timeout_s = sweep.config.workers.wait_timeout_s
        if wait_timeout_s is not None and self._broker.waiting_s > wait_timeout_s:
            least = sweep.config.workers.min
            return SweepEnd(
                RunStatus.STOPPED,
                f"no room for a trial's {least} workers for workers.wait_timeout_s {wait_timeout_s:g} s; add nodes, "
                "lower workers.min, or raise the timeout",
            )
        if self._has_failed_too_often():
            num_failed = sweep.trial_table.count("failed")
            return SweepEnd(
                RunStatus.FAILED,
                f"{counted(num_failed, 'trial')} failed, and max_failed of the space is {sweep.space.max_failed:g}",
            )
        return None

    def _has_failed_too_often(self) -> bool:
        trial_table = self._sweep.trial_table
        return trial_table.num_over >= LEAST_OVER and trial_table.share_failed() > self._sweep.space.max_failed

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process is about to start."""
        row = self._sweep.trial_table.rows[trial_name(trial)]
        if not row.is_over:
            self._sweep.tell(self._sweep.trial_table.update(row.name, status="running"), "started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial was evaluated, or reports how it ended."""
        if VALUE not in result or STEP not in result:
            return
        sweep, name = self._sweep, trial_name(trial)
        rung = rung_of(sweep.space, result[STEP], result.get(EPOCHS, 0.0))
        before = sweep.trial_table.rows[name].step
        value = sweep.trial_table.sign * result[VALUE]
        is_kept = bool(result.get(KEPT))
        row = sweep.trial_table.evaluated(name, result[STEP], value, rung, result.get(OTHERS), is_kept=is_kept)
        if result.get(GOODPUT) is not None:
            row = sweep.trial_table.update(name, goodput=result[GOODPUT])
        self._broker.reached(name, rung, result[VALUE])
        if row.step > before:
            self._sweep.tell(row, "evaluated")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial ended by itself, or the scheduler stopped it, which leaves its last report unchanged."""
        name = trial_name(trial)
        self._broker.leave(name)
        row = self._sweep.trial_table.rows[name]
        if row.is_over:
            return
        status = (trial.last_result or {}).get(STATUS, "running")
        if status == RunStatus.STOPPED and self._sweep.end is None:  # this command's node too
            self._sweep.end = SweepEnd(RunStatus.STOPPED, "the node of this command is being reclaimed")
        self._sweep.tell(
            self._sweep.trial_table.update(name, status="pruned" if status == "running" else status, workers=0), "over"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has raised an exception, or its process died."""
        name = trial_name(trial)
        self._broker.leave(name)
        row = self._sweep.trial_table.rows[name]
        if not row.is_over:
            failure = failure_of(self._sweep.root, name, trial.get_pickled_error() or trial.get_error())
            self._sweep.tell(self._sweep.trial_table.update(name, status="failed", failure=failure, workers=0), "over")


def trial_name(trial: Any) -> str:
    """The sweep's name for one of Tune's trials."""
    return trial.config["plan"]["name"]


def rung_of(space: Space, step: int, epochs: float) -> int:
    """Rungs that a trial has passed at a step, or after `epochs` passes over its data."""
    scheduler = space.scheduler
    if not isinstance(scheduler, Halving):
        return 0
    done = step if scheduler.grace_steps else epochs
    return rungs_passed(done, scheduler.grace, scheduler.reduction_factor)


def failure_of(root: Storage, name: str, error: Exception | None) -> TrialFailure:
    """Why a trial failed: in its own words, or, if its process died, in Ray's.

    `error`: the error that Tune has recorded.
    """
    own = f"{TRIALS}/{name}/{FAILURE}"
    if root.exists(own):
        return TrialFailure.from_json(root.read_json(own))
    if error is None:
        return TrialFailure(FailureCode.WORKER_DIED, "its process died")
    last = first_line(str(error).strip().rpartition("\n")[2])  # the last line of a traceback
    code = FailureCode.INTERNAL if isinstance(error, RayTaskError) else FailureCode.WORKER_DIED
    return TrialFailure(code, last or type(error).__name__)
