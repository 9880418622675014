"""Events that a job prints for the programs that follow it: lines of JSON among its other output.

Such a line begins with PREFIX, and contains the text that a person is shown instead. `raytrain submit` turns them on by
an environment variable.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

VARIABLE = "RAYTRAIN_JOB_EVENTS"
PREFIX = "raytrain-event: "


class JobEventKind(StrEnum):
    """The kind of an event."""

    STEP = "step"  # steps of a run are done; the next such line replaces this one
    TRIAL = "trial"  # a trial of a sweep is over
    END = "end"  # the run has ended, or was stopped


@dataclass(frozen=True)
class JobEvent:
    """An event."""

    kind: JobEventKind
    text: str
    """For people."""
    done: int | None = None
    """Number of steps or trials that are done; for END, the run's step."""
    total: int | None = None
    status: str | None = None
    """The run's status, as in summary.json. END only."""


def are_wanted() -> bool:
    """Whether a program that follows this process has asked for events."""
    return bool(os.environ.get(VARIABLE))


def line_of(event: JobEvent) -> str:
    """The line of an event, without the line end."""
    return PREFIX + json.dumps({name: value for name, value in asdict(event).items() if value is not None})


def event_of(line: str) -> JobEvent | None:
    """The event in a line; None for any other line."""
    if not line.startswith(PREFIX):
        return None
    try:
        raw = json.loads(line[len(PREFIX) :])
        return JobEvent(**{**raw, "kind": JobEventKind(raw["kind"])})
    except (ValueError, TypeError, KeyError):  # printed by another program, or by another version of raytrain
        return None


def events_of(lines: Iterable[str]) -> Iterator[JobEvent]:
    """The events among lines."""
    for line in lines:
        if (event := event_of(line)) is not None:
            yield event


def for_people(text: str) -> str:
    """The text of a job's log, in which each event is replaced by its text."""
    lines = text.split("\n")
    return "\n".join(event.text if (event := event_of(line)) is not None else line for line in lines)
