"""A worker: one process, which is a Ray Train worker of one worker group after the other."""

import functools
import gc
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ray

from raytrain.elastic.ray_train_worker import DirectReporter, ReusableWorker
from raytrain.elastic.worker_errors import WorkerError, error_of
from raytrain.engine.rendezvous import address_of, listen
from raytrain.errors import FailureCode, RaytrainError, TakenOverError
from raytrain.storage import Storage
from raytrain.training.driver_link import DriverLink, GroupStatus
from raytrain.training.job import Job
from raytrain.training.log_feed import LogLines
from raytrain.training.outcome import Failed, Outcome, RunStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """A worker's part in a worker group."""

    group: int
    """Number of the worker group, larger than that of any earlier one of the run."""
    world_rank: int
    world_size: int
    store_address: str
    """host:port of rank 0's key-value store, through which the workers find each other."""
    clock_ahead_s: float = 0.0
    """Seconds that the clock of rank 0's node is ahead of the driver's."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of Ray Train that the driver has."""
    driver: list[Any] = field(default_factory=list)
    """A reference that the driver's process owns, boxed so that it is not resolved; it is lost when its owner ends."""


@dataclass(frozen=True)
class WorkerExit:
    """How a worker left its group. One of `outcome` and `error` is set."""

    outcome: Outcome | None = None
    """The group's outcome; rank 0's is complete."""
    error: WorkerError | None = None
    """Why there is no outcome; the driver then starts another group."""
    status: GroupStatus = field(default_factory=GroupStatus)
    """The group's progress."""


class TrainingWorker(ReusableWorker):
    """The actor. Its own methods answer at once, except for `warm` and `wait_for_exit`; `work` runs in a thread that
    Ray Train starts."""

    concurrency_groups: ClassVar[dict[str, int]] = {"exit": 1}

    def __init__(self) -> None:
        super().__init__()
        global _worker
        _worker = self
        self._listener: socket.socket | None = None
        self._changed, self._cleaning = threading.Condition(), threading.Lock()
        self._watched: set[Any] = set()
        self.join()

    def join(self) -> None:
        """Join a run: forget another run's groups, which have the same numbers."""
        with self._changed:
            self._group = self._ordered = -1
            self._assignment: Assignment | None = None
            self._job: Job | None = None
            self._link = DriverLink("")
            self._exit: WorkerExit | None = None
            self._has_begun = False

    def hello(self) -> None:
        """Answer as soon as the process exists."""

    def warm(self, config: dict[str, Any], use_gpu: bool) -> None:
        """Do now, while another group trains, what would take seconds in the next group. `config`: the run's."""
        from raytrain.config import RunConfig
        from raytrain.config.shipped import worker_variables
        from raytrain.training.warm import warm_up

        checked = RunConfig.model_validate(config)
        os.environ.update(worker_variables(checked.training))
        try:
            warm_up(checked, use_gpu=use_gpu)
        except Exception:  # the same error occurs again in the group, where it is reported
            logger.warning("this worker could not be warmed up", exc_info=True)

    def open_store(self) -> tuple[str, float]:
        """On rank 0: the address of the next group's key-value store, and this node's time, seconds since the epoch.

        The socket listens from now on, so that the others can connect before this process has imported torch.
        """
        self._close_listener()
        self._listener = listen(ray.util.get_node_ip_address())
        return address_of(self._listener), time.time()

    def assign(self, assignment: Assignment, job: Job) -> None:
        """Tell this worker its job in the group that begins next."""
        with self._changed:
            os.environ.update(assignment.variables)
            self._assignment, self._job, self._group = assignment, job, assignment.group
            self._exit, self._has_begun = None, False
            self._changed.notify_all()
            self._link = DriverLink(
                ray.get_runtime_context().get_node_id(),
                assignment.clock_ahead_s if assignment.world_rank == 0 else 0.0,
                _object_store_bytes(),
            )
        for reference in assignment.driver:
            if reference not in self._watched:
                self._watched.add(reference)
                threading.Thread(target=self._watch_driver, args=(reference,), daemon=True, name="driver").start()

    def begin(self, group: int) -> None:
        """See ReusableWorker."""
        self._ordered = group

    def abandon(self, group: int, reason: str) -> None:
        """See ReusableWorker."""
        with self._changed:
            if group > self._group:  # this worker was not even told of the group
                self._group, self._has_begun = group, False
            if group == self._group and not self._has_begun:
                self._leave_group(group, _left(reason))

    def leave(self, group: int) -> None:
        """Ask the group to save at its next step, and end."""
        if group == self._group:
            self._link.request_leave()

    def give_holders(self, group: int, names: dict[str, str]) -> None:
        """Names of the actors that keep snapshots, by node id."""
        if group == self._group:
            self._link.give_holders(names)

    def status(self, after: int) -> tuple[GroupStatus, list[LogLines]]:
        """The progress of the current group, and the next lines of its logs behind number `after`."""
        return self._link.status, self._link.feed.after(after)

    @ray.method(concurrency_group="exit")
    def wait_for_exit(self, group: int) -> WorkerExit:
        """Return when this worker has left the group."""
        with self._changed:
            self._changed.wait_for(lambda: self._group > group or (self._group == group and self._exit is not None))
            if self._group == group and self._exit is not None:
                return self._exit
            return _left(f"worker group {group} is over")

    def run_assignment(self) -> str:
        """Take part in the assigned worker group; Ray Train runs this in its thread. Returns the status of the group's
        outcome; raises RuntimeError if there is none."""
        with self._changed:
            assignment, job, group = self._assignment, self._job, self._ordered
            is_over = self._group != group or self._has_begun or self._exit is not None
            if assignment is None or job is None or assignment.group != group or is_over:
                raise RuntimeError(f"worker group {group} is over")
            self._has_begun = True
        left = WorkerExit(error=WorkerError(FailureCode.WORKER_ERROR, "the training thread was ended"))
        with self._cleaning:  # the last group's memory may not be released yet
            try:
                left = self.work(assignment, job)
            finally:
                with self._changed:
                    self._leave_group(group, left)
                _forget()
        if left.error is not None:
            raise RuntimeError(left.error.message)
        return left.outcome.status.value if left.outcome else ""

    def work(self, assignment: Assignment, job: Job) -> WorkerExit:
        """Take part in one worker group, from its forming to its end.

        An error that the user can act on (a diverged run, a full disk) does not restart the workers: it is raised on
        all of them, see Control.all_succeed, and is an outcome.
        """
        from raytrain.config import RunConfig
        from raytrain.config.shipped import worker_variables
        from raytrain.engine.process_group import connect, process_group
        from raytrain.steps.batches import World
        from raytrain.training.device import backend_of

        config = RunConfig.model_validate(job.config)
        os.environ.update(worker_variables(config.training))
        world = World(assignment.world_rank, assignment.world_size)
        backend, patience_s = backend_of(use_gpu=job.use_gpu), config.workers.stall_timeout_s
        listener, self._listener = self._listener, None
        try:
            store = connect(world, assignment.store_address, listener)
            with process_group(world, backend, store, patience_s):
                return WorkerExit(_work(job, world, self._link), status=self._link.status)
        except Exception as error:
            logger.exception("worker %d of group %d", assignment.world_rank, assignment.group)
            return WorkerExit(error=error_of(error), status=self._link.status)
        finally:
            self._link.give_holders({})

    def _leave_group(self, group: int, left: WorkerExit) -> None:
        """`_changed` must be held. Results of a group that is over are dropped."""
        if group != self._group:
            return
        self._close_listener()
        self._exit = left
        self._changed.notify_all()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _watch_driver(self, reference: Any) -> None:
        """End this process if the driver's ends while a group is at work. In a Ray that stays up, the workers would
        otherwise keep training beside those of the driver's successor."""
        try:
            ray.get(reference)
        except ray.exceptions.OwnerDiedError:
            assignment = self._assignment
            if assignment is not None and reference in assignment.driver and self._exit is None:
                logger.error("the driver of this run is gone: this worker ends")
                os._exit(1)
        except ray.exceptions.RayError:  # the controller has ended: the driver knows what to do
            pass


worker_class: type[TrainingWorker] = TrainingWorker
"""The actor class of the workers."""
_worker: TrainingWorker | None = None  # this process's worker


def _left(reason: str) -> WorkerExit:
    """The exit of a worker that has not begun because another one is gone."""
    return WorkerExit(error=WorkerError(FailureCode.PEER_LOST, reason))


def train_fn() -> str:
    """The function that Ray Train runs on each worker of each group."""
    assert _worker is not None
    return _worker.run_assignment()


def _work(job: Job, world: Any, link: DriverLink) -> Outcome:
    """Do the job, once the group is formed."""
    entered_at_s = link.now()
    from raytrain.training.worker import WorkerRun

    worker = None
    status = RunStatus.STOPPED  # after a crash another group continues
    try:
        worker = WorkerRun(job, Storage(job.run_root), world, link, entered_at_s, DirectReporter())
        outcome = worker.train() if job.evaluate_split is None else worker.evaluate(job.evaluate_split)
        status = outcome.status
        return outcome
    except TakenOverError:  # raised on this worker only, and nothing may be written any more
        raise
    except RaytrainError as error:
        if worker is not None:
            worker.log.event("failure", cause=str(error), code=error.code)
        status = RunStatus.FAILED
        return Failed(error.code, str(error))
    finally:
        if worker is not None:
            worker.log.close(status)


@functools.cache
def _object_store_bytes() -> float:
    """Size of this node's object store."""
    node_id = ray.get_runtime_context().get_node_id()
    return next(node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)["object_store_memory"]


def _forget() -> None:
    """Release the last engine's memory: its hooks and parameters refer to each other."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        # Pinned memory of snapshots: the next group's parts have other sizes. (torch before 2.13 may not have this
        # function.)
        getattr(torch.accelerator, "empty_host_cache", lambda: None)()
