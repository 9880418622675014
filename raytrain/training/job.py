"""What the driver hands to the workers, and where they begin. Light: the driver imports this without torch."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from raytrain.errors import RaytrainError
from raytrain.storage import Storage

RESULT = "result.json"
STOP_REQUEST = "stop_requested"


@dataclass(frozen=True)
class Job:
    """Plain JSON, validated where the user typed it."""

    config: dict[str, Any]
    run_root: str
    prepared_root: str
    use_gpu: bool
    evaluate_split: str | None = None
    """Evaluate the run's best model on this split instead of training."""

    def to_dict(self) -> dict[str, Any]:
        """As Ray Train's `train_loop_config`."""
        return asdict(self)


def train_worker(raw: dict[str, Any]) -> None:
    """Ray Train calls this in each worker of each worker group.

    An error for people (a diverged run, a full disk) is no reason to start the workers again: rank 0 writes it to
    result.json and the group ends in peace. Any other exception is a crash, which Ray Train answers with a restart.
    """
    import ray.train

    from raytrain.batch_plan import World
    from raytrain.training.worker import WorkerRun

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    job = Job(**raw)
    run = Storage(job.run_root)
    try:
        worker = WorkerRun(job, run, world)
        result = worker.train() if job.evaluate_split is None else worker.evaluate(job.evaluate_split)
    except RaytrainError as error:
        result = {"status": "failed", "message": str(error), "exit_code": error.exit_code}
    if world.world_rank == 0:
        run.commit_bytes(RESULT, json.dumps(result).encode())
