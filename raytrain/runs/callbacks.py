"""Callbacks of the user's: what a run tells them, and the thread of the driver that calls them.

Workers never wait for a callback. The driver puts what it hears of them into a queue, which one thread works off. A
callback that is slower than the steps misses some of them, and the queue has a limit.
"""

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytrain.config import RunConfig
from raytrain.errors import ConfigError, FailureCode, TrainingError, first_line
from raytrain.runs.result import RunResult
from raytrain.training.outcome import Failed, Outcome, RunStatus, Stopped, StopReason
from raytrain.training.records import EPOCHS, scores_of
from raytrain.training.run_log import EVALS, EVENTS, METRICS

# Infos of one kind that wait for a slow callback; the oldest of them are dropped first.
MOST_WAITING = 1000
# After the end of training, before the user is told what the command waits for.
PATIENCE_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartInfo:
    """Training is about to start, or to be resumed."""

    run_path: str
    """The folder of the run."""
    config: RunConfig
    """The complete config, with absolute paths."""
    total_steps: int
    """Optimizer steps of the whole run."""


@dataclass(frozen=True)
class StepInfo:
    """An optimizer step is done. A step that is redone after a crash is told again."""

    step: int
    """Steps done, from 1."""
    total_steps: int
    epoch: int
    """From 1."""
    loss: float
    """Mean over the targets of the global batch; NaN if it was not finite."""
    learning_rate: float
    grad_norm: float
    """L2 norm of the gradient before clipping; NaN if it was not finite."""
    samples_seen: int
    """Samples since the first step, over all workers."""
    tokens_seen: int
    """The same in tokens, without padding."""
    step_s: float
    """Duration of the step in seconds, with the wait for its data."""
    world_size: int
    """Workers of the step."""
    attempt: int
    """Number of the worker group, from 0."""
    num_missed: int = 0
    """Steps before this one that callbacks were not told of, because they were too slow."""


@dataclass(frozen=True)
class EvaluationInfo:
    """An evaluation is done."""

    step: int
    """Steps done."""
    epochs: float | None
    """Passes over the training data up to then; None for the test of the best model."""
    split: str
    """validation or test."""
    metrics: dict[str, float]
    """The task's metrics by name, and `loss`."""
    best_metric: str | None
    """Metric that picks the best model; None for test, as the next two are."""
    best_value: float | None
    """Its best value so far."""
    best_step: int | None
    """Step at which it was reached. It is this one, if this is the best so far."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint is complete in storage."""

    step: int
    """Steps that it contains."""
    run_path: str
    """The folder of the run."""


@dataclass(frozen=True)
class ResizeInfo:
    """The number or the set of workers has changed, and the first step after it is done."""

    kind: str
    """resize (more workers), reclaim (a node got notice) or failure (a worker or node was lost)."""
    cause: str
    """For people."""
    step: int
    """The step that training continued from."""
    steps_redone: int
    """Steps that were lost and done again."""
    world_size_before: int
    world_size: int
    seconds: float
    """From the cause to the first step after it."""


@dataclass(frozen=True)
class StopTraining:
    """Returned by a callback: the run saves a checkpoint and stops. It can be resumed."""

    reason: str = ""
    """For people; it is in the result's message."""


class Callback:
    """Base class of callbacks of a run; each method does nothing. Override what you need.

    The methods are called one after the other, in the order of the list that `train` is given, in a thread of the
    process that called `train`: never on a worker. Those that return `StopTraining` end the run. If one raises, the run
    saves and ends too, and `train` raises a TrainingError that names the callback. Calling `train` again resumes it.
    """

    def on_start(self, info: StartInfo) -> StopTraining | None:
        """Before the workers start."""

    def on_step(self, info: StepInfo) -> StopTraining | None:
        """After each step, up to a second later."""

    def on_evaluation(self, info: EvaluationInfo) -> StopTraining | None:
        """After each evaluation, and after the test of the best model."""

    def on_checkpoint(self, info: CheckpointInfo) -> StopTraining | None:
        """After each checkpoint."""

    def on_resize(self, info: ResizeInfo) -> StopTraining | None:
        """After a change of the workers."""

    def on_end(self, result: RunResult) -> None:
        """When the run has ended and its files are written, whatever its status."""


Info = StartInfo | StepInfo | EvaluationInfo | CheckpointInfo | ResizeInfo
METHODS = {
    StartInfo: "on_start",
    StepInfo: "on_step",
    EvaluationInfo: "on_evaluation",
    CheckpointInfo: "on_checkpoint",
    ResizeInfo: "on_resize",
    RunResult: "on_end",
}
RESIZES = ("resize", "reclaim", "failure")


class CallbackRunner:
    """Calls the callbacks of one command."""

    def __init__(self, given: Sequence[Any], tell: Callable[[str], None]):
        """Args:
            given: `Callback`s, and callbacks of Ray Train.
            tell: Shows a sentence to the user.

        Raises ConfigError for anything else.
        """
        self._callbacks, self.for_ray_train = _sorted(given)
        """Callbacks of Ray Train, for its controller."""
        self._tell = tell
        self._waiting: deque[Info | RunResult | None] = deque()
        self._num_waiting: Counter[type] = Counter()
        self._num_missed = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._run_path, self._total_steps = "", 0
        self._at_work = ""
        self._stop: tuple[str, StopTraining] | None = None
        self._failure: tuple[str, BaseException] | None = None
        self._has_failed_run = False

    @property
    def is_stop_asked(self) -> bool:
        """Whether a callback has asked the run to stop, or has raised."""
        return self._stop is not None or self._failure is not None

    def begin(self, info: StartInfo) -> None:
        """Start the thread, and call on_start there."""
        self._run_path, self._total_steps = info.run_path, info.total_steps
        if self._callbacks:
            self._thread = threading.Thread(target=self._work, name="raytrain-callbacks", daemon=True)
            self._thread.start()
            self._put(info)

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """New lines of the run's files, see `Observer.rows`."""
        if self._thread is not None:
            for row in rows:
                if (info := self._info(name, row)) is not None:
                    self._put(info)

    def judge(self, outcome: Outcome, *, is_other_stop: bool) -> Outcome:
        """The outcome of a run that a callback may have stopped. `is_other_stop`: the user has, or the sweep."""
        if not isinstance(outcome, Stopped) or is_other_stop or outcome.reason is not StopReason.REQUESTED:
            return outcome
        if self._failure is not None:
            self._has_failed_run = True
            return Failed(FailureCode.INTERNAL, self._failure_text(), outcome.progress)
        if self._stop is None:
            return outcome
        where, stop = self._stop
        return replace(outcome, reason=StopReason.CALLBACK, detail=f"{where}: {stop.reason}" if stop.reason else where)

    def end(self, result: RunResult) -> None:
        """Call on_end when the thread has caught up. Of the steps that still wait only the last one is told.

        Raises TrainingError if a callback has raised and the run is saved. One that failed for another reason is told
        by its result.
        """
        if self._thread is not None:
            self._drop_steps()
            self._put(result)
            self.close()
            self._thread.join(PATIENCE_S)
            if self._thread.is_alive():
                self._tell(f"waiting for {self._at_work}; press Ctrl-C to end without it")
                self._thread.join()
        is_of_run = result.status is RunStatus.FAILED and not self._has_failed_run
        if self._failure is not None and not is_of_run:
            raise TrainingError(
                f"{self._failure_text()}. {result.run_path} is {result.status} at step {result.step}, and saved",
                FailureCode.INTERNAL,
            ) from self._failure[1]

    def close(self) -> None:
        """End the thread when it has caught up, without waiting for it."""
        self._put(None)

    def _put(self, info: "Info | RunResult | None") -> None:
        with self._changed:
            self._waiting.append(info)
            self._num_waiting[type(info)] += 1
            if self._num_waiting[type(info)] > MOST_WAITING:
                oldest = next(one for one in self._waiting if type(one) is type(info))
                self._waiting.remove(oldest)
                self._num_waiting[type(info)] -= 1
                self._num_missed += isinstance(info, StepInfo)
            self._changed.notify()

    def _drop_steps(self) -> None:
        with self._changed:
            steps = [one for one in self._waiting if isinstance(one, StepInfo)]
            self._waiting = deque(one for one in self._waiting if not isinstance(one, StepInfo) or one is steps[-1])
            self._num_waiting[StepInfo] = len(steps[-1:])
            self._num_missed += max(0, len(steps) - 1)

    def _take(self) -> "Info | RunResult | None":
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            info = self._waiting.popleft()
            self._num_waiting[type(info)] -= 1
            if isinstance(info, StepInfo):
                info, self._num_missed = replace(info, num_missed=self._num_missed), 0
            return info

    def _work(self) -> None:
        while (info := self._take()) is not None:
            if self._failure is not None and not isinstance(info, RunResult):
                continue
            for callback in self._callbacks:
                self._call(callback, info)

    def _call(self, callback: Callback, info: "Info | RunResult") -> None:
        method = METHODS[type(info)]
        self._at_work = f"{type(callback).__name__}.{method}"
        try:
            answer = getattr(callback, method)(info)
            if not isinstance(answer, StopTraining | None):
                raise TypeError(f"it returned {answer!r}; return None, or raytrain.StopTraining(reason)")
        except BaseException as error:  # SystemExit too: it would end this thread alone
            logger.error("the callback %s failed; the run saves and ends", self._at_work, exc_info=error)
            self._failure = self._failure or (self._at_work, error)
            return
        if answer is not None and not isinstance(info, RunResult):
            self._stop = self._stop or (self._at_work, answer)

    def _failure_text(self) -> str:
        assert self._failure is not None
        where, error = self._failure
        text = first_line(str(error))
        return f"the callback {where} failed: {type(error).__name__}{f': {text}' if text else ''}"

    def _info(self, name: str, row: dict[str, Any]) -> Info | None:
        """What a line of the run's files tells callbacks; None: nothing."""
        if name == METRICS:
            return self._step(row)
        if name == EVALS:
            best = row.get("best") or {}
            values = (best.get("metric"), best.get("value"), best.get("step"))
            return EvaluationInfo(row["step"], row.get(EPOCHS), row["split"], scores_of(row), *values)
        if name == EVENTS and row["kind"] == "checkpoint":
            return CheckpointInfo(row["step"], self._run_path)
        if name == EVENTS and row["kind"] in RESIZES and "world_size" in row:  # not the failure that ends a run
            keys = ("kind", "cause", "step", "steps_redone", "world_size_before", "world_size", "seconds")
            return ResizeInfo(*(row[key] for key in keys))
        return None

    def _step(self, row: dict[str, Any]) -> StepInfo:
        return StepInfo(
            step=row["step"],
            total_steps=self._total_steps,
            epoch=row["epoch"],
            loss=_number(row["loss"]),
            learning_rate=row["lr"],
            grad_norm=_number(row["grad_norm"]),
            samples_seen=row["samples_seen"],
            tokens_seen=row["tokens_seen"],
            step_s=row["step_s"],
            world_size=row["world_size"],
            attempt=row["attempt"],
        )


def _sorted(given: Sequence[Any]) -> tuple[list[Callback], list[Any]]:
    """Those that are called here, and those of Ray Train. Raises ConfigError."""
    if not isinstance(given, Iterable):
        raise ConfigError(f"callbacks is of type {type(given).__name__}; give a list: callbacks=[...]")
    ours: list[Callback] = []
    of_ray_train = []
    for number, callback in enumerate(given):
        what = f"callbacks[{number}]"
        if isinstance(callback, type):
            raise ConfigError(f"{what} is the class {callback.__name__}; give an object of it: {callback.__name__}()")
        if isinstance(callback, Callback):
            ours.append(callback)
        elif any(base.__module__.partition(".")[0] == "ray" for base in type(callback).__mro__):
            of_ray_train.append(callback)
        else:
            raise ConfigError(
                f"{what} is of type {type(callback).__name__}; give objects whose class is derived from "
                "raytrain.Callback, or callbacks of Ray Train"
            )
    return ours, of_ray_train


def _number(value: float | None) -> float:
    """A number of a file in which null stands for one that is not finite."""
    return math.nan if value is None else value
