"""Rows that can't be used: how the first one is refused, and how those that are quarantined are counted."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raytrain.data.readers.base import BadRow
from raytrain.errors import DataError, FailureCode, counted
from raytrain.tasks.base import RowError

EXAMPLES = 3  # rows that are named for each reason
MOST_KINDS = 50  # reasons that are told apart: an error of the user's code may have another text for each row
OTHERS = "other reasons"
FEW_ROWS = 5  # too few, if all are bad, to say that something else is wrong than the rows
KEPT_LABELS = ". An evaluation takes task.labels and the kind of labels from the model, so they can't be changed here"


@dataclass
class Kind:
    """Rows of a split that can't be used for the same reason."""

    split: str
    code: RowError
    reason: str
    """Of the first of them."""
    count: int = 0
    rows: list[str] = field(default_factory=list)
    """The first of them, with their files."""


class Tally:
    """Counts quarantined rows by split and reason. Its size does not grow with the rows."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}

    def add(self, split: str, bad: BadRow) -> None:
        """Count a row."""
        self._add(Kind(split, bad.code, bad.reason, 1, [f"{bad.path}, row {bad.row}"]))

    def merge(self, report: list[dict[str, Any]]) -> None:
        """Add what `report` gave for rows that come after these."""
        for raw in report:
            self._add(Kind(**{**raw, "code": RowError(raw["code"])}))

    def report(self) -> list[dict[str, Any]]:
        """JSON-able."""
        return [asdict(kind) for kind in self._kinds.values()]

    def count(self, split: str | None = None) -> int:
        """Rows of a split; None: of all."""
        return sum(kind.count for kind in self._kinds.values() if split in (None, kind.split))

    def summary(self, split: str | None = None) -> list[str]:
        """A line for each kind of reason, most frequent first: how many rows, the first reason, and the first rows.
        `split`: the only one; None: all of them."""
        over_splits: dict[tuple[str, str], Kind] = {}
        for (of_split, *kind), found in self._kinds.items():
            if split in (None, of_split):
                one = over_splits.setdefault((kind[0], kind[1]), Kind(of_split, found.code, found.reason))
                _extend(one, found)
        lines = []
        for one in sorted(over_splits.values(), key=lambda one: -one.count):
            more = ", ..." if one.count > len(one.rows) else ""
            lines.append(f"{one.count:,} x {one.code}: {one.reason} ({'; '.join(one.rows)}{more})")
        return lines

    def _add(self, kind: Kind) -> None:
        key, reason = (kind.split, kind.code.value, _kind(kind.reason)), kind.reason
        if key not in self._kinds and len(self._kinds) >= MOST_KINDS:
            key, reason = (kind.split, kind.code.value, OTHERS), OTHERS
        _extend(self._kinds.setdefault(key, Kind(kind.split, kind.code, reason)), kind)


def _extend(kind: Kind, other: Kind) -> None:
    kind.count += other.count
    kind.rows = [*kind.rows, *other.rows][:EXAMPLES]


def refusal(
    bad_rows: Sequence[BadRow], num_read: int, *, is_counted: bool = True, is_evaluation: bool = False
) -> DataError:
    """The error for the first of a file's bad rows, with the number of the others, and what to do.

    Args:
        num_read: Rows that were read, good and bad.
        is_counted: Whether these are all bad rows of the part of the file that was to be read.
        is_evaluation: Whether they are to be evaluated with a model whose labels are fixed.
    """
    bad = min(bad_rows, key=lambda one: one.row)
    num_bad = len({one.row for one in bad_rows})
    is_unknown = bad.code == RowError.UNKNOWN_LABEL
    others, fixed = "", ""
    if num_bad > 1:
        at_least = "" if is_counted else "at least "
        others = f" ({at_least}{counted(num_bad - 1, 'more bad row')} after it)"
    if is_evaluation and bad.code in (RowError.UNKNOWN_LABEL, RowError.BAD_TARGET):
        fixed = KEPT_LABELS
    code = FailureCode.UNKNOWN_LABEL if is_unknown else FailureCode.BAD_ROW
    if bad.code == RowError.CUSTOM:
        return DataError(
            f"{bad}{others}. Correct the function, or set data.on_error=quarantine to continue without such rows", code
        )
    if bad.code == RowError.TOO_LONG:
        return DataError(
            f"{bad}{others}. Raise data.max_length, or set task.too_long or data.on_error=quarantine to continue "
            "without what does not fit",
            code,
        )
    if num_bad >= num_read > FEW_ROWS:
        return DataError(
            f"{bad}{others}. None of the {num_read:,} rows that were read can be used, so the column or the format is "
            f"likely wrong: check the task's columns (task.*_column){', task.labels' * is_unknown} and "
            f"data.*.format{fixed}",
            code,
        )
    if is_unknown and not is_evaluation:
        return DataError(
            f"{bad}{others}. Add it to task.labels, correct the row, or set data.on_error=quarantine to "
            "continue without such rows",
            code,
        )
    return DataError(
        f"{bad}{others}. Correct the row, or set data.on_error=quarantine to continue without such rows{fixed}", code
    )


def _kind(reason: str) -> str:
    """A reason without its numbers and quoted values, so that rows with the same mistake are counted together."""
    outside = "".join(reason.split("'")[::2])
    one = re.sub(r"\d[\d,]* (more )?([a-z]+?)s?\b", r"\1\2", outside)  # 1 field and 3 fields are the same mistake
    return "".join(c for c in one if not c.isdigit())
