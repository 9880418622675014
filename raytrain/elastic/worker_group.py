"""One worker group: the run's processes at work together, and how that ended.

The driver calls the workers' actors directly, for orders and for news; that they form a group is Ray Train's work, see
`ray_train.py`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytrain.elastic.policy import FailureKind
from raytrain.elastic.train_run import TrainRun
from raytrain.elastic.training_worker import Assignment, WorkerExit
from raytrain.elastic.worker_errors import WorkerError, death_of
from raytrain.elastic.worker_processes import WorkerProcess
from raytrain.errors import FailureCode, first_line
from raytrain.training.driver_link import GroupStatus
from raytrain.training.job import Job
from raytrain.training.outcome import Outcome

# After the first worker has failed, the others see it in their next collective, or in the one that they are in.
LEAVE_TIMEOUT_S = 10.0
# A process that died at the same time is heard of this much later.
NEWS_S = 0.5
ANSWER_TIMEOUT_S = 30.0  # an actor whose process is up answers
STATUS_TIMEOUT_S = 0.2


@dataclass(frozen=True)
class GroupFailure:
    """Why a group ended without a result."""

    kind: FailureKind
    """NO_START, CRASH, ERROR or HANG; only the supervisor knows of nodes."""
    code: FailureCode
    message: str


class WorkerGroup:
    """A group that is at work, or has ended."""

    def __init__(
        self,
        number: int,
        processes: Sequence[WorkerProcess],
        job: Job,
        train_run: TrainRun,
        lost_nodes: Callable[[Iterable[str]], set[str]],
    ):
        """Starts the work; returns when each worker knows its part.

        Args:
            number: Its ordinal, larger than that of any other of the run before it.
            processes: In rank order.
            lost_nodes: Which of these nodes are gone; asked when a worker does not answer.
        """
        self.number, self.processes = number, list(processes)
        self._lost_nodes, self._train_run = lost_nodes, train_run
        self._exits: dict[int, WorkerExit] = {}
        self._deaths: dict[int, WorkerError] = {}
        self._hung: set[int] = set()
        self._failed_s: float | None = None
        self._hang = ""
        self._is_reported = False
        self._statuses: dict[int, GroupStatus] = {}
        self._asked: dict[Any, int] = {}
        problem = self._assign(job)
        self._working = {process.wait_for_exit(number): rank for rank, process in enumerate(processes)}
        if problem is None:
            train_run.start_group(number, [process.actor for process in processes])
        else:
            self.abandon(f"the worker group was not formed: {problem}")

    def _assign(self, job: Job) -> str | None:
        """Tell each worker its part. Returns why not all could be told; one that is dead by now is found by `wait`."""
        import ray

        try:
            asked_at_s = time.time()
            opened: Any = ray.get(self.processes[0].actor.open_store.remote(), timeout=ANSWER_TIMEOUT_S)
            address, its_time_s = opened
            clock_ahead_s = its_time_s - (asked_at_s + time.time()) / 2
            told = [
                process.actor.assign.remote(
                    Assignment(
                        self.number,
                        rank,
                        self.world_size,
                        address,
                        clock_ahead_s,
                        self._train_run.variables,
                        [self._train_run.done],
                    ),
                    job,
                )
                for rank, process in enumerate(self.processes)
            ]
            ray.get(told, timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            return first_line(str(error.cause))
        except ray.exceptions.RayError as error:
            return death_of(error).message
        return None

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

    def ask_to_leave(self) -> None:
        """The workers shall save at their next step, and end. They agree on the step, so that one is enough to ask."""
        self.processes[0].actor.leave.remote(self.number)

    def give_holders(self, names: Mapping[str, str]) -> None:
        """Tell the workers the names of the actors that keep snapshots, by node id."""
        for process in self.processes:
            process.actor.give_holders.remote(self.number, dict(names))

    def abandon(self, reason: str) -> None:
        """Whoever has not begun does not begin any more."""
        for rank in self._working.values():
            self.processes[rank].actor.abandon.remote(self.number, reason)

    @property
    def has_not_begun(self) -> bool:
        """Whether it has ended before any of its workers had begun, and none of them is the cause."""
        left = self._exits.values()
        is_nobodys = all(e.error is not None and e.error.is_secondary and e.status.step is None for e in left)
        return is_nobodys and not (self._deaths or self._hang or self._hung)

    def tell_notice(self, deadlines_s: Mapping[str, float | None]) -> None:
        """Tell user code, by `ray.train.get_preemption_info`, that nodes are going away.

        `deadlines_s`: by node id, seconds since the epoch; infinite: nobody knows.
        """
        from ray.train import PreemptionInfo

        ranks = {node: [rank for rank, its in enumerate(self.nodes) if its == node] for node in deadlines_s}
        known_s = [at_s for node, at_s in deadlines_s.items() if ranks[node] and at_s is not None and at_s < math.inf]
        deadline_ms = int(min(known_s) * 1000) if known_s else None
        info = PreemptionInfo(deadline_ms, {node: its for node, its in ranks.items() if its})
        for process in self.processes:
            process.actor.mark_preempt.remote(info)

    def status(self) -> GroupStatus:
        """How far it has come, by what rank 0 has said last, and what those have said that have left."""
        self._ask([0])
        return self.known_status

    @property
    def known_status(self) -> GroupStatus:
        """As `status`, by what has been answered already; `signs_of_life` asks as well."""
        known = self._statuses.get(0, GroupStatus())
        left = [exit_.status for exit_ in self._exits.values() if exit_.status.step is not None]
        first = self._exits[0].status if 0 in self._exits and self._exits[0].status.step is not None else known
        newest = max([first, *left], key=lambda status: -1 if status.step is None else status.step)
        return replace(newest, saved_step=max(known.saved_step, first.saved_step))

    def signs_of_life(self) -> Any:
        """Something that changes when any worker gets anything done; None before state and model are loaded.

        The others are asked only when rank 0 has nothing new to say: it may be waiting for one of them.
        """
        before = self._statuses.get(0)
        self._ask([0])
        if self._statuses.get(0) == before:
            self._ask(range(1, self.world_size))
        if self._statuses.get(0, GroupStatus()).alive_at_s is None:
            return None
        return tuple(status.alive_at_s for _, status in sorted(self._statuses.items()))

    def _ask(self, ranks: Iterable[int]) -> None:
        """Ask workers how far they are, and take in what has been answered; one that does not answer is not asked
        again."""
        import ray

        waiting = set(self._asked.values())
        for rank in ranks:
            if rank not in waiting and rank in self._working.values():
                self._asked[self.processes[rank].actor.status.remote()] = rank
        if not self._asked:
            return
        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=STATUS_TIMEOUT_S)
        for reference in ready:
            rank = self._asked.pop(reference)
            with contextlib.suppress(ray.exceptions.RayError):  # it has died: `wait` finds out
                answer: Any = ray.get(reference)
                self._statuses[rank] = answer

    @property
    def outcome(self) -> Outcome | None:
        """What rank 0 said at the end; None: the group has failed."""
        return None if self.has_failed else self._exits[0].outcome

    @property
    def failure(self) -> GroupFailure:
        """Why there is no outcome: the cause, without the secondary failures of workers whose peer was gone."""
        if self._deaths:
            rank = min(self._deaths)
            death = self._deaths[rank]
            return GroupFailure(FailureKind.CRASH, death.code, f"worker {rank} died: {death.message}")
        if self._hang:
            return GroupFailure(FailureKind.HANG, FailureCode.HANG, self._hang)
        rank, cause = next(iter(self._causes.items()))
        return GroupFailure(FailureKind.ERROR, cause.code, f"worker {rank}: {cause.message}")

    @property
    def _errors(self) -> dict[int, WorkerError]:
        """By rank, the first that was heard of first."""
        return {rank: left.error for rank, left in self._exits.items() if left.error is not None}

    @property
    def _causes(self) -> dict[int, WorkerError]:
        """Errors by rank; where all are secondary, that of the worker that failed first."""
        errors = self._errors
        causes = {rank: error for rank, error in sorted(errors.items()) if not error.is_secondary}
        return causes or dict(list(errors.items())[:1])

    @property
    def unfit(self) -> list[WorkerProcess]:
        """Processes that must not be used again: they are dead, or an exception of their own came up in them."""
        own = [rank for rank, error in self._errors.items() if not error.is_secondary]
        return [self.processes[rank] for rank in (*self._deaths, *self._hung, *own)]

    @property
    def has_failed(self) -> bool:
        """Whether a worker of it has died or raised; the others may still be there."""
        return bool(self._deaths or self._hang) or bool(self._errors)

    def end_hung(self, cause: str) -> None:
        """End all that are still at work: they wait for each other, or for something that does not come."""
        for rank in self._working.values():
            self.processes[rank].kill()
            self._hung.add(rank)
        self._working.clear()
        self._hang = cause
        self._report_failure()

    def _collect(self, timeout_s: float) -> None:
        """Take in what has ended by now. Once one worker has failed, the others get a little time to see it."""
        import ray

        if self._failed_s is not None:
            timeout_s = min(timeout_s, NEWS_S)
        ready, _ = ray.wait(list(self._working), num_returns=1, timeout=timeout_s)
        for reference in ready:
            rank = self._working.pop(reference)
            try:
                answer: Any = ray.get(reference)
                self._exits[rank] = answer
            except ray.exceptions.RayError as error:
                self._deaths[rank] = death_of(error)
        if self.has_failed and self._failed_s is None:
            self._failed_s = time.monotonic()
            self.abandon("another worker of the group is gone")
            self._train_run.release(self.number)
        if self._failed_s is not None and self._working:
            self._give_up_on_the_lost()
        if not self._working and self.has_failed:
            self._report_failure()

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
                self._deaths[rank] = WorkerError(FailureCode.NODE_LOST, "its node is gone")
            else:
                self._hung.add(rank)

    @property
    def nodes_of_dead(self) -> list[str]:
        """Ids of the nodes of the workers whose processes have died."""
        return [self.processes[rank].node_id for rank in self._deaths]

    def _report_failure(self) -> None:
        """Tell Ray Train who failed, and of what."""
        if self._is_reported:
            return
        self._is_reported = True
        hung = dict.fromkeys(self._hung, self._hang or "it did not leave the group in time")
        deaths = {rank: f"worker {rank} died: {death.message}" for rank, death in self._deaths.items()}
        causes = {rank: error.message for rank, error in self._causes.items()}
        self._train_run.fail_group(self.number, deaths or (hung if self._hang else causes))
