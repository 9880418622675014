"""What a tracker is, and what it is told of a run."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from raytrain.config import RunConfig
from raytrain.config.io import flatten
from raytrain.storage import Storage

TRACKING = "tracking.json"
SECRET = re.compile(r"(secret|passw(or)?d|credential|token|(api|access|private|account)_?key)$", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """Values of one step."""

    step: int
    time_s: float
    """Seconds since the epoch."""
    values: dict[str, float]
    """By names like `train/loss`."""
    is_redone: bool
    """Whether an earlier worker group has told of this step before it crashed."""


class Tracker(Protocol):
    """One that is open. Its calls may take long and may raise: see `Sender`."""

    def log(self, rows: list[Row]) -> None:
        """Take rows, in the order in which they came up."""

    def close(self, status: str) -> None:
        """Send all that was logged.

        `status`: finished, stopped_early, failed, killed; or stopped, when another worker group may go on.
        """


Opener = Callable[[Row], Tracker]
"""Opens a tracker, or goes on with what it has of this run. It is given the first row."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as its trackers know it."""

    folder: Storage
    config: RunConfig

    def read_id(self) -> str:
        """What tells this run from all others, for as long as its folder lasts; made when it is asked for first."""
        if not self.folder.exists(TRACKING):
            self.folder.commit_bytes(TRACKING, json.dumps({"id": uuid.uuid4().hex[:12]}).encode())
        return self.folder.read_json(TRACKING)["id"]

    def settings(self) -> dict[str, Any]:
        """Dotted config key -> value, defaults included, without what is named like a secret."""
        flat = flatten(self.config.model_dump(mode="json"))
        return {key: value for key, value in flat.items() if value is not None and not SECRET.search(key)}


def first_tellings(rows: list[Row]) -> Iterator[Row]:
    """The rows that a tracker does not have yet, for one that would show a step twice."""
    return (row for row in rows if not row.is_redone)
