"""CONTROL: one worker group after the other, each of the size that there is room for, until the run is done.

room    wait until workers.min fit, and say what is missing meanwhile
pool    bring up processes where there are none yet
group   let them work; it goes on from the newest state
watch   more room? a node with notice? a stop? Then ask the group to save and leave at its next step; for more room only
        once the new processes are warm
next    it left: another group. It failed: charge the fault budget, wait a little, another group
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

from raytrain.checkpoint.snapshot import Holders, write_as_checkpoint
from raytrain.checkpoint.store import CheckpointStore
from raytrain.config import RunConfig
from raytrain.elastic.blame import samples_of, step_in_work
from raytrain.elastic.capacity import NodeView, look, own_node, seconds_left
from raytrain.elastic.group import NEWS_S, GroupFailure, WorkerGroup, worker_resources
from raytrain.elastic.growth import Growth
from raytrain.elastic.policy import Failure, FailureKind, FaultBudget
from raytrain.elastic.pool import WorkerPool
from raytrain.elastic.room import Room
from raytrain.elastic.share import Terms
from raytrain.elastic.watchdog import Watchdog
from raytrain.errors import first_line
from raytrain.monitoring.run_metrics import Crew
from raytrain.storage import Storage
from raytrain.training.job import Job, Transition
from raytrain.training.mailbox import GroupStatus, Mailbox
from raytrain.training.metrics import METRICS
from raytrain.training.records import last_row

logger = logging.getLogger(__name__)

POLL_S = 0.25  # seconds between two looks at the group's end and at the run's files
LOOK_S = 1.0  # seconds between two looks at the cluster
LEAVE_MARGIN_S = 3.0  # before a node's deadline, in which what is left of a group is ended
LEAST_NOTICE_S = 5.0  # a group gets so long to leave in any case
UNWANTED_LEAVE_S = 8.0  # a trial that was stopped has so long to end its group, before its processes are taken
NO_START = "the nodes that had room do not start workers' processes"


class Supervisor:
    """The driver's side of a run's training."""

    def __init__(
        self,
        config: RunConfig,
        run: Storage,
        prepared_root: str,
        *,
        use_gpu: bool,
        total_steps: int,
        terms: Terms,
        is_stop_asked: Callable[[], bool],
        on_poll: Callable[[], None],
        say: Callable[[str], None],
        began_at_s: float,
    ):
        """Args:
        total_steps: Of the run.
        terms: How many workers it may have, and up to which step.
        is_stop_asked: Whether the user wants the run to save and end.
        on_poll: Called a few times a second.
        say: Shows the user what is going on.
        began_at_s: When the command was given, seconds since the epoch.
        """
        self._config, self._run, self._prepared_root = config, run, prepared_root
        self._until_step, self._share = terms.until_step, terms.share
        self._use_gpu, self._total_steps = use_gpu, total_steps
        self._is_stop_asked, self._on_poll, self._say = is_stop_asked, on_poll, say
        self._worker = worker_resources(config, use_gpu)
        self._budget = FaultBudget(config.workers.max_failures)
        self._pool = WorkerPool(self._worker, config, terms.share)
        self._growth = Growth(config, self._pool, say)
        self._room = Room(config, self._worker, say, on_poll, is_stop_asked, self._pool, terms.share)
        self._watchdog = Watchdog(config.workers.stall_timeout_s, say)
        self._resize_cost_s = 0.0
        self._mailbox = Mailbox()
        self._leave_by_s = math.inf
        self._num_groups = self._num_at_work = 0
        self._group: WorkerGroup | None = None
        self._holders = Holders(self._mailbox.name)
        self._saved_step = 0
        self._nodes: list[NodeView] = []
        self._began_at_s = began_at_s
        self._own_node = own_node()

    @property
    def crew(self) -> Crew:
        """How many workers train now, and how many might."""
        return Crew(self._num_at_work, self._room.wanted, self._room.waiting_s)

    def train(self) -> dict[str, Any]:
        """Train to the end. Returns the result of the last group: its status, and a message when it failed."""
        now_s = time.time()
        transition = Transition("begin", "the command was given", 0, self._began_at_s, None, now_s, now_s)
        try:
            while True:
                places = self._room.wait_for(transition.world_size_before)
                if not places:
                    return self._stopped()
                outcome = self._run_group(places, replace(transition, started_at_s=time.time()))
                if isinstance(outcome, dict):
                    return outcome
                transition = outcome
        finally:
            self._close()

    def evaluate(self, split: str) -> dict[str, Any]:
        """Evaluate the run's best model on a split with one group; a failure of it is the result."""
        try:
            places = self._room.wait_for(0)
            if not self._pool.bring_up(places, _lost_nodes, self._on_poll):
                return _failed(NO_START)
            group = self._new_group(self._job(None, split))
            while not group.wait(POLL_S):
                self._on_poll()
                self._end_if_hung(group, self._mailbox.status())
            return group.result or _failed(group.failure.message)
        finally:
            self._close()

    def _close(self) -> None:
        """End everything that is this run's, whatever has happened; first bring what only memory holds to storage."""
        is_unwanted = isinstance(sys.exc_info()[1], SystemExit)  # a trial that the scheduler has stopped
        parts: tuple[Callable[[], None], ...] = (
            *((self._let_leave,) if is_unwanted else ()),
            self._pool.close,
            self._room.close,
            *(() if is_unwanted else (self._keep_snapshot,)),
            self._holders.close,
            self._mailbox.close,
            self._share.close,
        )
        for part in parts:
            try:
                part()
            except Exception:
                logger.exception("while ending the run")

    def _let_leave(self) -> None:
        """A process that has left its group is of use to the next trial; one that has not would be killed."""
        if self._group is not None:
            self._mailbox.ask_to_leave()
            self._group.wait(UNWANTED_LEAVE_S)
            self._pool.end(self._group.unfit)

    def _keep_snapshot(self) -> None:
        """When no worker is left to save, the newest snapshot becomes a checkpoint."""
        with contextlib.suppress(Exception):  # a mailbox that is gone
            self._saved_step = max(self._saved_step, self._mailbox.status().saved_step)
        snapshot = self._holders.newest(self._saved_step)
        if snapshot is None:
            return
        keep_last = self._config.checkpoint.keep_last
        write_as_checkpoint(snapshot, CheckpointStore(self._run.at("checkpoints"), keep_last))
        self._say(f"the snapshot of step {snapshot.step} has become a checkpoint")

    def _new_group(self, job: Job) -> WorkerGroup:
        """All processes of the pool, at work on this."""
        self._num_groups += 1
        self._mailbox.begin(self._num_groups)
        self._group = WorkerGroup(self._num_groups, self._pool.processes, job, self._mailbox.name, _lost_nodes)
        return self._group

    def _run_group(self, places: list[str], transition: Transition) -> dict[str, Any] | Transition:
        """Run one group to its end: the run's result, or what leads to the next group."""
        self._growth.begin(len(places), is_planned=transition.kind == "resize")
        if self._pool.bring_up(places, _lost_nodes, self._on_poll) < self._config.workers.min:
            return self._after_failure(GroupFailure(FailureKind.NO_START, NO_START), GroupStatus(), places)
        group = self._new_group(self._job(transition, None))
        self._num_at_work = group.world_size
        leaving = self._watch(group, transition)
        self._num_at_work = 0
        self._on_poll()
        status = self._mailbox.status()
        self._saved_step = max(self._saved_step, status.saved_step)
        self._pool.end(group.unfit)
        if group.result is None:
            return self._after_failure(group.failure, status, group.nodes)
        if leaving is None or group.result["status"] != "stopped" or self._is_stop_asked():
            return group.result
        if leaving.kind == "driver":
            return {**group.result, "message": leaving.cause}
        # All is in storage: what holders have is needed no longer, and they may not hold a node that is to go.
        staying = {node.node_id for node in self._nodes if not node.is_draining}
        self._holders.keep_only(staying.intersection(self._pool.nodes))
        return replace(leaving, left_at_s=time.time())

    def _watch(self, group: WorkerGroup, transition: Transition) -> Transition | None:
        """Wait for the group's end. Returns why it was asked to leave, if it was."""
        leaving: Transition | None = None
        next_look_s = 0.0
        has_holders = has_begun = has_own_snapshots = False
        self._watchdog.begin()
        self._leave_by_s = math.inf
        while not group.wait(POLL_S):
            self._on_poll()
            if time.monotonic() < next_look_s:
                continue
            next_look_s = time.monotonic() + LOOK_S
            self._room.ask_for_nodes(group.world_size)
            status = self._mailbox.status()
            if not has_holders and status.first_step is not None:
                has_holders = True
                self._mailbox.give_holders(self._holders.place(group.nodes))
            if not has_own_snapshots and self._has_own_snapshot(status):
                has_own_snapshots = True
                self._holders.keep_only(group.nodes)
            if not has_begun and status.first_step_at_s is not None:
                has_begun = True
                self._resize_cost_s = max(1.0, status.first_step_at_s - transition.started_at_s)
            self._end_if_hung(group, status)
            if time.time() > self._leave_by_s:  # what has not left by now would be killed in the middle of a save
                self._pool.end_on(node.node_id for node in self._nodes if node.is_draining)
            if leaving is None and (leaving := self._reason_to_leave(group, status)) is not None:
                if leaving.cause:
                    self._say(leaving.cause)
                self._mailbox.ask_to_leave()
        return leaving

    def _end_if_hung(self, group: WorkerGroup, status: GroupStatus) -> None:
        if self._watchdog.finds_hung(status.alive_at_s):
            patience_s = self._watchdog.patience_s(status.alive_at_s)
            if status.alive_at_s is None:
                group.end_hung(f"nothing came of their start for {patience_s:g} s (workers.stall_timeout_s, or more)")
            else:
                group.end_hung(f"no step, evaluated batch or save for workers.stall_timeout_s {patience_s:g} s")

    def _reason_to_leave(self, group: WorkerGroup, status: GroupStatus) -> Transition | None:
        """Why the group should save and leave now."""
        now_s, world_size = time.time(), group.world_size
        if self._is_stop_asked():
            return Transition("stop", "", world_size, now_s, now_s, now_s, now_s)
        self._nodes = look()
        if seconds_left(self._nodes, [self._own_node]) is not None:
            cause = "the node of this command is being reclaimed"
            return Transition("driver", cause, world_size, now_s, now_s, now_s, now_s)
        most = self._room.most_workers()
        places = self._room.places(self._nodes, world_size, most)
        left_s = seconds_left(self._nodes, group.nodes)
        if left_s is not None:
            names = sorted({node.name for node in self._nodes if node.is_draining and node.node_id in group.nodes})
            due = "" if math.isinf(left_s) else f", which goes in {max(0.0, left_s):.0f} s"
            self._room.expect(len(places))
            self._leave_by_s = now_s + max(LEAST_NOTICE_S, left_s - LEAVE_MARGIN_S)
            cause = f"notice to reclaim {', '.join(names)}{due}"
            return Transition("reclaim", cause, world_size, now_s, now_s, now_s, now_s)
        if most < world_size:
            self._room.expect(most)
            cause = f"{world_size - most} of {world_size} workers are wanted by the sweep's other trials"
            return Transition("resize", cause, world_size, now_s, now_s, now_s, now_s)
        if status.first_step_at_s is None:  # nothing to compare a resize's cost with
            return None
        if self._growth.advance(group, places, self._remaining_s(status), self._resize_cost_s):
            self._room.expect(len(self._pool.nodes))
            cause = f"room for {len(self._pool.nodes)} workers instead of {world_size}"
            return Transition("resize", cause, world_size, self._growth.seen_at_s, now_s, now_s, now_s)
        return None

    def _has_own_snapshot(self, status: GroupStatus) -> bool:
        """Whether there is a complete snapshot of this group, so that older ones are not needed."""
        every = self._config.checkpoint.snapshot_every_steps
        if every is None or status.step is None or status.first_step is None or status.step < status.first_step + every:
            return False
        return self._holders.newest(max(status.first_step, self._saved_step)) is not None

    def _remaining_s(self, status: GroupStatus) -> float:
        """Training time that is left at the group's speed."""
        assert status.first_step is not None and status.first_step_at_s is not None
        assert status.step is not None and status.step_at_s is not None
        steps = status.step - status.first_step - 1
        if steps < 1:
            return 0.0
        end = min(self._total_steps, self._until_step or self._total_steps)
        return (end - status.step) * (status.step_at_s - status.first_step_at_s) / steps

    def _after_failure(
        self, failure: GroupFailure, status: GroupStatus, nodes: list[str]
    ) -> dict[str, Any] | Transition:
        """Charge a failure: the run's end, or what leads to the next group. `nodes`: of the workers that it had."""
        now_s = time.time()
        kind, message = self._kind_of(failure, nodes), failure.message
        verdict = self._budget.charge(Failure(kind, step_in_work(self._run, status), message))
        if verdict is not None:
            bad_step = self._budget.bad_step
            if bad_step is None or bad_step > self._total_steps or kind is FailureKind.HANG:  # it was in no step
                return _failed(verdict)
            return _failed(verdict + samples_of(bad_step, self._config, self._prepared_root))
        cause = f"{_WORDS[kind]}: {first_line(message)}"
        self._say(cause)
        self._room.expect(len(self._room.places(self._nodes, len(nodes), self._room.most_workers())))
        self._pause(self._budget.wait_s)
        reported_at_s = status.step_at_s or now_s
        name = "reclaim" if kind is FailureKind.RECLAIM else "failure"
        return Transition(name, cause, len(nodes), reported_at_s, None, now_s, now_s)

    def _kind_of(self, failure: GroupFailure, nodes: list[str]) -> FailureKind:
        """With what is known of the nodes, which are looked at anew: one that had notice, or one that is gone."""
        if failure.kind is FailureKind.CRASH:
            time.sleep(NEWS_S)  # a node that goes takes its raylet along a moment later
        ours = set(nodes)
        before, self._nodes = self._nodes, look(probe=True)
        if any(node.is_draining and node.node_id in ours for node in (*before, *self._nodes)):
            return FailureKind.RECLAIM
        if ours - {node.node_id for node in self._nodes}:
            return FailureKind.NODE_LOST
        return failure.kind

    def _pause(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and not self._is_stop_asked():
            time.sleep(POLL_S)
            self._on_poll()

    def _stopped(self) -> dict[str, Any]:
        row = last_row(self._run, METRICS)
        return {"status": "stopped", "step": int(row["step"]) if row else 0}

    def _job(self, transition: Transition | None, evaluate_split: str | None) -> Job:
        snapshot = self._holders.newest(self._saved_step)
        return Job(
            config=self._config.model_dump(mode="json", exclude_unset=True),
            run_root=self._run.path_of(),
            prepared_root=self._prepared_root,
            use_gpu=self._use_gpu,
            transition=asdict(transition) if transition else None,
            snapshot=asdict(snapshot) if snapshot else None,
            evaluate_split=evaluate_split,
            until_step=self._until_step,
        )


def _lost_nodes(node_ids: Iterable[str]) -> set[str]:
    """Those of these nodes that are gone."""
    return set(node_ids) - {node.node_id for node in look(probe=True)}


_WORDS = {
    FailureKind.RECLAIM: "a node was reclaimed",
    FailureKind.NODE_LOST: "a node was lost",
    FailureKind.CRASH: "a worker's process died",
    FailureKind.ERROR: "a worker failed",
    FailureKind.HANG: "the workers hang",
    FailureKind.NO_START: "the workers did not start",
}


def _failed(message: str) -> dict[str, Any]:
    return {"status": "failed", "message": message, "exit_code": 1}
