"""A run's steps in constant memory: lines of metrics.jsonl, taken one by one, of which the last attempt counts.

A step is redone once a later attempt has begun at or before it. Attempts are few, and each of them writes its steps in
order, so the first step of each attempt decides which lines count.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

MOST_ROWS = 2000
"""Lines that are kept; a figure can't show more."""


class Attempts:
    """Where each attempt began and how far it came."""

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
        """The step from which on an attempt's steps do not count: that at which a later one began.

        Args:
            before: Only attempts before this one are looked at.
        """
        if attempt >= self._newest:  # so it is for nearly every line
            return math.inf
        return min((first for other, first in self.first.items() if attempt < other < before), default=math.inf)

    def kept(self) -> dict[int, range]:
        """The steps of each attempt that count, in step order; attempts without any are left out."""
        found = {}
        for attempt in sorted(self.first):
            end = int(min(self.last[attempt] + 1, self.end_of(attempt)))
            if end > self.first[attempt]:
                found[attempt] = range(self.first[attempt], end)
        return found


class StepSample:
    """At most MOST_ROWS of a run's lines, evenly spaced: all of them while they are few, then every second one, every
    fourth, and so on. Beside them what is known of all lines."""

    def __init__(self, rows: Iterable[dict[str, Any]] = (), most: int = MOST_ROWS):
        self.num_rows = 0
        """All lines, also those of steps that were redone."""
        self.last: dict[str, Any] = {}
        """The line of the newest step."""
        self.attempts = Attempts()
        self._most, self._stride = most, 1
        self._kept: dict[int, dict[str, Any]] = {}
        self._world_sizes: defaultdict[int, set[int]] = defaultdict(set)
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl; one without a step is ignored."""
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
        """The lines that were kept and the newest, in step order."""
        kept = {**self._kept, self.last["step"]: self.last} if self.last else {}
        return [kept[step] for step in sorted(kept)]

    @property
    def num_redone(self) -> int:
        """Lines of steps that a later attempt has done again, or has still to do."""
        return max(0, self.num_rows - sum(map(len, self.attempts.kept().values())))

    @property
    def restarts(self) -> list[int]:
        """Steps at which a later attempt took over."""
        return [steps[0] for steps in self.attempts.kept().values()][1:]

    @property
    def world_sizes(self) -> list[int]:
        """Every number of workers that steps which count were done with, ascending."""
        return sorted({size for attempt in self.attempts.kept() for size in self._world_sizes[attempt]})
