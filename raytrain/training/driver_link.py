"""The channel between the driver and a worker while a worker group trains.

The training runs in a thread of the worker's process, beside the actor that the driver calls: a message is an attribute
that one of the two threads sets and the other reads. No Ray.
"""

import threading
import time
from dataclasses import dataclass, replace

from raytrain.training.log_feed import LogFeed


@dataclass
class GroupStatus:
    """The progress of a worker group, as one of its workers knows it. Times are seconds since the epoch."""

    first_step: int | None = None
    """Steps that were done when the group entered its loop; None before."""
    step: int | None = None
    """Steps that are done now."""
    first_step_at_s: float | None = None
    """When the group's first own step was done."""
    step_at_s: float | None = None
    """When the newest step was done."""
    alive_at_s: float | None = None
    """When the loop last made progress: a step, a batch of an evaluation, or a save."""
    saved_step: int = 0
    """Step of the newest checkpoint that this worker has committed or loaded; on rank 0, that of the group."""

    def remaining_s(self, end: int) -> float | None:
        """Training time left until step `end` at the group's speed; None before its first step."""
        if self.first_step_at_s is None:
            return None
        assert self.first_step is not None and self.step is not None and self.step_at_s is not None
        steps = self.step - self.first_step - 1
        return (end - self.step) * (self.step_at_s - self.first_step_at_s) / steps if steps >= 1 else 0.0


class DriverLink:
    """The link between a training worker and its driver, for one worker group."""

    def __init__(self, node_id: str, clock_ahead_s: float = 0.0, object_store_bytes: float = 0.0):
        """Args:
        node_id: Hex id of the worker's node.
        clock_ahead_s: Seconds that this node's clock is ahead of the driver's.
        object_store_bytes: Size of this node's object store.
        """
        self.node_id, self.object_store_bytes = node_id, object_store_bytes
        self.feed = LogFeed()
        """New lines of the logs, on rank 0."""
        self._clock_ahead_s = clock_ahead_s
        self._status = GroupStatus()
        self._is_leaving, self._has_holders = threading.Event(), threading.Event()
        self._holders: dict[str, str] = {}

    # Called by the training thread.

    def now(self) -> float:
        """Seconds since the epoch by the driver's clock, which may differ from this node's."""
        return time.time() - self._clock_ahead_s

    def is_leave_requested(self) -> bool:
        """Whether the driver wants the group to save and end."""
        return self._is_leaving.is_set()

    def stepped(self, step: int) -> None:
        """`step` steps are done; the first call comes when model and state are loaded."""
        status, now_s = self._status, self.now()
        if status.first_step is None:
            status.first_step = step
        elif status.first_step_at_s is None and step > status.first_step:
            status.first_step_at_s = now_s
        status.step, status.step_at_s, status.alive_at_s = step, now_s, now_s

    def alive(self) -> None:
        """The loop has made progress other than a step."""
        self._status.alive_at_s = self.now()

    def saved(self, step: int) -> None:
        """The checkpoint of this step is in storage."""
        self._status.saved_step, self._status.alive_at_s = step, self.now()

    def holders(self) -> tuple[str, str]:
        """Names of the actors that keep this worker's snapshots: on its own node, and on the next one. Waits until the
        driver has started them.

        Raises:
            LookupError: The group has ended.
        """
        self._has_holders.wait()
        names = self._holders
        if self.node_id not in names:
            raise LookupError("the worker group has ended")
        nodes = sorted(names)
        index = nodes.index(self.node_id)
        return names[nodes[index]], names[nodes[(index + 1) % len(nodes)]]

    # Called by the actor for the driver.

    def request_leave(self) -> None:
        """Ask the group to save at its next step, and end."""
        self._is_leaving.set()

    def give_holders(self, names: dict[str, str]) -> None:
        """Names of the actors that keep snapshots, by node id; empty: the group has ended."""
        self._holders = names
        self._has_holders.set()

    @property
    def status(self) -> GroupStatus:
        """A copy."""
        return replace(self._status)
