"""One worker group: Ray Train's TorchTrainer at a fixed size, run in a thread, and how it ended.

Why not Ray Train's own elasticity: its resize tears the workers down without telling them, so the steps since the last
checkpoint are lost, and a worker group that dies while it starts can't be replaced. A group here is one `fit()`: it is
asked to save and leave through the mailbox, and the supervisor starts the next one at another size.
"""

import contextlib
import threading
import uuid
from dataclasses import dataclass
from typing import Any

from raytrain.config import RunConfig
from raytrain.elastic.policy import FailureKind
from raytrain.errors import first_line
from raytrain.storage import Storage
from raytrain.training.entry import train_worker
from raytrain.training.job import Job
from raytrain.training.mailbox import Mailbox

DISMISS_TIMEOUT_S = 10.0
# What a worker says when another one has left it: the effect of a failure, not its cause.
ECHOES = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "ProcessGroup")


@dataclass(frozen=True)
class GroupFailure:
    """Why a group ended without a result."""

    kind: FailureKind
    """NO_START, CRASH or ERROR; only the supervisor knows of nodes."""
    message: str


class WorkerGroup:
    """A group that stands by, is running, or has ended."""

    def __init__(self, number: int, config: RunConfig, mailbox: Mailbox, run: Storage, *, use_gpu: bool):
        """Starts its controller, which waits for `begin`; returns at once. `number`: its ordinal, unlike any other."""
        self.number = number
        self.world_size = 0
        self.failure: GroupFailure | None = None
        self.error: BaseException | None = None
        """A bug of ours or of Ray's, to be raised."""
        self._mailbox = mailbox
        self._thread = threading.Thread(
            target=self._run, args=(config, run, use_gpu), name=f"worker-group-{number}", daemon=True
        )
        self._thread.start()

    def begin(self, world_size: int, job: Job) -> None:
        """Start the workers."""
        self.world_size = world_size
        self._mailbox.begin(self.number, world_size, job.to_dict())

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end. Returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def dismiss(self) -> None:
        """End it: a controller that stands by, or one with its workers, saved or not."""
        self._mailbox.dismiss(self.number)
        self.wait(DISMISS_TIMEOUT_S)

    def _run(self, config: RunConfig, run: Storage, use_gpu: bool) -> None:
        from ray.train.v2.api.exceptions import TrainingFailedError

        try:
            _fit(config, run, self._mailbox.name, self.number, use_gpu)
        except TrainingFailedError as error:
            self.failure = _failure_of(error)
        except BaseException as error:
            self.error = error


def worker_resources(config: RunConfig, use_gpu: bool) -> dict[str, float]:
    """What each worker holds."""
    return {"CPU": float(config.workers.cpus), **({"GPU": 1.0} if use_gpu else {})}


def _fit(config: RunConfig, run: Storage, mailbox: str, number: int, use_gpu: bool) -> None:
    """Wait for the word, run the workers until they return. Raises TrainingFailedError when one of them failed,
    without another try."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.config import FailureConfig

    from raytrain.elastic.standby import StandbyPolicy

    resources = worker_resources(config, use_gpu)

    class Trainer(TorchTrainer):
        """With our scaling policy, and without Ray's cleaner of placement groups, a detached actor for each group: a
        controller that dies with its driver leaves no placement group, but where the State API does not run, the
        cleaner stays for ever."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            parts["scaling_policy"] = StandbyPolicy(self.scaling_config, mailbox, number, resources)
            return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]

    ray_files = f"ray-{uuid.uuid4().hex[:8]}"  # Ray Train's own notes; a name of its own, or it would "resume" itself
    trainer = Trainer(
        train_worker,
        train_loop_config={"mailbox": mailbox, "group": number},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        # The policy tells the true number, which is not known yet.
        scaling_config=ray.train.ScalingConfig(num_workers=1, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name=ray_files,
            storage_path=run.path_of(),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        trainer.fit()
    finally:
        with contextlib.suppress(OSError):  # what matters is how the workers ended
            run.delete(ray_files)


def _failure_of(error: Exception) -> GroupFailure:
    """The cause, without Ray's wrapping and without what the other workers said when their neighbour was gone."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    if isinstance(error, ControllerError):
        cause = error.controller_failure
        died = isinstance(cause.__cause__, RayActorError)
        return GroupFailure(FailureKind.CRASH if died else FailureKind.NO_START, str(cause))
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    dead = {rank: failure for rank, failure in failures.items() if isinstance(failure, RayActorError)}
    if dead:
        rank = min(dead)
        return GroupFailure(
            FailureKind.CRASH, f"worker {rank} died: {first_line(str(dead[rank])) or type(dead[rank]).__name__}"
        )
    causes = {rank: failure for rank, failure in failures.items() if not any(echo in str(failure) for echo in ECHOES)}
    for rank in sorted(causes or failures):
        return GroupFailure(FailureKind.ERROR, f"worker {rank}: {failures[rank]}")
    return GroupFailure(FailureKind.CRASH, str(error))
