"""From a run's config to Ray Train's TorchTrainer."""

import uuid

from raytrain.config import RunConfig
from raytrain.storage import Storage
from raytrain.training.entry import train_worker
from raytrain.training.job import Job

# Restarts of Ray Train's controller itself before the run gives up; its default is unlimited.
CONTROLLER_FAILURE_LIMIT = 3


class WorkerGroupFailed(Exception):
    """The workers crashed more often than workers.max_failures allows; the message says how."""


def run_workers(config: RunConfig, job: Job, num_workers: int) -> None:
    """Run the training function on `num_workers` workers until it returns on all of them.

    A crash restarts all workers, up to `workers.max_failures` times; each restart goes on from the newest good
    checkpoint.

    Raises:
        WorkerGroupFailed: They crashed more often than that.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    run = Storage(job.run_root)
    ray_files = f"ray-{uuid.uuid4().hex[:8]}"  # Ray Train's own notes; a name of its own, or it would "resume" itself
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job.to_dict(),
        torch_config=TorchConfig(backend="nccl" if job.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=job.use_gpu,
            resources_per_worker={"CPU": config.workers.cpus, **({"GPU": 1} if job.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=ray_files,
            storage_path=run.path_of(),
            failure_config=FailureConfig(
                max_failures=config.workers.max_failures, controller_failure_limit=CONTROLLER_FAILURE_LIMIT
            ),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise WorkerGroupFailed(_cause(error)) from error
    finally:
        run.delete(ray_files)


def _cause(error: Exception) -> str:
    """The first worker's error, without Ray's wrapping; its last line is what a person looks for."""
    failures = getattr(error, "worker_failures", None) or {}
    for world_rank in sorted(failures):
        return f"worker {world_rank}: {failures[world_rank]}"
    return str(error)
