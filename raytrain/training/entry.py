"""Where a worker begins. Light at the top: the driver imports this to name it, and a new process answers at once."""

import gc
import logging
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any

from raytrain.errors import RaytrainError
from raytrain.storage import Storage
from raytrain.training.job import Job

logger = logging.getLogger(__name__)

# What a worker says when another one has left it: the effect of a failure, not its cause.
ECHOES: tuple[str, ...] = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "ProcessGroup")
ECHOES += ("DistBackendError", "DistNetworkError", "DistStoreError")
OUT_OF_MEMORY_ADVICE = (
    " Lower training.micro_batch_size or turn on training.gradient_checkpointing: neither changes the result. Or take "
    "a higher training.zero_stage with more workers; `raytrain plan CONFIG --gpu GPU` says what fits."
)


@dataclass(frozen=True)
class Place:
    """A worker's place in a worker group."""

    mailbox: str
    """Name of the actor through which driver and workers talk."""
    group: int
    """Ordinal of the worker group, unlike any other of the run."""
    world_rank: int
    world_size: int


@dataclass(frozen=True)
class Ending:
    """How a worker left its group. One of the first two is set."""

    result: dict[str, Any] | None = None
    """Of the group: the contents of result.json."""
    error: str | None = None
    """An exception of this worker's: a crash, after which the driver starts another group."""
    is_echo: bool = False
    """Whether the error only says that another process or a node is gone. This process is then as good as before."""


class TrainingWorker:
    """The actor, a process that works in one worker group after the other."""

    def hello(self) -> None:
        """Answers as soon as the process is there."""

    def warm(self, config: dict[str, Any], use_gpu: bool) -> None:
        """Do while another group trains what would take seconds in the next one. `config`: of the run."""
        from raytrain.assets import communication_variables
        from raytrain.config import RunConfig
        from raytrain.training.warm import warm_up

        checked = RunConfig.model_validate(config)
        os.environ.update(communication_variables(checked.training.communication))
        try:
            warm_up(checked, use_gpu=use_gpu)
        except Exception:  # what is wrong comes up again in the group, where it is told
            logger.warning("this worker could not be warmed up", exc_info=True)

    def work(self, place: Place, job: Job) -> Ending:
        """Take part in one worker group, from its forming to its end.

        An error for people (a diverged run, a full disk) is no reason to start the workers again: it is raised on all
        workers alike, see Control.all_succeed, and is a result.
        """
        from ray.util import get_node_ip_address

        from raytrain.assets import communication_variables
        from raytrain.batch_plan import World
        from raytrain.config import RunConfig
        from raytrain.training.mailbox import DriverLink
        from raytrain.training.process_group import process_group
        from raytrain.training.worker import backend_of

        config = RunConfig.model_validate(job.config)
        os.environ.update(communication_variables(config.training.communication))
        world = World(place.world_rank, place.world_size)
        backend, patience_s = backend_of(use_gpu=job.use_gpu), config.workers.stall_timeout_s
        link = DriverLink(place.mailbox, place.group, world.world_rank)
        try:
            with process_group(world, backend, get_node_ip_address(), link.meet, patience_s):
                return Ending(result=_work(job, world, link))
        except Exception as error:
            logger.exception("worker %d of group %d", place.world_rank, place.group)
            message = _in_words(error)
            return Ending(error=message, is_echo=_is_echo(error, message))
        finally:
            link.close()
            _forget()


def _work(job: Job, world: Any, link: Any) -> dict[str, Any]:
    """The group is formed: do the job."""
    entered_at_s = link.now()
    from raytrain.training.worker import WorkerRun

    worker = None
    result: dict[str, Any] = {"status": "stopped"}  # after a crash another group goes on
    try:
        worker = WorkerRun(job, Storage(job.run_root), world, link, entered_at_s)
        result = worker.train() if job.evaluate_split is None else worker.evaluate(job.evaluate_split)
    except RaytrainError as error:
        if worker is not None:
            worker.log.event("failure", cause=str(error))
        result = {"status": "failed", "message": str(error), "exit_code": error.exit_code}
    finally:
        if worker is not None:
            worker.log.close(result["status"])
    return result


def _in_words(error: Exception) -> str:
    """What the driver is told of an exception, in a line or two."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"{type(error).__name__}: {str(error).partition(' If reserved')[0]}{OUT_OF_MEMORY_ADVICE}"
    return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"


def _is_echo(error: Exception, message: str) -> bool:
    from ray.exceptions import RayError, RayTaskError

    is_rays = isinstance(error, RayError) and not isinstance(error, RayTaskError)  # an actor or a node that is gone
    return is_rays or any(echo in message for echo in ECHOES)


def _forget() -> None:
    """Give the last engine's memory back: hooks and parameters point at each other."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        # Locked memory of snapshots: the next group's parts have other sizes. (torch before 2.13 may not have this.)
        getattr(torch.accelerator, "empty_host_cache", lambda: None)()
