"""CONTROL: one worker group after the other, each of the size that there is room for, until the run is done.

room    wait until workers.min fit, and say what is missing meanwhile
pool    bring up processes where there are none yet
group   have Ray Train form a worker group of them; it continues from the newest state
watch   more room? a node with notice? a stop? Then ask the group to save and leave at its next step; for more room only
        once the new processes are warm
next    it left: another group. It failed: charge the fault budget, then a group of the survivors at once, which the
        replacements join when they are warm; without enough of them, wait for room
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

from raytrain.config import RunConfig
from raytrain.elastic.admission import Admission
from raytrain.elastic.allocation import Terms
from raytrain.elastic.failures import WORDS, Failures
from raytrain.elastic.policy import FailureKind
from raytrain.elastic.scale_up import ScaleUp
from raytrain.elastic.snapshots import Snapshots
from raytrain.elastic.train_run import TrainRun
from raytrain.elastic.watchdog import Watchdog
from raytrain.elastic.worker_group import GroupFailure, WorkerGroup
from raytrain.elastic.worker_processes import WorkerPool, WorkerProcess
from raytrain.errors import first_line
from raytrain.monitoring.run_metrics import WorkerCounts
from raytrain.ray_core.nodes import ClusterView, look, own_node, seconds_left, worker_resources
from raytrain.storage import Storage
from raytrain.training.driver_link import GroupStatus
from raytrain.training.job import Job, Transition
from raytrain.training.records import last_row
from raytrain.training.run_log import METRICS

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
        train_run: TrainRun,
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
        train_run: Of Ray Train; its controller may be coming up still.
        total_steps: Of the run.
        terms: How many workers it may have, and up to which step.
        is_stop_asked: Whether the user wants the run to save and end.
        on_poll: Called a few times a second.
        say: Shows the user what is going on.
        began_at_s: When the command was given, seconds since the epoch.
        """
        self._config, self._run, self._prepared_root = config, run, prepared_root
        self._until_step, self._allocation = terms.until_step, terms.allocation
        self._use_gpu, self._total_steps = use_gpu, total_steps
        self._is_stop_asked, self._on_poll, self._say = is_stop_asked, on_poll, say
        self._train_run, self._worker = train_run, worker_resources(config, use_gpu)
        self._failures = Failures(config, run, prepared_root, total_steps)
        self._pool = WorkerPool(self._worker, config, terms.allocation)
        self._scale_up = ScaleUp(config, self._pool, say)
        self._admission = Admission(config, self._worker, say, on_poll, is_stop_asked, self._pool, terms.allocation)
        self._watchdog = Watchdog(config.workers.stall_timeout_s, say)
        self._resize_cost_s = 0.0
        self._leave_by_s = math.inf
        self._num_groups = self._num_at_work = 0
        self._group: WorkerGroup | None = None
        self._snapshots = Snapshots(config, run)
        self._cluster = ClusterView()
        self._began_at_s = began_at_s
        self._own_node = own_node()

    @property
    def worker_counts(self) -> WorkerCounts:
        """How many workers train now, and how many might."""
        return WorkerCounts(self._num_at_work, self._admission.wanted, self._admission.waiting_s)

    def train(self) -> dict[str, Any]:
        """Train to the end. Returns the result of the last group: its status, and a message when it failed."""
        now_s, why = time.time(), "the command was given"
        try:
            return self._conclude(self._train(Transition("begin", why, 0, self._began_at_s, None, now_s, now_s)))
        finally:
            self._close()

    def _train(self, transition: Transition) -> dict[str, Any]:
        survivors: list[WorkerProcess] = []
        while True:
            places = [process.node_id for process in survivors] or self._admission.wait_for(
                transition.world_size_before
            )
            if not places or self._is_stop_asked():
                return self._stopped()
            outcome = self._run_group(places, survivors, replace(transition, started_at_s=time.time()))
            if isinstance(outcome, dict):
                return outcome
            transition, survivors = outcome
            if transition.left_by_failure:
                self._pause(self._failures.wait_s)

    def evaluate(self, split: str) -> dict[str, Any]:
        """Evaluate the run's best model on a split with one group; a failure of it is the result."""
        try:
            places = self._admission.wait_for(0)
            if not self._pool.bring_up(places, _lost_nodes, self._on_poll):
                return self._conclude(_failed(NO_START))
            group = self._new_group(self._job(None, split), self._pool.processes)
            while not group.wait(POLL_S):
                self._on_poll()
                self._end_if_hung(group)
                if problem := self._train_run.problem():
                    group.abandon(problem[1])
            return self._conclude(group.result or _failed(group.failure.message))
        finally:
            self._close()

    def _conclude(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """End the Ray Train run while the workers, whose last reports it takes in, are still there."""
        is_pause = outcome["status"] == "stopped" and outcome.get("step") == self._until_step
        self._train_run.conclude({**outcome, "is_pause": is_pause})
        return outcome

    def _close(self) -> None:
        """End everything that is this run's, whatever has happened; first bring what only memory holds to storage."""
        is_unwanted = isinstance(sys.exc_info()[1], SystemExit)  # a trial that the scheduler has stopped
        parts: tuple[Callable[[], None], ...] = (
            *((self._train_run.abort, self._let_leave) if is_unwanted else ()),  # this process may not live long
            self._pool.close,
            self._admission.close,
            *(() if is_unwanted else (self._keep_snapshot,)),
            self._snapshots.close,
            self._allocation.close,
        )
        for part in parts:
            try:
                part()
            except Exception:
                logger.exception("while ending the run")

    def _let_leave(self) -> None:
        """A process that has left its group is of use to the next trial; one that has not would be killed."""
        if self._group is not None:
            self._group.ask_to_leave()
            self._group.wait(UNWANTED_LEAVE_S)
            self._pool.end(self._group.unfit)

    def _keep_snapshot(self) -> None:
        """When no worker is left to save, the newest snapshot becomes a checkpoint."""
        if self._group is not None:
            with contextlib.suppress(Exception):  # Ray may be gone
                self._snapshots.saved(self._group.status().saved_step)
        if (step := self._snapshots.write_newest()) is not None:
            self._say(f"the snapshot of step {step} has become a checkpoint")

    def _new_group(self, job: Job, processes: list[WorkerProcess]) -> WorkerGroup:
        self._num_groups += 1
        self._group = WorkerGroup(self._num_groups, processes, job, self._train_run, _lost_nodes)
        return self._group

    def _run_group(
        self, places: list[str], survivors: list[WorkerProcess], transition: Transition
    ) -> dict[str, Any] | tuple[Transition, list[WorkerProcess]]:
        """Run one group to its end: the run's result, or what leads to the next group, and the processes that can form
        it at once; none: there has to be room first.

        `survivors`: form the group of these; none: of processes at these places.
        """
        self._scale_up.begin(len(places), is_planned=transition.kind == "resize")
        if not survivors and self._pool.bring_up(places, _lost_nodes, self._on_poll) < self._config.workers.min:
            return self._after_failure(GroupFailure(FailureKind.NO_START, NO_START), None)
        group = self._new_group(self._job(transition, None), survivors or self._pool.processes)
        self._num_at_work = group.world_size
        leaving = self._watch(group, transition)
        self._num_at_work = 0
        self._on_poll()
        self._snapshots.saved(group.status().saved_step)
        self._pool.end(group.unfit)
        if leaving is not None and leaving.kind == "controller":
            return {**(group.result or {}), **_failed(leaving.cause)}
        if leaving is not None and group.has_not_begun:  # for want of a controller
            return replace(leaving, left_at_s=time.time()), []
        if group.result is None:
            return self._after_failure(group.failure, group)
        self._train_run.end_group(group.number)
        if leaving is None or group.result["status"] != "stopped" or self._is_stop_asked():
            return group.result
        if leaving.kind == "driver":
            return {**group.result, "message": leaving.cause}
        self._snapshots.keep_only(self._cluster.staying.intersection(self._pool.nodes))
        return replace(leaving, left_at_s=time.time()), []

    def _watch(self, group: WorkerGroup, transition: Transition) -> Transition | None:
        """Wait for the group's end. Returns why it was asked to leave, if it was."""
        leaving: Transition | None = None
        next_look_s = 0.0
        has_begun = False
        self._watchdog.begin()
        self._snapshots.begin()
        self._leave_by_s = math.inf
        while not group.wait(POLL_S):
            self._on_poll()
            if time.monotonic() < next_look_s:
                continue
            next_look_s = time.monotonic() + LOOK_S
            self._admission.ask_for_nodes(group.world_size)
            self._end_if_hung(group)  # asks how far it is
            status = group.known_status
            self._snapshots.advance(group, status)
            if not has_begun and status.first_step_at_s is not None:
                has_begun = True
                self._resize_cost_s = max(1.0, status.first_step_at_s - transition.started_at_s)
            if time.time() > self._leave_by_s:  # what has not left by now would be killed in the middle of a save
                self._pool.end_on(node.node_id for node in self._cluster.nodes if node.is_draining)
            if leaving is None and (leaving := self._reason_to_leave(group, status)):
                if leaving.cause:
                    self._say(leaving.cause)
                group.ask_to_leave()
        return leaving

    def _end_if_hung(self, group: WorkerGroup) -> None:
        if (cause := self._watchdog.finds_hung(group.signs_of_life())) is not None:
            group.end_hung(cause)

    def _controllers_end(self, group: WorkerGroup) -> Transition | None:
        """Why the group should leave when Ray Train's controller has ended, though nobody told it to."""
        problem = self._train_run.problem()
        if problem is None:
            return None
        can_restart, cause = problem
        group.abandon(cause)
        self._admission.expect(group.world_size)
        if can_restart:
            self._train_run.restart()
        return Transition.asked("resize" if can_restart else "controller", cause, group.world_size)

    def _reason_to_leave(self, group: WorkerGroup, status: GroupStatus) -> Transition | None:
        """Why the group should save and leave now."""
        now_s, world_size = time.time(), group.world_size
        if self._is_stop_asked():
            return Transition.asked("stop", "", world_size)
        if ended := self._controllers_end(group):
            return ended
        nodes = self._cluster.look()
        self._failures.reconsider()
        if seconds_left(nodes, [self._own_node]) is not None:
            return Transition.asked("driver", "the node of this command is being reclaimed", world_size)
        most = self._admission.most_workers()
        places = self._admission.places(nodes, world_size, most)
        left_s = seconds_left(nodes, group.nodes)
        if left_s is not None:
            names = sorted({node.name for node in nodes if node.is_draining and node.node_id in group.nodes})
            due = "" if math.isinf(left_s) else f", which goes in {max(0.0, left_s):.0f} s"
            self._admission.expect(len(places))
            self._leave_by_s = now_s + max(LEAST_NOTICE_S, left_s - LEAVE_MARGIN_S)
            group.tell_notice({node.node_id: node.drain_deadline_s for node in nodes if node.is_draining})
            return Transition.asked("reclaim", f"notice to reclaim {', '.join(names)}{due}", world_size)
        if most < world_size:
            self._admission.expect(most)
            cause = f"{world_size - most} of {world_size} workers are wanted by the sweep's other trials"
            return Transition.asked("resize", cause, world_size)
        end = min(self._total_steps, self._until_step or self._total_steps)
        if self._scale_up.advance(group, places, status.remaining_s(end), self._resize_cost_s):
            self._admission.expect(len(self._pool.nodes))
            cause = f"room for {len(self._pool.nodes)} workers instead of {world_size}"
            return Transition("resize", cause, world_size, self._scale_up.seen_at_s, now_s, now_s, now_s)
        return None

    def _after_failure(
        self, failure: GroupFailure, group: WorkerGroup | None
    ) -> dict[str, Any] | tuple[Transition, list[WorkerProcess]]:
        """Charge a failure: the run's end, or what leads to the next group, and the survivors when they are enough to
        form it. `group`: None when it was not even formed."""
        now_s = time.time()
        kind, verdict, nodes = self._failures.judge(failure, group, self._cluster.nodes)
        if verdict is not None:
            return _failed(verdict)
        node_ids = group.nodes if group is not None else []
        self._cluster.probed(nodes, node_ids)
        self._snapshots.forget(self._cluster.lost)
        self._snapshots.look_for_checkpoint()
        cause = f"{WORDS[kind]}: {first_line(failure.message)}"
        self._say(cause)
        most = self._admission.most_workers()
        survivors = self._survivors(most) if group is not None else []
        if survivors and group is not None:
            self._replace_lost(group, survivors, most)
        self._admission.expect(
            0 if survivors else len(self._admission.places(self._cluster.nodes, len(node_ids), most))
        )
        name = "reclaim" if kind is FailureKind.RECLAIM else "failure"
        reported_at_s = (group.status().step_at_s if group is not None else None) or now_s
        return Transition(name, cause, len(node_ids), reported_at_s, None, now_s, time.time()), survivors

    def _survivors(self, most: int) -> list[WorkerProcess]:
        """Processes that can form a group at once; none when they are too few."""
        self._pool.end_lost()
        self._pool.end_on(set(self._pool.nodes) - self._cluster.staying)
        ready = [process for process in self._pool.processes if process.is_warm and process.is_idle]
        self._pool.give_back(ready[most:])  # a sweep wants them elsewhere
        return ready[:most] if min(most, len(ready)) >= self._config.workers.min else []

    def _replace_lost(self, group: WorkerGroup, survivors: list[WorkerProcess], most: int) -> None:
        """Start a process where each one was that the group has lost, unless its node is gone or leaves."""
        lost = [process.node_id for process in group.unfit if process.node_id in self._cluster.staying]
        lost = lost[: max(0, most - len(self._pool.nodes))]
        if lost:
            self._say(f"{len(survivors)} worker(s) continue; {len(lost)} being replaced")
        self._scale_up.replace(survivors, lost)

    def _pause(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and not self._is_stop_asked():
            self._on_poll()
            time.sleep(POLL_S)

    def _stopped(self) -> dict[str, Any]:
        row = last_row(self._run, METRICS)
        return {"status": "stopped", "step": int(row["step"]) if row else 0}

    def _job(self, transition: Transition | None, evaluate_split: str | None) -> Job:
        snapshot = self._snapshots.newest()
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


def _failed(message: str) -> dict[str, Any]:
    return {"status": "failed", "message": message, "exit_code": 1}
