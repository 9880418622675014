"""Columns that stand for those that a model reads: texts for one that tags words, a question for one that chats."""

import re

import pyarrow as pa

from raytrain.tasks.base import Task
from raytrain.tasks.predicting import ASKED, SOURCE_TEXT, WORD_STARTS_IN_TEXT, Predicting

TEXT = "text"
"""The column that stands for the one of the words, where a source has no such column."""
WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def takes_texts(task: Task, columns: list[str]) -> bool:
    """Whether the words are to be found in a column of texts, since a source has no words."""
    words = task.word_columns()
    return len(words) == 1 and words[0] not in columns and TEXT in columns


def stand_in(task: Task, columns: list[str]) -> str | None:
    """The column of a source that stands for all columns of the inputs; None: the task has none, or it has none."""
    names = task.stand_ins() if isinstance(task, Predicting) else []
    return next((name for name in names if name in columns), None)


def needed_columns(task: Task, columns: list[str]) -> list[str]:
    """The columns that a table has to have: those of the inputs, but not those that another one stands for."""
    if stand_in(task, columns) is not None:
        return []
    words = task.word_columns() if takes_texts(task, columns) else []
    return [name for name in task.input_columns() if name not in words]


def with_inputs(rows: pa.Table, task: Task) -> pa.Table:
    """The rows with the columns that the task reads, made of those that stand for them.

    A text becomes a column of words, and of where each begins in it. Words are runs of letters and digits, also with an
    apostrophe in them; each other character that is not blank is one.
    """
    column = stand_in(task, rows.column_names)
    if column is not None and column not in task.input_columns():
        return rows.append_column(ASKED, rows[column])
    if not takes_texts(task, rows.column_names):
        return rows
    found = [list(WORD.finditer(text)) if isinstance(text, str) else [] for text in rows[TEXT].to_pylist()]
    words = pa.array([[match.group() for match in matches] for matches in found], pa.list_(pa.string()))
    starts = pa.array([[match.start() for match in matches] for matches in found], pa.list_(pa.int64()))
    texts = pa.array([text if isinstance(text, str) else None for text in rows[TEXT].to_pylist()], pa.string())
    columns = {task.word_columns()[0]: words, WORD_STARTS_IN_TEXT: starts, SOURCE_TEXT: texts}
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows
