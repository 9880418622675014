"""What the driver and its workers tell each other while a worker group runs.

The mailbox is an actor beside the driver: it ends with the driver, it outlives worker groups, and a message takes
milliseconds where a file in the run's folder would take a request to an object store.
"""

import asyncio
import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

from raytrain.actors import start_actor
from raytrain.training.job import FORM_TIMEOUT_S

# How long a worker's question may stay unanswered before it is asked again.
ANSWER_TIMEOUT_S = 30.0
# A worker reports its step at most this often; the driver needs it for estimates only.
REPORT_EVERY_S = 0.25
ALIVE_EVERY_S = 3.0

logger = logging.getLogger(__name__)


@dataclass
class GroupStatus:
    """What is known of a worker group."""

    first_step: int | None = None
    """Steps that were done when the group entered its loop; None before."""
    step: int | None = None
    """Steps that are done now."""
    first_step_at_s: float | None = None
    """When the group's first own step was done, seconds since the epoch."""
    step_at_s: float | None = None
    """When the newest report came."""
    alive_at_s: float | None = None
    """When anything was last done in the loop: a step, a batch of an evaluation, a save."""
    saved_step: int = 0
    """Step of the newest checkpoint that this group has committed or loaded."""


class _MailboxActor:
    """One group at a time; what an earlier group still says is dropped."""

    def __init__(self) -> None:
        self._group, self._status = -1, GroupStatus()
        self._leave, self._has_holders, self._has_met = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._holders: dict[str, str] = {}
        self._address = ""

    async def begin(self, group: int) -> None:
        for event in (self._leave, self._has_holders, self._has_met):  # whom the last group has left waiting
            event.set()
        self._group, self._status = group, GroupStatus()
        self._leave, self._has_holders, self._has_met = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def now(self) -> float:
        return time.time()

    async def announce(self, group: int, address: str) -> None:
        if group == self._group:
            self._address = address
            self._has_met.set()

    async def address(self, group: int) -> str:
        """Where rank 0 of the group waits for the others; waits until it has said so."""
        if group == self._group:
            await self._has_met.wait()
        if group != self._group:
            raise LookupError(f"worker group {group} is over")
        return self._address

    async def stepped(self, group: int, step: int) -> None:
        if group != self._group:
            return
        status, now_s = self._status, time.time()
        if status.first_step is None:
            status.first_step = step
        elif status.first_step_at_s is None and step > status.first_step:
            status.first_step_at_s = now_s
        status.step, status.step_at_s, status.alive_at_s = step, now_s, now_s

    async def alive(self, group: int) -> None:
        if group == self._group:
            self._status.alive_at_s = time.time()

    async def saved(self, group: int, step: int) -> None:
        if group == self._group:
            self._status.saved_step, self._status.alive_at_s = step, time.time()

    async def give_holders(self, holders: dict[str, str]) -> None:
        self._holders = holders
        self._has_holders.set()

    async def holders(self) -> dict[str, str]:
        """Waits until there are some."""
        await self._has_holders.wait()
        return self._holders

    async def ask_to_leave(self) -> None:
        self._leave.set()

    async def should_leave(self, group: int, timeout_s: float) -> bool:
        """Answers True as soon as the group should leave, False after `timeout_s`."""
        if group != self._group:
            return True
        try:
            await asyncio.wait_for(self._leave.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def status(self) -> GroupStatus:
        return self._status


class Mailbox:
    """The driver's end."""

    def __init__(self) -> None:
        """Starts the actor on this node. Ray is connected."""
        self.name = f"raytrain-{uuid.uuid4().hex[:12]}"
        self._actor = start_actor(_MailboxActor, name=self.name, max_concurrency=1000)

    def begin(self, group: int) -> None:
        """A group is about to start; what was said of the last one is forgotten."""
        self._get(self._actor.begin.remote(group))

    def ask_to_leave(self) -> None:
        """The workers save at the next step boundary and end."""
        self._actor.ask_to_leave.remote()

    def give_holders(self, holders: dict[str, str]) -> None:
        """Tell the workers the names of the actors that keep snapshots, by node id."""
        self._actor.give_holders.remote(holders)

    def status(self) -> GroupStatus:
        """Of the present group."""
        return self._get(self._actor.status.remote())

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)

    def _get(self, reference: Any) -> Any:
        import ray

        return ray.get(reference, timeout=ANSWER_TIMEOUT_S)


class DriverLink:
    """A worker's end. Only rank 0 listens and reports."""

    def __init__(self, name: str, group: int, world_rank: int):
        """`name`: of the mailbox; `group`: ordinal of this worker group."""
        import ray

        self._actor, self._group, self._world_rank = ray.get_actor(name), group, world_rank
        self.node_id: str = ray.get_runtime_context().get_node_id()
        """Hex."""
        self._is_leaving = threading.Event()
        self._has_ended = False
        self._clock_ahead_s = self._measure_clock() if world_rank == 0 else 0.0
        self._next_report_s = self._next_alive_s = 0.0
        if world_rank == 0:
            threading.Thread(target=self._listen, daemon=True, name="driver-link").start()

    def meet(self, address: str | None) -> str:
        """Where the group's workers find rank 0, which gives its `address`; the others wait for it."""
        import ray

        if address is not None:
            self._actor.announce.remote(self._group, address)
            return address
        answer: Any = ray.get(self._actor.address.remote(self._group), timeout=FORM_TIMEOUT_S)
        return answer

    def object_store_bytes(self) -> float:
        """Size of this node's object store."""
        import ray

        return next(node["Resources"] for node in ray.nodes() if node["NodeID"] == self.node_id)["object_store_memory"]

    def now(self) -> float:
        """Seconds since the epoch by the driver's clock, which need not be this node's."""
        return time.time() - self._clock_ahead_s

    def _measure_clock(self) -> float:
        """How far this node's clock is ahead of the driver's: the answer is taken to be half a round trip old."""
        import ray

        asked_at_s = time.time()
        answer: Any = ray.get(self._actor.now.remote(), timeout=ANSWER_TIMEOUT_S)
        return (asked_at_s + time.time()) / 2 - float(answer)

    def is_leave_requested(self) -> bool:
        """Whether the driver wants the group to save and end."""
        return self._is_leaving.is_set()

    def stepped(self, step: int, *, is_first: bool = False) -> None:
        """Tell the driver how many steps are done; `is_first` reports are never left out."""
        if self._world_rank == 0 and (is_first or time.monotonic() >= self._next_report_s):
            self._next_report_s = time.monotonic() + REPORT_EVERY_S
            self._actor.stepped.remote(self._group, step)

    def alive(self) -> None:
        """Tell the driver that something gets done, where no step is. Any worker may: the others wait for it."""
        if time.monotonic() >= self._next_alive_s:
            self._next_alive_s = time.monotonic() + ALIVE_EVERY_S
            self._actor.alive.remote(self._group)

    def saved(self, step: int) -> None:
        """Tell the driver that a checkpoint of this step is in storage."""
        if self._world_rank == 0:
            self._actor.saved.remote(self._group, step)

    def holders(self) -> tuple[str, str]:
        """Names of the actors that keep this worker's snapshots: on its own node, and on the next one."""
        import ray

        answer: Any = ray.get(self._actor.holders.remote())
        names: dict[str, str] = answer
        nodes = sorted(names)
        place = nodes.index(self.node_id)
        return names[nodes[place]], names[nodes[(place + 1) % len(nodes)]]

    def close(self) -> None:
        """The worker has left its group: that the driver goes away is no concern any more."""
        self._has_ended = True

    def _listen(self) -> None:
        import ray
        from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

        while not self._is_leaving.is_set():
            try:
                if ray.get(self._actor.should_leave.remote(self._group, ANSWER_TIMEOUT_S)):
                    self._is_leaving.set()
            except (GetTimeoutError, ActorUnavailableError):
                time.sleep(1.0)
            except RayError:
                if self._has_ended:
                    return
                # The driver is gone, with its mailbox. In a Ray of the caller's own its workers would train on, beside
                # those of the driver's successor.
                logger.error("the driver of this run is gone: this worker ends")
                os._exit(1)
