"""How often each label was given: in all, among the last texts, and over time, in a size that does not grow."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

MOST_PERIODS = 240
"""Of the curve over time. When there are more, two neighbours become one."""
FIRST_PERIOD_S = 10


class Shares:
    """The labels of the texts so far."""

    def __init__(self, num_last: int, state: dict[str, Any] | None = None):
        """
        Args:
            num_last: Texts whose labels are kept one by one.
            state: What `to_json` gave.
        """
        given = state or {"texts": 0, "labels": {}, "last": [], "periods": [], "period_s": FIRST_PERIOD_S}
        self.num_texts: int = given["texts"]
        self.total = Counter[str](given["labels"])
        """Texts with each label."""
        self.last: deque[tuple[str, ...]] = deque((tuple(one) for one in given["last"]), maxlen=num_last)
        self.periods: list[tuple[int, int, Counter[str]]] = [
            (begin, texts, Counter(labels)) for begin, texts, labels in given["periods"]
        ]
        """(Unix time at which it begins, texts, texts with each label) of each period that has texts."""
        self.period_s: int = given["period_s"]

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "texts": self.num_texts,
            "labels": dict(self.total),
            "last": [list(one) for one in self.last],
            "periods": [[begin, texts, dict(labels)] for begin, texts, labels in self.periods],
            "period_s": self.period_s,
        }

    def add(self, labels: Sequence[str], now: float) -> None:
        """Count a text. `now`: Unix time."""
        self.num_texts += 1
        self.total.update(labels)
        self.last.append(tuple(labels))
        begin = int(now) // self.period_s * self.period_s
        if not self.periods or self.periods[-1][0] < begin:
            self.periods.append((begin, 0, Counter()))
        start, texts, counts = self.periods[-1]
        counts.update(labels)
        self.periods[-1] = (start, texts + 1, counts)
        while len(self.periods) > MOST_PERIODS:
            self._merge()

    def of_last(self, count: int) -> tuple[int, Counter[str]]:
        """(number of the last texts, at most `count`; how many of them have each label)."""
        chosen = list(self.last)[-count:]
        return len(chosen), Counter(label for labels in chosen for label in labels)

    def _merge(self) -> None:
        self.period_s *= 2
        merged: list[tuple[int, int, Counter[str]]] = []
        for begin, texts, labels in self.periods:
            start = begin // self.period_s * self.period_s
            if merged and merged[-1][0] == start:
                merged[-1] = (start, merged[-1][1] + texts, merged[-1][2] + labels)
            else:
                merged.append((start, texts, labels))
        self.periods = merged
