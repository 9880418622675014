"""What a job tells the programs that follow it: lines of JSON among those that it prints for people.

Such a line has a beginning of its own, and holds the text that a person is shown in its place. `raytrain submit` asks
for them by an environment variable.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

VARIABLE = "RAYTRAIN_JOB_EVENTS"
PREFIX = "raytrain-event: "


class JobEventKind(StrEnum):
    """What has happened."""

    STEP = "step"  # steps of a run are done; the next such line replaces this one
    TRIAL = "trial"  # a trial of a sweep is over
    END = "end"  # the run has come to its end, or was stopped


@dataclass(frozen=True)
class JobEvent:
    """One of them."""

    kind: JobEventKind
    text: str
    """For people."""
    done: int | None = None
    """Steps or trials; of END: the run's step."""
    total: int | None = None
    status: str | None = None
    """Of END: as in summary.json."""


def are_wanted() -> bool:
    """Whether someone who follows this process reads them."""
    return bool(os.environ.get(VARIABLE))


def line_of(event: JobEvent) -> str:
    """The line of an event, without its end."""
    return PREFIX + json.dumps({name: value for name, value in asdict(event).items() if value is not None})


def event_of(line: str) -> JobEvent | None:
    """The event of a line; None when it is one for people."""
    if not line.startswith(PREFIX):
        return None
    try:
        raw = json.loads(line[len(PREFIX) :])
        return JobEvent(**{**raw, "kind": JobEventKind(raw["kind"])})
    except (ValueError, TypeError, KeyError):  # another program's, or one of another version of raytrain
        return None


def events_of(lines: Iterable[str]) -> Iterator[JobEvent]:
    """Those among lines."""
    for line in lines:
        if (event := event_of(line)) is not None:
            yield event


def for_people(text: str) -> str:
    """The text of a job's log, with each event as a person reads it."""
    lines = text.split("\n")
    return "\n".join(event.text if (event := event_of(line)) is not None else line for line in lines)
