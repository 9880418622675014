"""The driver's side of a run of Ray Train: starts its controller, and reports groups, failures and the end to it."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from raytrain.config import RunConfig
from raytrain.errors import FailureCode, first_line
from raytrain.storage import Storage
from raytrain.training.outcome import Failed, Outcome, Stopped, StopReason

FOLDER = "ray_train"  # in the run's folder: the files that Ray Train keeps about it
EVALUATIONS = f"{FOLDER}/evaluations"  # of evaluations, which may run beside the training
END_TIMEOUT_S = 10.0
ABORT_TIMEOUT_S = 2.0
MOST_CONTROLLERS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ControllerEnd:
    """Ray Train's controller has ended without being told to."""

    can_restart: bool
    """Whether another controller can take its place."""
    cause: str
    """For people."""


class TrainRun:
    """A run of Ray Train, from the start of its controller to its end.

    A context manager: a run that is not concluded on exit is aborted, in Ray Train's terms.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Storage,
        resources: Mapping[str, float],
        callbacks: Sequence[Any] = (),
        folder: str = FOLDER,
    ):
        """Start the controller's process; returns at once. Ray must be connected.

        Args:
            run: The run's folder.
            resources: Resources of each worker.
            callbacks: As for `ray.train.RunConfig`; called in the controller's process.
            folder: Folder in the run's folder for Ray Train's files.
        """
        logging.getLogger("ray.train").setLevel(logging.ERROR)  # the terminal reports what users need
        self._config, self._run, self._resources, self._folder = config, run, dict(resources), folder
        self._callbacks, self._num_started = list(callbacks), 0
        self._is_concluded = False
        self._start()

    def _start(self) -> None:
        from raytrain.elastic.ray_train import start_controller, variables
        from raytrain.elastic.training_worker import train_fn

        workers = self._config.workers
        self._num_started += 1
        self.variables: dict[str, str] = variables.get_env_vars_to_propagate()
        """Environment variables of Ray Train, for the workers."""
        self._controller = start_controller(
            train_fn,
            self._config.name,
            self._run.path_of(self._folder),
            (workers.min, workers.max),
            self._resources,
            self._config.checkpoint.keep_last,
            self._callbacks,
        )
        self.done: Any = self._controller.run.remote()
        """A reference, owned by this process, that is resolved when the controller has ended."""

    def start_group(self, number: int, actors: Sequence[Any]) -> None:
        """Have a worker group formed from these actors, in rank order; returns at once. `number`: larger than any
        before."""
        self._controller.start_group.remote(number, list(actors))

    def end_group(self, number: int) -> None:
        """Report that a group has left as it was asked to; others may use its processes now."""
        self._controller.end_group.remote(number)

    def fail_group(self, number: int, failures: Mapping[int, str]) -> None:
        """Report that a group has failed, with the message of each rank that caused it."""
        self._controller.fail_group.remote(number, dict(failures))

    def release(self, number: int) -> None:
        """A group is failing: its workers that wait in a barrier of Ray Train, now or later, are released with an
        error."""
        self._controller.release.remote(number)

    def problem(self) -> ControllerEnd | None:
        """The error if the controller has ended by itself; else None."""
        import ray

        if not ray.wait([self.done], timeout=0)[0]:
            return None
        try:
            ray.get(self.done)
            error = ray.get(self._controller.get_result.remote(), timeout=END_TIMEOUT_S).error
        except ray.exceptions.RayActorError as died:
            can_restart = self._num_started < MOST_CONTROLLERS
            return ControllerEnd(can_restart, f"Ray Train's controller died: {first_line(str(died))}")
        except Exception as failed:
            return ControllerEnd(False, f"Ray Train's controller failed: {first_line(str(failed))}")
        return ControllerEnd(False, f"Ray Train's controller ended the run: {error}")

    def restart(self) -> None:
        """Start another controller in place of one that has died: a new run in Ray Train's state."""
        self._start()

    def conclude(self, outcome: Outcome) -> None:
        """End the run according to its outcome. The workers' reports are taken in first, so the workers must still
        exist. To Ray Train, a paused run is finished."""
        if self._is_concluded:
            return
        self._is_concluded = True
        if isinstance(outcome, Stopped) and outcome.reason is not StopReason.PAUSED:
            return self._abort()
        import ray

        error = outcome.message if isinstance(outcome, Failed) else None
        with contextlib.suppress(ray.exceptions.RayError):
            self._controller.conclude.remote(error)
            if not ray.wait([self.done], timeout=END_TIMEOUT_S)[0]:
                logger.warning("Ray Train's controller does not end")
            ray.kill(self._controller)

    def abort(self) -> None:
        """End the run before its workers have ended, and tell them that their reports are no longer taken."""
        if not self._is_concluded:
            self._abort()

    def _abort(self) -> None:
        import ray

        self._is_concluded = True
        with contextlib.suppress(ray.exceptions.RayError):
            ray.wait([self._controller.abort.remote()], timeout=ABORT_TIMEOUT_S)
            ray.kill(self._controller)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and isinstance(error, Exception):
            self.conclude(Failed(FailureCode.INTERNAL, f"{type(error).__name__}: {error}"))
        elif not self._is_concluded:
            self._abort()
