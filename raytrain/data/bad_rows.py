"""Rows that can't be used: how the first one is refused, and how those that are set aside are counted."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.data.readers.base import BadRow
from raytrain.errors import DataError, FailureCode, counted
from raytrain.tasks.base import RowError

EXAMPLES = 3  # rows that are named for each reason
FEW_ROWS = 5  # too few, if all are bad, to say that something else is wrong than the rows
KEPT_LABELS = ". An evaluation takes task.labels and the kind of labels from the model, so they can't be changed here"


@dataclass(frozen=True)
class Rejected:
    """A row that was set aside; one line of rejected.jsonl."""

    split: str
    path: str
    row: int
    code: RowError
    reason: str


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
    if num_bad >= num_read > FEW_ROWS:
        return DataError(
            f"{bad}{others}. None of the {num_read:,} rows that were read can be used, so the column or the format is "
            f"likely wrong: check the task's columns (task.*_column){', task.labels' * is_unknown} and "
            f"data.*.format{fixed}",
            code,
        )
    if is_unknown and not is_evaluation:
        return DataError(
            f"{bad}{others}. Add it to task.labels, correct the row, or set data.bad_rows=set_aside to continue "
            "without such rows",
            code,
        )
    return DataError(
        f"{bad}{others}. Correct the row, or set data.bad_rows=set_aside to continue without such rows{fixed}", code
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
    outside = "".join(reason.split("'")[::2])
    one = re.sub(r"\d[\d,]* (more )?([a-z]+?)s?\b", r"\1\2", outside)  # 1 field and 3 fields are the same mistake
    return "".join(c for c in one if not c.isdigit())
