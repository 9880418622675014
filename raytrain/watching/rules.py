"""Rules of alerts, such as `negative > 30% of 500`: their grammar, and when one begins and ends to hold."""

import re
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

from raytrain.errors import ConfigError, did_you_mean

GRAMMAR = re.compile(
    r"\s*(?P<label>.+?)\s*(?P<sign>[<>])\s*(?P<percent>\d+(?:\.\d+)?)\s*%\s+of\s+(?P<length>\d+)(?P<unit>[smhd]?)\s*"
)
FORM = "LABEL > NUMBER% of WINDOW, or with <; WINDOW is a number of texts (500) or a time (30s, 15m, 2h, 1d)"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MOST_TEXTS = 100_000
"""Of a window. Their labels are kept in memory, and written with each state."""
MOST_SECONDS = 30 * 86400
LEAST_TEXTS = 10
"""A rule over a time is not judged with fewer texts in its window: one text would be 100%."""
MARGIN = Fraction(1, 10)
"""A rule that holds ends this much beyond its limit, as a part of the distance to 0% or 100%, whichever is nearer, so
that a share that moves about its limit gives one event and not hundreds."""
TIME_PARTS = 60
"""The steps in which a window of time moves on."""


class Change(StrEnum):
    """What has become of a rule."""

    BEGINS = "begins"
    ENDS = "ends"


@dataclass(frozen=True)
class Rule:
    """A limit to the share of a label."""

    label: str
    is_above: bool
    """Whether it holds above the limit; otherwise below."""
    limit: Fraction
    """From 0 to 1."""
    num_texts: int | None
    """The window: this many texts; None: `seconds`."""
    seconds: int | None
    text: str
    """As it is written."""


def parse_rule(text: str, labels: Collection[str]) -> Rule:
    """A rule of `--alert`. Raises ConfigError that says what is allowed."""
    found = GRAMMAR.fullmatch(text)
    if found is None:
        raise ConfigError(f"--alert {text!r} is not a rule: write {FORM}")
    label, sign, length, unit = found["label"], found["sign"], int(found["length"]), found["unit"]
    if label not in labels:
        names = ", ".join(map(repr, list(labels)[:20]))
        raise ConfigError(
            f"--alert {text!r}: the model has no label {label!r}; it has {names}{did_you_mean(label, labels)}"
        )
    limit = Fraction(found["percent"]) / 100
    if not (0 <= limit < 1 if sign == ">" else 0 < limit <= 1):
        allowed = "from 0 to less than 100" if sign == ">" else "more than 0, and 100 at most"
        raise ConfigError(f"--alert {text!r} can never hold: with {sign} the percentage is {allowed}")
    seconds = length * UNITS_S[unit] if unit else None
    most, what = (MOST_SECONDS, "30d") if unit else (MOST_TEXTS, f"{MOST_TEXTS:,} texts")
    if not 0 < (length if seconds is None else seconds) <= most:
        raise ConfigError(f"--alert {text!r}: the window is {length}{unit}; allowed is more than 0, and {what} at most")
    written = f"{label} {sign} {found['percent']}% of {length}{unit}"
    return Rule(label, sign == ">", limit, None if unit else length, seconds, written)


class Alarm:
    """A rule, its window, and whether it holds now."""

    def __init__(self, rule: Rule, state: dict[str, Any] | None = None):
        """`state`: what `to_json` gave."""
        self.rule = rule
        self.holds, self.since = False, 0.0
        """`since`: Unix time of the last change."""
        self._hits: deque[bool] = deque(maxlen=rule.num_texts)
        self._parts: deque[list[int]] = deque()  # (begin in s, texts, hits) of each part of a window of time
        self.num_texts = self.num_hits = 0
        """In the window."""
        if state is not None:
            self.holds, self.since = state["holds"], state["since"]
            self._parts = deque(state["parts"])
            self.num_texts, self.num_hits = (sum(part[place] for part in self._parts) for place in (1, 2))

    def to_json(self) -> dict[str, Any]:
        """All but the texts of a window of texts: the labels of the last ones are kept for all rules together."""
        return {"holds": self.holds, "since": self.since, "parts": [list(part) for part in self._parts]}

    def refill(self, texts: Sequence[Sequence[str]]) -> None:
        """Fill a window of texts with the labels of the last ones."""
        if self.rule.num_texts is not None:
            for labels in texts[-self.rule.num_texts :]:
                self._count(self.rule.label in labels)

    @property
    def share(self) -> float:
        """Of the label among the texts in the window; 0 without texts."""
        return self.num_hits / self.num_texts if self.num_texts else 0.0

    def add(self, labels: Collection[str], now: float) -> Change | None:
        """Count a text, and judge. `now`: Unix time."""
        is_hit = self.rule.label in labels
        if self.rule.num_texts is not None:
            self._count(is_hit)
            return self._judge(now)
        step = max(1, self.rule.seconds // TIME_PARTS) if self.rule.seconds else 1
        begin = int(now) // step * step
        if not self._parts or self._parts[-1][0] < begin:
            self._parts.append([begin, 0, 0])
        self._parts[-1][1] += 1
        self._parts[-1][2] += is_hit
        self.num_texts, self.num_hits = self.num_texts + 1, self.num_hits + is_hit
        return self.pass_time(now)

    def pass_time(self, now: float) -> Change | None:
        """Judge a window of time again: old texts leave it without a new one."""
        if self.rule.seconds is None:
            return None
        while self._parts and self._parts[0][0] <= now - self.rule.seconds:
            _, texts, hits = self._parts.popleft()
            self.num_texts, self.num_hits = self.num_texts - texts, self.num_hits - hits
        return self._judge(now)

    def _count(self, is_hit: bool) -> None:
        if len(self._hits) == self.rule.num_texts:
            self.num_hits -= self._hits[0]
        self._hits.append(is_hit)
        self.num_hits, self.num_texts = self.num_hits + is_hit, len(self._hits)

    def _judge(self, now: float) -> Change | None:
        needed = LEAST_TEXTS if self.rule.num_texts is None else self.rule.num_texts
        if self.num_texts < needed:
            return None
        margin = MARGIN * min(self.rule.limit, 1 - self.rule.limit)
        share, limit = Fraction(self.num_hits, self.num_texts), self.rule.limit
        if not self.rule.is_above:  # above the limit of what is left
            share, limit = 1 - share, 1 - limit
        if self.holds == (share > limit - margin if self.holds else share > limit):
            return None
        self.holds, self.since = not self.holds, now
        return Change.BEGINS if self.holds else Change.ENDS
