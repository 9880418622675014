"""One worker group: the run's processes at work together, and how that ended.

Why not Ray Train's worker groups: each of theirs is new processes, which import for seconds; its resize tears them down
without telling them, so the steps since the last checkpoint are lost; and a group that dies while it starts can't be
replaced. A group here is asked to save and leave through the mailbox, and its processes go on in the next one.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.config import RunConfig
from raytrain.elastic.policy import FailureKind
from raytrain.elastic.pool import WorkerProcess
from raytrain.errors import first_line
from raytrain.training.entry import Ending, Place
from raytrain.training.job import Job

# After the first worker has failed, the others see it in their next collective, or in the one that they are in.
LEAVE_TIMEOUT_S = 10.0
# A process that died at the same time is heard of this much later.
NEWS_S = 0.5


@dataclass(frozen=True)
class GroupFailure:
    """Why a group ended without a result."""

    kind: FailureKind
    """NO_START, CRASH, ERROR or HANG; only the supervisor knows of nodes."""
    message: str


class WorkerGroup:
    """A group that is at work, or has ended."""

    def __init__(
        self,
        number: int,
        processes: Sequence[WorkerProcess],
        job: Job,
        mailbox: str,
        lost_nodes: Callable[[Iterable[str]], set[str]],
    ):
        """Starts the work; returns at once.

        Args:
            number: Its ordinal, unlike any other of the run.
            processes: In rank order.
            mailbox: Name of the actor; it knows that this group is the present one.
            lost_nodes: Which of these nodes are gone; asked when a worker does not answer.
        """
        self.processes = list(processes)
        self._lost_nodes = lost_nodes
        self._working = {
            process.work(Place(mailbox, number, rank, len(processes)), job): rank
            for rank, process in enumerate(processes)
        }
        self._endings: dict[int, Ending] = {}
        self._deaths: dict[int, str] = {}
        self._hung: set[int] = set()
        self._failed_s: float | None = None
        self._hang = ""

    @property
    def world_size(self) -> int:
        """Workers in it."""
        return len(self.processes)

    @property
    def nodes(self) -> list[str]:
        """Ids of their nodes, in rank order."""
        return [process.node_id for process in self.processes]

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end. Returns whether all of its workers have ended."""
        deadline_s = time.monotonic() + timeout_s
        while self._working:
            self._collect(max(0.0, deadline_s - time.monotonic()))
            if self._working and time.monotonic() >= deadline_s:
                return False
        return True

    @property
    def result(self) -> dict[str, Any] | None:
        """What rank 0 said at the end; None: the group has failed."""
        return None if self.has_failed else self._endings[0].result

    @property
    def failure(self) -> GroupFailure:
        """Why there is no result: the cause, without what the other workers said when their neighbour was gone."""
        if self._deaths:
            rank = min(self._deaths)
            return GroupFailure(FailureKind.CRASH, f"worker {rank} died: {self._deaths[rank]}")
        if self._hang:
            return GroupFailure(FailureKind.HANG, self._hang)
        errors = {rank: ending for rank, ending in self._endings.items() if ending.error is not None}
        causes = {rank: ending for rank, ending in errors.items() if not ending.is_echo}
        rank, ending = min((causes or errors).items())
        return GroupFailure(FailureKind.ERROR, f"worker {rank}: {ending.error}")

    @property
    def unfit(self) -> list[WorkerProcess]:
        """Processes that must not be used again: they are dead, or an exception of their own came up in them."""
        own = [rank for rank, ending in self._endings.items() if ending.error is not None and not ending.is_echo]
        return [self.processes[rank] for rank in (*self._deaths, *self._hung, *own)]

    @property
    def has_failed(self) -> bool:
        """Whether a worker of it has died or raised; the others may still be there."""
        return bool(self._deaths or self._hang) or any(ending.error is not None for ending in self._endings.values())

    def end_hung(self, cause: str) -> None:
        """End all that are still at work: they wait for each other, or for something that does not come."""
        for rank in self._working.values():
            self.processes[rank].kill()
            self._hung.add(rank)
        self._working.clear()
        self._hang = cause

    def _collect(self, timeout_s: float) -> None:
        """Take in what has ended by now. Once one worker has failed, the others get a little time to see it."""
        import ray

        if self._failed_s is not None:
            timeout_s = min(timeout_s, NEWS_S)
        ready, _ = ray.wait(list(self._working), num_returns=1, timeout=timeout_s)
        for reference in ready:
            rank = self._working.pop(reference)
            try:
                self._endings[rank] = ray.get(reference)
            except ray.exceptions.RayError as error:
                self._deaths[rank] = _cause_of_death(error)
        if self.has_failed and self._failed_s is None:
            self._failed_s = time.monotonic()
        if self._failed_s is not None and self._working and time.monotonic() - self._failed_s > NEWS_S:
            self._give_up_on_the_lost()

    def _give_up_on_the_lost(self) -> None:
        """Ray learns of a node's death late: who is on a node that takes no connections is dead. Who is elsewhere and
        has not left in time hangs."""
        has_hung = self._failed_s is not None and time.monotonic() - self._failed_s > LEAVE_TIMEOUT_S
        lost = self._lost_nodes({self.processes[rank].node_id for rank in self._working.values()})
        for reference, rank in list(self._working.items()):
            process = self.processes[rank]
            if process.node_id not in lost and not has_hung:
                continue
            process.kill()
            del self._working[reference]
            if process.node_id in lost:
                self._deaths[rank] = "its node is gone"
            else:
                self._hung.add(rank)


def _cause_of_death(error: Exception) -> str:
    """Ray's word for it, where it has one."""
    from ray.exceptions import ActorUnavailableError

    if isinstance(error, ActorUnavailableError):  # it says so in the words of its RPC library
        return "its process can't be reached any more"
    return first_line(str(error)) or type(error).__name__


def worker_resources(config: RunConfig, use_gpu: bool) -> dict[str, float]:
    """What each worker holds."""
    return {"CPU": float(config.workers.cpus), **({"GPU": 1.0} if use_gpu else {})}
