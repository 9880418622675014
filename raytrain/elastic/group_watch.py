"""Watches a worker group at work: is there a reason for it to save and leave, and does it still make progress?

It also fetches what the group logs."""

import math
import time
from dataclasses import dataclass
from enum import Enum, auto

from raytrain.elastic.failures import Failures
from raytrain.elastic.fleet import Fleet
from raytrain.elastic.run_spec import Hooks, RunSpec
from raytrain.elastic.train_run import TrainRun
from raytrain.elastic.watchdog import Watchdog
from raytrain.elastic.worker_group import WorkerGroup
from raytrain.errors import counted
from raytrain.ray_core.nodes import own_node, seconds_left
from raytrain.training.driver_link import GroupStatus
from raytrain.training.job import Transition, TransitionKind

POLL_S = 0.25  # seconds between two checks of the group's end, and for new lines of its logs
LOOK_S = 1.0  # seconds between two checks of the cluster
LEAVE_MARGIN_S = 3.0  # before a node's deadline; processes that are left by then are killed
LEAST_NOTICE_S = 5.0  # a group gets at least this long to leave


class End(Enum):
    """Why the run should end, and not only its group."""

    STOP_ASKED = auto()  # by the user or the sweep
    OWN_NODE_RECLAIMED = auto()  # the node of the command
    CONTROLLER_LOST = auto()  # Ray Train's controller is gone, and another one would not help


@dataclass(frozen=True)
class Leave:
    """The reason and the consequence of asking a group to save and leave."""

    cause: str
    """For people."""
    leads_to: Transition | End
    """The next group, or the run's end."""


class GroupWatch:
    """Watches one group after the other."""

    def __init__(self, spec: RunSpec, hooks: Hooks, train_run: TrainRun, fleet: Fleet, failures: Failures):
        self._end_step, self._hooks, self._train_run = spec.end_step, hooks, train_run
        self._fleet, self._failures = fleet, failures
        self._watchdog = Watchdog(spec.config.workers.stall_timeout_s, hooks.say)
        self._resize_cost_s, self._leave_by_s = 0.0, math.inf
        self._own_node = own_node()

    def watch(self, group: WorkerGroup, transition: Transition) -> Leave | None:
        """Wait for the group's end. Returns why it was asked to leave, or None. `transition`: what led to the group."""
        fleet, leave, has_begun = self._fleet, None, False
        next_look_s = 0.0
        self._watchdog.begin()
        fleet.snapshots.begin()
        self._leave_by_s = math.inf
        while not group.wait(POLL_S):
            self._hooks.on_poll()
            self._hooks.on_lines(group.take_lines())
            if time.monotonic() < next_look_s:
                continue
            next_look_s = time.monotonic() + LOOK_S
            fleet.admission.ask_for_nodes(group.world_size)
            self._end_if_hung(group)  # asks how far it is
            status = group.known_status
            fleet.snapshots.advance(group, status)
            if not has_begun and status.first_step_at_s is not None:
                has_begun = True
                self._resize_cost_s = max(1.0, status.first_step_at_s - transition.started_at_s)
            if time.time() > self._leave_by_s:  # what has not left by now would be killed while it saves
                fleet.pool.end_on(node.node_id for node in fleet.cluster.nodes if node.is_draining)
            if leave is None and (leave := self._reason_to_leave(group, status)):
                if leave.cause:
                    self._hooks.say(leave.cause)
                group.ask_to_leave()
        return leave

    def watch_evaluation(self, group: WorkerGroup) -> None:
        """Wait for the end of a group that evaluates."""
        while not group.wait(POLL_S):
            self._hooks.on_poll()
            self._hooks.on_lines(group.take_lines())
            self._end_if_hung(group)
            if problem := self._train_run.problem():
                group.abandon(problem.cause)

    def _end_if_hung(self, group: WorkerGroup) -> None:
        if (cause := self._watchdog.finds_hung(group.signs_of_life())) is not None:
            group.end_hung(cause)

    def _reason_to_leave(self, group: WorkerGroup, status: GroupStatus) -> Leave | None:
        """Why the group should save and leave now, or None."""
        fleet, world_size = self._fleet, group.world_size
        if self._hooks.is_stop_asked():
            return Leave("", End.STOP_ASKED)
        if leave := self._controllers_end(group):
            return leave
        nodes = fleet.cluster.look()
        self._failures.reconsider()
        if seconds_left(nodes, [self._own_node]) is not None:
            return Leave("the node of this command is being reclaimed", End.OWN_NODE_RECLAIMED)
        most = fleet.admission.most_workers()
        places = fleet.admission.places(nodes, world_size, most)
        if leave := self._notice(group, len(places)):
            return leave
        if most < world_size:
            fleet.admission.expect(most)
            taken = world_size - most
            are = "is" if taken == 1 else "are"
            return _resize(f"{taken} of {world_size} workers {are} wanted by the sweep's other trials", group)
        if fleet.scale_up.advance(group, places, status.remaining_s(self._end_step), self._resize_cost_s):
            num_ready = len(fleet.pool.nodes)
            fleet.admission.expect(num_ready)
            return _resize(
                f"room for {counted(num_ready, 'worker')} instead of {world_size}", group, fleet.scale_up.seen_at_s
            )
        return None

    def _controllers_end(self, group: WorkerGroup) -> Leave | None:
        """A reason if Ray Train's controller has ended without being told to."""
        problem = self._train_run.problem()
        if problem is None:
            return None
        group.abandon(problem.cause)
        self._fleet.admission.expect(group.world_size)
        if not problem.can_restart:
            return Leave(problem.cause, End.CONTROLLER_LOST)
        self._train_run.restart()
        return _resize(problem.cause, group)

    def _notice(self, group: WorkerGroup, num_places: int) -> Leave | None:
        """A reason if a node of the group has notice. `num_places`: workers that fit elsewhere."""
        nodes = self._fleet.cluster.nodes
        left_s = seconds_left(nodes, group.nodes)
        if left_s is None:
            return None
        names = sorted({node.name for node in nodes if node.is_draining and node.node_id in group.nodes})
        due = "" if math.isinf(left_s) else f", which goes in {max(0.0, left_s):.0f} s"
        self._fleet.admission.expect(num_places)
        self._leave_by_s = time.time() + max(LEAST_NOTICE_S, left_s - LEAVE_MARGIN_S)
        group.tell_notice({node.node_id: node.drain_deadline_s for node in nodes if node.is_draining})
        cause = f"notice to reclaim {', '.join(names)}{due}"
        return Leave(cause, Transition.asked(TransitionKind.RECLAIM, cause, group.world_size))


def _resize(cause: str, group: WorkerGroup, seen_at_s: float | None = None) -> Leave:
    """`seen_at_s`: when the reason was first seen, seconds since the epoch; None: now."""
    return Leave(cause, Transition.asked(TransitionKind.RESIZE, cause, group.world_size, seen_at_s))
