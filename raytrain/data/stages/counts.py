"""How many rows came in, were changed, dropped or quarantined, by split and rule: small, JSON-able, and it adds up.

read = kept + quarantined + dropped + duplicates, of each split, source and label
in = out + dropped + quarantined, of each stage; `out` of a stage is `in` of the next one
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.config import CleanPreset
from raytrain.errors import DataError, counted
from raytrain.tasks.base import RowError


class LimitError(DataError):
    """More rows are lost than an option allows. With another value of it, the same store can be made."""


LOST = ("quarantined", "dropped", "duplicates")
"""What may become of a row that is not kept."""


@dataclass
class RuleCounts:
    """Rows that one rule of data.clean has seen."""

    rows_in: int = 0
    changed: int = 0
    dropped: int = 0
    failed: int = 0
    """Rows that a custom function failed on; they are among the quarantined ones."""

    @property
    def rows_out(self) -> int:
        """Rows that are left after the rule."""
        return self.rows_in - self.dropped - self.failed

    def add(self, other: "RuleCounts") -> None:
        """Add the counts of other rows."""
        self.rows_in += other.rows_in
        self.changed += other.changed
        self.dropped += other.dropped
        self.failed += other.failed


@dataclass
class RowCounts:
    """What became of the source rows of a split."""

    read: int = 0
    quarantined: int = 0
    duplicates: int = 0
    """Rows that were removed as leaks or duplicates (data.dedup)."""
    rules: dict[str, RuleCounts] = field(default_factory=dict)
    """By rule of data.clean, in the order in which they are applied."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Dropped rows by what they broke, such as `gopher.words` or `languages.de`."""
    codes: Counter[str] = field(default_factory=Counter)
    """Quarantined rows by their code, such as `bad_target`."""
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    """By label: rows `read`, and each of LOST. Under "" rows without one that can be used; without rows that can't be
    parsed. Empty where targets are not labels of rows."""

    @property
    def dropped(self) -> int:
        """Rows that a rule has dropped."""
        return sum(self.reasons.values())

    @property
    def kept(self) -> int:
        """Rows that were encoded."""
        return self.read - self.quarantined - self.dropped - self.duplicates

    def rule(self, name: str) -> RuleCounts:
        """The counts of a rule."""
        return self.rules.setdefault(name, RuleCounts())

    def count_labels(self, what: str, labels: Iterable[Sequence[str]]) -> None:
        """Count rows by label. `what`: read, or one of LOST; `labels`: those of each row."""
        counts = Counter(itertools.chain.from_iterable(names or ("",) for names in labels))
        for name, count in counts.items():
            self.labels.setdefault(name, Counter())[what] += count

    def add(self, other: "RowCounts") -> None:
        """Add the counts of other rows of the split."""
        self.read += other.read
        self.quarantined += other.quarantined
        self.duplicates += other.duplicates
        self.reasons.update(other.reasons)
        self.codes.update(other.codes)
        for label, found in other.labels.items():
            self.labels.setdefault(label, Counter()).update(found)
        for name, counts in other.rules.items():
            self.rule(name).add(counts)

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        rules = {
            name: {"in": one.rows_in, "changed": one.changed, "dropped": one.dropped, "out": one.rows_out}
            | ({"failed": one.failed} if one.failed else {})
            for name, one in self.rules.items()
        }
        names = ("read", "quarantined", "dropped", "duplicates", "kept")
        return {
            **{name: getattr(self, name) for name in names},
            "rules": rules,
            "reasons": dict(self.reasons.most_common()),
            "codes": dict(sorted(self.codes.items())),
            "labels": {label: dict(found) for label, found in sorted(self.labels.items())},
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "RowCounts":
        """What `to_json` gave."""
        rules = {
            name: RuleCounts(one["in"], one["changed"], one["dropped"], one.get("failed", 0))
            for name, one in raw["rules"].items()
        }
        labels = {label: Counter(found) for label, found in raw["labels"].items()}
        losses = Counter(raw["reasons"]), Counter(raw["codes"])
        return cls(raw["read"], raw["quarantined"], raw["duplicates"], rules, *losses, labels)

    def sentence(self) -> str:
        """Such as `1,000 rows read, 3 quarantined, 20 dropped (min_words 20), 977 kept; changed: html 12`."""
        parts = [f"{counted(self.read, 'row')} read"]
        if self.quarantined:
            parts.append(f"{self.quarantined:,} quarantined")
        if self.rules:
            reasons = f" ({listed(self.reasons)})" if self.reasons else ""
            parts.append(f"{self.dropped:,} dropped{reasons}")
        if self.duplicates:
            parts.append(f"{self.duplicates:,} duplicates")
        changed = listed({name: one.changed for name, one in self.rules.items() if one.changed})
        return f"{', '.join(parts)}, {self.kept:,} kept" + (f"; changed: {changed}" if changed else "")


@dataclass(frozen=True)
class Stage:
    """What a stage of PREPARE did to the rows of a split."""

    name: str
    rows_in: int
    changed: int = 0
    dropped: int = 0
    quarantined: int = 0

    @property
    def rows_out(self) -> int:
        """Rows that go to the next stage."""
        return self.rows_in - self.dropped - self.quarantined


def stages_of(counts: RowCounts, num_removed: Mapping[str, int]) -> list[Stage]:
    """The stages that the rows of a split went through, in order.

    Args:
        num_removed: Duplicates by `dedup.RULE`.
    """
    codes = counts.codes
    found = [Stage("read", counts.read, quarantined=codes[RowError.UNREADABLE])]
    for name, one in counts.rules.items():
        found.append(Stage(f"clean.{name}", one.rows_in, one.changed, one.dropped, one.failed))
    # Leaks go first, whatever else they duplicate.
    for rule, num in sorted(num_removed.items(), key=lambda item: item[0] != "dedup.leakage"):
        found.append(Stage(rule, found[-1].rows_out, dropped=num))
    others = sum(num for code, num in codes.items() if code not in (RowError.UNREADABLE, RowError.CUSTOM))
    return [*found, Stage("encode", found[-1].rows_out, quarantined=others)]


def listed(counts: dict[str, int] | Counter[str]) -> str:
    """Such as `gopher.words 1,950, gopher.letters 3`, the most frequent first."""
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in most_first)


def check_shares(
    source: str,
    counts: Iterable[RowCounts],
    most_dropped: float,
    most_quarantined: float,
    reasons: Sequence[str] = (),
) -> None:
    """Raises LimitError where more rows of a source were dropped or quarantined than is allowed.

    Args:
        source: Dotted name, such as data.train.
        counts: Of the splits that are made of it.
        reasons: A line for each reason why rows can't be used, with the first of them.
    """
    total = RowCounts()
    for one in counts:
        total.add(one)
    if total.dropped > most_dropped * total.read:
        presets = tuple(f"{preset}." for preset in CleanPreset)
        is_preset = any(rule.startswith(presets) for rule in total.reasons)
        raise LimitError(
            f"data.clean drops {total.dropped:,} of {counted(total.read, 'row')} of {source}, more than "
            f"data.clean.max_dropped {most_dropped:g} allows: {listed(total.reasons)}. Change the rules, or raise "
            f"data.clean.max_dropped if this is meant{'; data.clean.preset is made for web pages' * is_preset}"
        )
    if total.quarantined > most_quarantined * total.read:
        told = "".join(f"\n  {reason}" for reason in reasons)
        raise LimitError(
            f"{total.quarantined:,} of {counted(total.read, 'row')} of {source} can't be used, more than "
            f"data.max_quarantined {most_quarantined:g} allows. Correct the rows, or raise data.max_quarantined{told}"
        )
