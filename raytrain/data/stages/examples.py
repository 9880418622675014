"""What each stage of PREPARE did to a few rows, and how long it took: `stages.json` of a prepared store. No Ray.

It is for people, and not part of a store's content. The examples follow from the rows; times differ from one
preparation to the next.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeVar

from raytrain.data.storing import get, put
from raytrain.storage import Storage

STAGES_NAME = "stages.json"
MOST_EXAMPLES = 5
"""Rows that are kept for each stage, and each thing that it does."""
MOST_CHARACTERS = 400  # of a text
BEFORE_A_CHANGE = 80  # characters of a longer text that are shown before the first one that differs
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A row that a stage has changed or taken out."""

    split: str
    stage: str
    """Such as clean.html; see `counts.stages_of`."""
    what: str
    """changed, dropped, quarantined, or kept (a leak, with data.dedup.leakage at `report`)."""
    place: str
    """FILE:ROW."""
    text: str
    """Of the row, before."""
    other: str = ""
    """Of a changed row the text afterwards, of a duplicate that of `partner`."""
    reason: str = ""
    """What the row broke, or why it can't be used."""
    partner: str = ""
    """FILE:ROW of the row that it duplicates."""
    jaccard: float | None = None


def excerpts(text: str, other: str = "") -> tuple[str, str]:
    """Two texts, cut to MOST_CHARACTERS from shortly before their first difference; of one text the beginning."""
    start = 0
    if other and max(len(text), len(other)) > MOST_CHARACTERS:
        pairs = zip(text, other, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
        start = max(0, same - BEFORE_A_CHANGE)
    return _cut(text, start), _cut(other, start)


def _cut(text: str, start: int) -> str:
    stop = start + MOST_CHARACTERS
    return f"{'...' * (start > 0)}{text[start:stop]}{'...' * (len(text) > stop)}"


class Examples:
    """The first MOST_EXAMPLES examples of each split, stage and thing that it does."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[tuple[int, Example]]] = defaultdict(list)

    def add(self, examples: Iterable[Example], ordinal: int = 0) -> None:
        """Add examples in the order of their rows. `ordinal`: of their read task, which may come in any order."""
        for one in examples:
            found = self._found[one.split, one.stage, one.what]
            found.append((ordinal, one))
            found.sort(key=lambda item: item[0])  # stable: the rows of a task stay in order
            del found[MOST_EXAMPLES:]

    def __iter__(self) -> Iterator[Example]:
        """By split, stage and thing, sorted: which task was first does not matter."""
        return (one for _, found in sorted(self._found.items()) for _, one in found)


@dataclass
class Observed:
    """What is seen of the stages beside their counts, in one read task or in all."""

    examples: Examples = field(default_factory=Examples)
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, over all processes."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measures what is done inside."""
        started_at_s = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds({stage: time.perf_counter() - started_at_s})

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add the times of stages."""
        for stage, took in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took

    def timing(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time that it takes to get them is measured."""
        iterator = iter(items)
        while True:
            with self.timed(stage):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def add(self, report: dict[str, Any], ordinal: int) -> None:
        """Add what `to_json` gave for a read task."""
        self.examples.add((Example(**one) for one in report["examples"]), ordinal)
        self.add_seconds(report["seconds"])

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"examples": [asdict(one) for one in self.examples], "seconds": self.seconds}

    def write(self, folder: Storage) -> None:
        """Write `stages.json`. Raises OSError."""
        put(folder, STAGES_NAME, json.dumps(self.to_json()).encode())

    @classmethod
    def read(cls, folder: Storage) -> Self:
        """From `stages.json`; nothing where it is missing or damaged, since no run depends on it. Raises OSError."""
        found = cls()
        try:
            found.add(json.loads(get(folder, STAGES_NAME)), 0)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return cls()
        return found
