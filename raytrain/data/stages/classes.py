"""What data.balance goes by: the label of a sample, or the value of a column of its first row. No Ray, no torch."""

import json
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import BalanceConfig
from raytrain.data.readers.base import whole
from raytrain.errors import DataError
from raytrain.tasks.base import Encoded, Task

LABEL, CLASS = "label", "class"
"""Column of the index with the ids of the labels; and while a part is open, that with the read task's ids of the values
of another column."""
MOST_CLASSES = 1000


class Classes:
    """The classes of the samples of one read task."""

    def __init__(self, balance: BalanceConfig | None, task: Task):
        self._balance, self._task = balance, task
        self._ids: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The values of the column in the order of their ids in this read task; empty where labels are balanced."""
        return list(self._ids)

    def add(self, encoded: Encoded, index: pa.Table, rows: pa.Table, *, is_training: bool) -> tuple[Encoded, pa.Table]:
        """A chunk's samples, sorted by class if they are trained on, and their index with their classes. A row group
        then has few classes, mostly one, and one that is read for a class of which an epoch has many copies has little
        else in it.

        Raises DataError: the column has too many values, or the task does not say which rows a sample is of.
        """
        if self._balance is None or (self._balance.column is not None and not is_training):
            return encoded, index
        if self._balance.column is None:
            labels = self._task.label_ids(encoded.table)
            assert labels is not None, "the config balances labels only where samples have one"
            index, order = index.append_column(LABEL, pa.array(labels, pa.int32())), labels
        else:
            names = self._names(self._balance.column, encoded, rows)
            ids = [self._ids.setdefault(name, len(self._ids)) for name in names]
            check_number(self._balance.column, len(self._ids))
            index, order = index.append_column(CLASS, pa.array(ids, pa.int32())), np.array(names, dtype=object)
        if not is_training:
            return encoded, index
        places = pa.array(np.argsort(order, kind="stable"))
        return replace(encoded, table=encoded.table.take(places)), index.take(places)

    def _names(self, column: str, encoded: Encoded, rows: pa.Table) -> list[str]:
        if encoded.first_rows is None:
            raise DataError(
                f"data.balance.by {column!r}: the task does not say which source rows its samples are made of, so it "
                "can't be told which value a sample has: return first_rows in the task's encode_inputs, or leave "
                "data.balance out"
            )
        return [name_of(value) for value in rows[column].take(pa.array(encoded.first_rows)).to_pylist()]


def name_of(value: Any) -> str:
    """A value of a column as a class; "" where it is missing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    value = whole(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return unicodedata.normalize("NFC", str(value))


def check_number(column: str, num_classes: int) -> None:
    """Raises DataError when a column has too many values to balance them."""
    if num_classes > MOST_CLASSES:
        raise DataError(
            f"data.balance.by {column!r} has more than {MOST_CLASSES:,} different values: name a column whose "
            "values are classes, such as a language or a domain"
        )
