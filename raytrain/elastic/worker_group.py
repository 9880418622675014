"""One worker group: the run's processes at work together, and how that ended.

The driver calls the workers' actors directly, to give orders and to get their status; Ray Train forms the group, see
`ray_train.py`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain.elastic.policy import FailureKind
from raytrain.elastic.train_run import TrainRun
from raytrain.elastic.training_worker import Assignment, WorkerExit
from raytrain.elastic.worker_errors import WorkerError, death_of
from raytrain.elastic.worker_processes import WorkerProcess
from raytrain.errors import FailureCode, first_line
from raytrain.training.driver_link import GroupStatus
from raytrain.training.job import Job
from raytrain.training.log_feed import LogLines
from raytrain.training.outcome import Outcome

# After the first worker has failed, the others notice it in their current or next collective.
LEAVE_TIMEOUT_S = 10.0
# The driver learns this much later of a process that died at the same time.
NEWS_S = 0.5
ANSWER_TIMEOUT_S = 30.0  # an actor whose process is up answers within this time
STATUS_TIMEOUT_S = 0.2


@dataclass(frozen=True)
class GroupFailure:
    """Why a group ended without a result."""

    kind: FailureKind
    """NO_START, CRASH, ERROR or HANG; the supervisor adds the kinds that depend on nodes."""
    code: FailureCode
    message: str
    tracebacks: Mapping[int, str] = field(default_factory=dict)
    """By rank, of the workers that raised an error of their own."""


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
        """Start the work; returns when each worker knows its part.

        Args:
            number: Larger than the number of any earlier group of the run.
            processes: In rank order.
            lost_nodes: Returns which of these nodes are gone; called when a worker does not answer.
        """
        self.number, self.processes, self.fencing_token = number, list(processes), job.fencing_token
        self._lost_nodes, self._train_run = lost_nodes, train_run
        self._exits: dict[int, WorkerExit] = {}
        self._deaths: dict[int, WorkerError] = {}
        self._hung: set[int] = set()
        self._failed_s: float | None = None
        self._hang = ""
        self._is_reported = False
        self._statuses: dict[int, GroupStatus] = {}
        self._asked: dict[Any, int] = {}
        self._seen: GroupStatus | None = None  # of rank 0, by `signs_of_life`
        self._lines: list[LogLines] = []
        self._last_line = 0  # number of the newest line that has arrived
        problem = self._assign(job)
        self._working = {process.wait_for_exit(number): rank for rank, process in enumerate(processes)}
        if problem is None:
            train_run.start_group(number, [process.actor for process in processes])
        else:
            self.abandon(f"the worker group was not formed: {problem}")

    def _assign(self, job: Job) -> str | None:
        """Tell each worker its part. Returns why this failed, or None; `wait` finds workers that are dead by now."""
        import ray

        try:
            asked_at_s = time.time()
            opened: Any = ray.get(self.processes[0].actor.open_store.remote(), timeout=ANSWER_TIMEOUT_S)
            address, its_time_s = opened
            clock_ahead_s = its_time_s - (asked_at_s + time.time()) / 2
            assigned = [
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
            ray.get(assigned, timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            return first_line(str(error.cause))
        except ray.exceptions.RayError as error:
            return death_of(error).message
        return None

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return len(self.processes)

    @property
    def nodes(self) -> list[str]:
        """Ids of the workers' nodes, in rank order."""
        return [process.node_id for process in self.processes]

    def wait(self, timeout_s: float) -> bool:
        """Wait for the group's end. Returns whether all of its workers have ended."""
        deadline_s = time.monotonic() + timeout_s
        while self._working:
            self._collect(max(0.0, deadline_s - time.monotonic()))
            if self._working and time.monotonic() >= deadline_s:
                return False
        return True

    def ask_to_leave(self) -> None:
        """Ask the workers to save at their next step, and end. They agree on the step, so asking one is enough."""
        self.processes[0].actor.leave.remote(self.number)

    def give_holders(self, names: Mapping[str, str]) -> None:
        """Tell the workers the names of the actors that keep snapshots, by node id."""
        for process in self.processes:
            process.actor.give_holders.remote(self.number, dict(names))

    def abandon(self, reason: str) -> None:
        """Keep workers that have not begun from beginning."""
        for rank in self._working.values():
            self.processes[rank].actor.abandon.remote(self.number, reason)

    @property
    def has_not_begun(self) -> bool:
        """Whether the group has ended before any of its workers had begun, and none of them is the cause."""
        left = self._exits.values()
        has_no_cause = all(e.error is not None and e.error.is_secondary and e.status.step is None for e in left)
        return has_no_cause and not (self._deaths or self._hang or self._hung)

    def tell_notice(self, deadlines_s: Mapping[str, float | None]) -> None:
        """Tell user code, by `ray.train.get_preemption_info`, that nodes are going away.

        `deadlines_s`: by node id, seconds since the epoch; infinite: unknown.
        """
        from ray.train import PreemptionInfo

        ranks = {node: [rank for rank, its in enumerate(self.nodes) if its == node] for node in deadlines_s}
        known_s = [at_s for node, at_s in deadlines_s.items() if ranks[node] and at_s is not None and at_s < math.inf]
        deadline_ms = int(min(known_s) * 1000) if known_s else None
        info = PreemptionInfo(deadline_ms, {node: its for node, its in ranks.items() if its})
        for process in self.processes:
            process.actor.mark_preempt.remote(info)

    def status(self) -> GroupStatus:
        """The group's progress, from the last answer of rank 0 and from the workers that have left."""
        self._ask([0])
        return self.known_status

    @property
    def known_status(self) -> GroupStatus:
        """Like `status`, from the answers that have arrived; `signs_of_life` also asks."""
        known = self._statuses.get(0, GroupStatus())
        left = [exit_.status for exit_ in self._exits.values() if exit_.status.step is not None]
        first = self._exits[0].status if 0 in self._exits and self._exits[0].status.step is not None else known
        newest = max([first, *left], key=lambda status: -1 if status.step is None else status.step)
        return replace(newest, saved_step=max(known.saved_step, first.saved_step))

    def signs_of_life(self) -> Any:
        """A value that changes when any worker makes progress; None before state and model are loaded.

        The others are asked only if rank 0 reports nothing new: it may be waiting for one of them.
        """
        self._ask([0])
        before, self._seen = self._seen, self._statuses.get(0)
        if self._seen == before:
            self._ask(range(1, self.world_size))
        if self._statuses.get(0, GroupStatus()).alive_at_s is None:
            return None
        return tuple(status.alive_at_s for _, status in sorted(self._statuses.items()))

    def take_lines(self) -> list[LogLines]:
        """New lines of the logs that have arrived, each once; also asks for the next. Returns at once."""
        self._ask([0], timeout_s=0.0)
        lines, self._lines = self._lines, []
        return lines

    def _ask(self, ranks: Iterable[int], timeout_s: float = STATUS_TIMEOUT_S) -> None:
        """Ask workers for their status, and take in the answers that have arrived. A worker with a pending question is
        not asked again."""
        import ray

        waiting = set(self._asked.values())
        for rank in ranks:
            if rank not in waiting and rank in self._working.values():
                self._asked[self.processes[rank].actor.status.remote(self._last_line if rank == 0 else 0)] = rank
        if not self._asked:
            return
        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=timeout_s)
        for reference in ready:
            rank = self._asked.pop(reference)
            with contextlib.suppress(ray.exceptions.RayError):  # it has died: `wait` finds out
                answer: Any = ray.get(reference)
                self._statuses[rank], lines = answer
                if lines:
                    self._lines += lines
                    self._last_line = lines[-1].number

    @property
    def outcome(self) -> Outcome | None:
        """Rank 0's outcome at the end; None: the group has failed."""
        return None if self.has_failed else self._exits[0].outcome

    @property
    def failure(self) -> GroupFailure:
        """Why there is no outcome: the cause, without the secondary errors of workers whose peer was gone."""
        if self._deaths:
            rank = min(self._deaths)
            death = self._deaths[rank]
            return GroupFailure(FailureKind.CRASH, death.code, f"worker {rank} died: {death.message}", self._tracebacks)
        if self._hang:
            return GroupFailure(FailureKind.HANG, FailureCode.HANG, self._hang, self._tracebacks)
        rank, cause = next(iter(self._causes.items()))
        return GroupFailure(FailureKind.ERROR, cause.code, f"worker {rank}: {cause.message}", self._tracebacks)

    @property
    def _tracebacks(self) -> dict[int, str]:
        own = {rank: error.traceback for rank, error in sorted(self._errors.items()) if not error.is_secondary}
        return {rank: text for rank, text in own.items() if text}

    @property
    def _errors(self) -> dict[int, WorkerError]:
        """Errors by rank, in the order in which they became known."""
        return {rank: left.error for rank, left in self._exits.items() if left.error is not None}

    @property
    def _causes(self) -> dict[int, WorkerError]:
        """Errors by rank without secondary ones; if all are secondary, that of the worker that failed first."""
        errors = self._errors
        causes = {rank: error for rank, error in sorted(errors.items()) if not error.is_secondary}
        return causes or dict(list(errors.items())[:1])

    @property
    def unfit(self) -> list[WorkerProcess]:
        """Processes that must not be reused: they are dead, or raised an exception of their own."""
        own = [rank for rank, error in self._errors.items() if not error.is_secondary]
        return [self.processes[rank] for rank in (*self._deaths, *self._hung, *own)]

    @property
    def has_failed(self) -> bool:
        """Whether one of its workers has died or raised; the others may still be there."""
        return bool(self._deaths or self._hang) or bool(self._errors)

    def end_hung(self, cause: str) -> None:
        """End all workers that are still at work: they wait for each other, or for something that does not happen."""
        for rank in self._working.values():
            self.processes[rank].kill()
            self._hung.add(rank)
        self._working.clear()
        self._hang = cause
        self._report_failure()

    def _collect(self, timeout_s: float) -> None:
        """Take in what has ended by now. Once one worker has failed, the others get a little time to notice it."""
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
        """Ray learns late that a node is gone: a worker on a node that accepts no connections is dead. A worker on
        another node that has not left in time hangs."""
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
        """Tell Ray Train which workers failed, and why."""
        if self._is_reported:
            return
        self._is_reported = True
        hung = dict.fromkeys(self._hung, self._hang or "it did not leave the group in time")
        deaths = {rank: f"worker {rank} died: {death.message}" for rank, death in self._deaths.items()}
        causes = {rank: error.message for rank, error in self._causes.items()}
        self._train_run.fail_group(self.number, deaths or (hung if self._hang else causes))
