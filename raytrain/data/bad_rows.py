"""Rows that can't be used: how the first one is refused, and how those that are set aside are counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.data.readers.base import BadRow
from raytrain.errors import DataError, FailureCode
from raytrain.tasks.base import RowError

EXAMPLES = 3  # rows that are named for each reason


@dataclass(frozen=True)
class Rejected:
    """A row that was set aside; one line of rejected.jsonl."""

    split: str
    path: str
    row: int
    code: RowError
    reason: str


def refusal(bad_rows: Sequence[BadRow], *, is_counted: bool = True) -> DataError:
    """The error for the first of a file's bad rows, with the number of the others.

    Args:
        is_counted: Whether these are all bad rows of the part of the file that was to be read.
    """
    bad = min(bad_rows, key=lambda one: one.row)
    num_more = len({one.row for one in bad_rows}) - 1
    others = f" ({'' if is_counted else 'at least '}{num_more} more bad rows after it)" if num_more else ""
    if bad.code == RowError.UNKNOWN_LABEL:
        return DataError(
            f"{bad}{others}. Add it to task.labels, correct the row, or set data.bad_rows=set_aside to continue "
            "without such rows",
            FailureCode.UNKNOWN_LABEL,
        )
    return DataError(
        f"{bad}{others}. Correct the row, or set data.bad_rows=set_aside to continue without such rows",
        FailureCode.BAD_ROW,
    )


def summary(rejected: Iterable[Rejected]) -> list[str]:
    """A line for each kind of reason, most frequent first: how many rows, the first reason, and the first rows."""
    kinds: dict[Any, list[Rejected]] = {}
    for bad in rejected:
        kinds.setdefault((bad.code, _kind(bad.reason)), []).append(bad)
    lines = []
    for rows in sorted(kinds.values(), key=len, reverse=True):
        examples = [f"{bad.path}, row {bad.row}" for bad in rows[:EXAMPLES]]
        more = ", ..." if len(rows) > EXAMPLES else ""
        lines.append(f"{len(rows)} x {rows[0].code}: {rows[0].reason} ({'; '.join(examples)}{more})")
    return lines


def _kind(reason: str) -> str:
    """A reason without its numbers and quoted values, so that rows with the same mistake are counted together."""
    outside = reason.split("'")[::2]
    return "".join("".join(c for c in part if not c.isdigit()) for part in outside)
