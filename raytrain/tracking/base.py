"""The interface of a tracker, and the description of a run that it receives."""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from raytrain.config import RunConfig
from raytrain.config.io import flatten
from raytrain.errors import first_line
from raytrain.redaction import redact_tree
from raytrain.storage import Storage

TRACKING = "tracking.json"
MOST_SHOWN = 200  # characters of a tracker's own text


@dataclass(frozen=True)
class Row:
    """The values of one step."""

    step: int
    time_s: float
    """Seconds since the epoch."""
    values: dict[str, float]
    """Metric name, such as `train/loss` -> value."""
    is_redone: bool
    """Whether an earlier worker group reported this step before it crashed."""


class RefusedError(Exception):
    """The tracker does not accept the credentials, or finds none."""

    def __init__(self, error: Exception, where: str):
        """`where`: a sentence on where the tracker reads credentials, which follows the start of its own text."""
        super().__init__(f"{first_line(str(error))[:MOST_SHOWN]}. {where}")


class Tracker(Protocol):
    """An open tracker. Its calls may be slow and may raise; see `Sender`."""

    def log(self, rows: list[Row]) -> None:
        """Log rows in the given order."""

    def close(self, status: str) -> None:
        """Send everything that was logged.

        `status`: finished, stopped_early, failed, killed; or stopped, if another worker group may continue.
        """


Opener = Callable[[Row], Tracker]
"""Opens a tracker, or resumes what it already has of this run. Receives the first row."""


@dataclass(frozen=True)
class TrackedRun:
    """A run, as its trackers see it."""

    folder: Storage
    config: RunConfig

    def read_id(self) -> str:
        """A unique id of the run, kept as long as its folder exists. It is created on first use."""
        if not self.folder.exists(TRACKING):
            self.folder.commit_bytes(TRACKING, json.dumps({"id": uuid.uuid4().hex[:12]}).encode())
        return self.folder.read_json(TRACKING)["id"]

    def settings(self) -> dict[str, Any]:
        """Dotted config key -> value, including defaults, without credentials."""
        flat = flatten(redact_tree(self.config.model_dump(mode="json")))
        return {key: value for key, value in flat.items() if value is not None}


def first_tellings(rows: list[Row]) -> Iterator[Row]:
    """The rows that a tracker does not have yet, for trackers that would show a redone step twice."""
    return (row for row in rows if not row.is_redone)
