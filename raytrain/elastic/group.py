"""One worker group: Ray Train's TorchTrainer at a fixed size, run in a thread, and how it ended.

Why not Ray Train's own elasticity: its resize tears the workers down without telling them, so the steps since the last
checkpoint are lost, and a worker group that dies while it starts can't be replaced. A group here is one `fit()`: it is
asked to save and leave through the mailbox, and the supervisor starts the next one at another size.
"""

import threading
import uuid
from dataclasses import dataclass
from typing import Any

from raytrain.config import RunConfig
from raytrain.elastic.policy import FailureKind
from raytrain.storage import Storage
from raytrain.training.entry import train_worker
from raytrain.training.job import Job

# What a worker says when another one has left it: the effect of a failure, not its cause.
ECHOES = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "ProcessGroup")


@dataclass(frozen=True)
class GroupFailure:
    """Why a group ended without a result."""

    kind: FailureKind
    """NO_START, CRASH or ERROR; only the supervisor knows of nodes."""
    message: str


class WorkerGroup:
    """A group that is running, or has ended."""

    def __init__(self, config: RunConfig, job: Job, world_size: int):
        """Starts it; returns at once."""
        self.world_size = world_size
        self.failure: GroupFailure | None = None
        self.error: BaseException | None = None
        """A bug of ours or of Ray's, to be raised."""
        self._thread = threading.Thread(target=self._run, args=(config, job), name="worker-group", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end. Returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, config: RunConfig, job: Job) -> None:
        from ray.train.v2.api.exceptions import TrainingFailedError

        try:
            _fit(config, job, self.world_size)
        except TrainingFailedError as error:
            self.failure = _failure_of(error)
        except BaseException as error:
            self.error = error


def worker_resources(config: RunConfig, use_gpu: bool) -> dict[str, float]:
    """What each worker holds."""
    return {"CPU": float(config.workers.cpus), **({"GPU": 1.0} if use_gpu else {})}


def _fit(config: RunConfig, job: Job, world_size: int) -> None:
    """Run the workers until they return. Raises TrainingFailedError when one of them failed, without another try."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.config import FailureConfig

    class Trainer(TorchTrainer):
        """Without Ray's cleaner of placement groups, a detached actor for each group: a controller that dies with its
        driver leaves no placement group, but where the State API does not run, the cleaner stays for ever."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    run = Storage(job.run_root)
    ray_files = f"ray-{uuid.uuid4().hex[:8]}"  # Ray Train's own notes; a name of its own, or it would "resume" itself
    trainer = Trainer(
        train_worker,
        train_loop_config=job.to_dict(),
        torch_config=TorchConfig(backend="nccl" if job.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=world_size, use_gpu=job.use_gpu, resources_per_worker=worker_resources(config, job.use_gpu)
        ),
        run_config=ray.train.RunConfig(
            name=ray_files,
            storage_path=run.path_of(),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        trainer.fit()
    finally:
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
        return GroupFailure(FailureKind.CRASH, f"worker {rank} died: {_first_line(dead[rank])}")
    causes = {rank: failure for rank, failure in failures.items() if not any(echo in str(failure) for echo in ECHOES)}
    for rank in sorted(causes or failures):
        return GroupFailure(FailureKind.ERROR, f"worker {rank}: {failures[rank]}")
    return GroupFailure(FailureKind.CRASH, str(error))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
