"""Words of running text, for a model that tags words and is given texts."""

import re

import pyarrow as pa

from raytrain.tasks.base import Task
from raytrain.tasks.predicting import SOURCE_TEXT, WORD_STARTS_IN_TEXT

TEXT = "text"
"""The column that stands for the one of the words, where a source has no such column."""
WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def takes_texts(task: Task, columns: list[str]) -> bool:
    """Whether the words are to be found in a column of texts, since a source has no words."""
    words = task.word_columns()
    return len(words) == 1 and words[0] not in columns and TEXT in columns


def needed_columns(task: Task, columns: list[str]) -> list[str]:
    """The columns that a table has to have: those of the inputs, but not that of the words where texts stand for it."""
    words = task.word_columns() if takes_texts(task, columns) else []
    return [name for name in task.input_columns() if name not in words]


def with_words(rows: pa.Table, task: Task) -> pa.Table:
    """The rows with a column of words, and with where each begins in its text. Words are runs of letters and digits,
    also with an apostrophe in them; each other character that is not blank is one."""
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
