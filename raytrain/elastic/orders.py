"""The supervisor's orders to Ray Train's controller; this state lives in the controller's process."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Orders:
    """The newest order of each kind."""

    number: int = 0
    """Number of the newest group that was ordered."""
    actors: Sequence[Any] = ()
    """Its workers, in rank order."""
    started: int = 0
    """Number of the newest group whose start was attempted."""
    ended: int = 0
    """Number of the newest group that has left as it was asked to."""
    failures: dict[int, str] | None = None
    """Why the current group failed: the message of each rank that caused it."""
    is_over: bool = False
    error: str | None = None
    """Why the run failed; None while it is running, or if it did not fail."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_group_due(self) -> bool:
        """Whether a group was ordered that has not been started."""
        return self.number > self.started

    @property
    def has_group_left(self) -> bool:
        """Whether the newest group that was started has left."""
        return self.ended == self.started > 0

    async def wait(self, timeout_s: float) -> None:
        """Wait until something is ordered, at most this long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), timeout_s)
        self.changed.clear()
