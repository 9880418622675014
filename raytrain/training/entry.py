"""Where a Ray Train worker begins. Light at the top: the driver imports this to name it, and needs no torch."""

import time
from typing import Any

from raytrain.errors import RaytrainError
from raytrain.storage import Storage


def train_worker(place: dict[str, Any]) -> None:
    """Ray Train calls this in each worker of each worker group.

    Args:
        place: `mailbox`, the name of the actor through which driver and workers talk, and `group`, the ordinal of this
            worker group. The job lies in the mailbox.

    An error for people (a diverged run, a full disk) is no reason to start the workers again: rank 0 tells the driver
    and the group ends in peace. Any other exception is a crash, after which the driver starts another group.
    """
    began_at_s = time.perf_counter()
    import ray.train

    from raytrain.batch_plan import World
    from raytrain.training.mailbox import DriverLink
    from raytrain.training.worker import WorkerRun

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    link = DriverLink(place["mailbox"], place["group"], world.world_rank)
    job = link.job()
    entered_at_s = link.now() - (time.perf_counter() - began_at_s)
    worker = None
    try:
        worker = WorkerRun(job, Storage(job.run_root), world, link, entered_at_s)
        result = worker.train() if job.evaluate_split is None else worker.evaluate(job.evaluate_split)
    except RaytrainError as error:  # raised on all workers alike, see Control.all_succeed
        result = {"status": "failed", "message": str(error), "exit_code": error.exit_code}
        if worker is not None:
            worker.log.event("failure", cause=str(error))
    finally:
        if worker is not None:
            worker.log.close()
    link.ended(result)
