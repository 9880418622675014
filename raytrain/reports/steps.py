"""Reads a run's steps in constant memory: takes the lines of metrics.jsonl one by one and keeps a sample of them.

A step is redone if a later attempt began at or before it; then only the line of the later attempt counts. Each attempt
writes its steps in order, so the first step of each attempt is enough to decide which lines count.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

MOST_ROWS = 2000
"""Maximum number of lines to keep; a figure can't show more."""


class Attempts:
    """The first and the last step of each attempt."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._newest = -1

    def add(self, step: int, attempt: int) -> bool:
        """Note a step. Returns whether it is the attempt's first."""
        is_new = attempt not in self.first
        self.first.setdefault(attempt, step)
        self._newest = max(attempt, self._newest)
        self.last[attempt] = max(step, self.last.get(attempt, step))
        return is_new

    def end_of(self, attempt: int, before: float = math.inf) -> float:
        """The first step of an attempt that does not count, since a later attempt began there.

        Args:
            before: Consider only later attempts with a number below this.
        """
        if attempt >= self._newest:  # true for nearly every line
            return math.inf
        return min((first for other, first in self.first.items() if attempt < other < before), default=math.inf)

    def kept(self) -> dict[int, range]:
        """The counting steps of each attempt, in step order, without attempts that have none."""
        found = {}
        for attempt in sorted(self.first):
            end = int(min(self.last[attempt] + 1, self.end_of(attempt)))
            if end > self.first[attempt]:
                found[attempt] = range(self.first[attempt], end)
        return found


class StepSample:
    """Keeps an even sample of a run's lines: all while they are few, then every second one, every fourth, and so on.
    Counts and sums are over all lines."""

    def __init__(self, rows: Iterable[dict[str, Any]] = (), most: int = MOST_ROWS):
        self.num_rows = 0
        """Number of all lines, including those of redone steps."""
        self.last: dict[str, Any] = {}
        """The line of the newest step."""
        self.attempts = Attempts()
        self._most, self._stride = most, 1
        self._kept: dict[int, dict[str, Any]] = {}
        self._world_sizes: defaultdict[int, set[int]] = defaultdict(set)
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl. A line without a step is ignored."""
        step, attempt = row.get("step"), row.get("attempt", 0)
        if step is None:
            return
        self.num_rows += 1
        if self.attempts.add(step, attempt):
            self._kept = {s: r for s, r in self._kept.items() if s < step or r.get("attempt", 0) > attempt}
        if step >= self.attempts.end_of(attempt):
            return
        if row.get("world_size"):
            self._world_sizes[attempt].add(row["world_size"])
        if attempt >= self.last.get("attempt", 0):
            self.last = row
        if step % self._stride == 0:
            self._kept[step] = row
        if len(self._kept) > self._most:
            self._stride *= 2
            self._kept = {s: r for s, r in self._kept.items() if s % self._stride == 0}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The sampled lines and the newest line, in step order."""
        kept = {**self._kept, self.last["step"]: self.last} if self.last else {}
        return [kept[step] for step in sorted(kept)]

    @property
    def num_redone(self) -> int:
        """Number of lines whose step a later attempt has redone or must still redo."""
        return max(0, self.num_rows - sum(map(len, self.attempts.kept().values())))

    @property
    def restarts(self) -> list[int]:
        """Steps at which a later attempt took over."""
        return [steps[0] for steps in self.attempts.kept().values()][1:]

    @property
    def world_sizes(self) -> list[int]:
        """All world sizes of the counting steps, ascending."""
        return sorted({size for attempt in self.attempts.kept() for size in self._world_sizes[attempt]})
