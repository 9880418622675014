"""Source files: whether they can be used, and how they are divided into read tasks. No Ray, no torch.

`listing` finds them and `readers` reads their rows.
"""

import contextlib
import difflib
import functools
import logging
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from raytrain.config import SPLITS, BadRowPolicy, DataConfig, SourceFormat
from raytrain.data.bad_rows import refusal
from raytrain.data.content import THREADS, with_content
from raytrain.data.listing import list_files, real_path
from raytrain.data.readers import NoRowsError, column_names, head_of
from raytrain.data.readers.base import ROW, BadRow, ReadTask, SourceFile, first_line, open_source
from raytrain.data.readers.conll import looks_like_conll, wrong_columns
from raytrain.data.readers.delimited import other_delimiter
from raytrain.data.readers.text import other_encoding
from raytrain.errors import DataError
from raytrain.tasks.base import Task

logger = logging.getLogger(__name__)

# Rows of Parquet per read task; a large file is divided among several tasks.
TASK_ROWS = 65_536
# Rows at the head of a text file that are read before Ray starts, and for how many files of a split.
HEAD_ROWS, HEAD_FILES = 200, 64
# Formats whose endings files of words and tags have too.
MISTAKEN_FOR_CONLL = (SourceFormat.TXT, SourceFormat.CSV, SourceFormat.TSV)


def check_sources(data: DataConfig, task: Task, only: str | None = None) -> dict[str, list[SourceFile]]:
    """The files of every split that have rows, after a quick check that they exist, can be read, have the columns of
    the task, and begin with rows that can be used.

    Args:
        only: The only split to check, for an evaluation; None: all splits.

    Raises:
        DataError: The message names the option, the file, and what to do.
    """
    sources = {split: getattr(data, split) for split in SPLITS if only in (None, split)}
    splits = {
        split: list_files(source, f"data.{split}")
        for split, source in sources.items()
        if source is not None and source.path is not None
    }
    _check_no_file_twice(splits)
    heads = [
        (f"data.{split}", file) for split, files in splits.items() for file in dict.fromkeys((files[0], files[-1]))
    ]
    usable = {split: _with_rows(files, f"data.{split}", task, heads) for split, files in splits.items()}
    if data.bad_rows == BadRowPolicy.REFUSE:
        for files in usable.values():
            for file in files[:HEAD_FILES]:
                _check_head(file, task, is_evaluation=only is not None)
    return with_content(usable)


def read_tasks(splits: dict[str, list[SourceFile]]) -> list[ReadTask]:
    """The read tasks of all files, in the order of the prepared data."""
    return [
        task for split, files in splits.items() for i, file in enumerate(files) for task in _tasks_of(split, i, file)
    ]


@functools.cache
def _warn_once(message: str) -> None:
    """A command checks the sources several times."""
    logger.warning("%s", message)


def _check_no_file_twice(splits: dict[str, list[SourceFile]]) -> None:
    """A file in two splits would measure the model on what it has learned; one that is named twice counts twice."""
    option_of: dict[str, str] = {}
    for split, files in splits.items():
        for file in files:
            place, option = real_path(file), f"data.{split}.path"
            if place in option_of:
                where = f"{option} twice" if option_of[place] == option else f"{option_of[place]} and in {option}"
                raise DataError(
                    f"{file.path} is in {where}: a file belongs to one split, once. Narrow the paths, to "
                    "folder/train-*.parquet for example; to hold out some of its rows, set data.validation.fraction"
                )
            option_of[place] = option


def _with_rows(
    files: list[SourceFile], option: str, task: Task, heads: list[tuple[str, SourceFile]]
) -> list[SourceFile]:
    """The files of a split that have rows. Raises DataError when none has, or one can't be used. `heads`: (option,
    file) of some files of each split."""
    with ThreadPoolExecutor(THREADS) as threads:
        reasons = list(threads.map(lambda file: _why_empty(file, option, task, heads), files))
    empty = [(file.path, reason) for file, reason in zip(files, reasons, strict=True) if reason]
    if len(empty) == len(files):
        raise DataError(f"{option}.path: {' '.join(empty[0])}")
    if empty:
        have = "has no rows and is" if len(empty) == 1 else "have no rows and are"
        named = f"{option}.path: {len(empty)} of {len(files)} files {have} passed over"
        _warn_once(f"{named}, such as {empty[0][0]}")
    return [file for file, reason in zip(files, reasons, strict=True) if not reason]


def _why_empty(file: SourceFile, option: str, task: Task, heads: list[tuple[str, SourceFile]]) -> str:
    """Why a file has no rows, or an empty string. Raises DataError when it can't be used."""
    if file.num_bytes == 0:
        return "is empty (0 bytes)"
    is_text = file.format != SourceFormat.PARQUET
    try:
        if is_text and (encoding := other_encoding(file)):
            raise DataError(
                f"{option}.path: {file.path} is not in {file.reading.encoding or 'UTF-8'}; it seems to be in "
                f"{encoding}: set {option}.encoding={encoding}"
            )
        found = column_names(file)
        if file.format == SourceFormat.CONLL and (reason := wrong_columns(file)):
            raise DataError(
                f"{option}.path: {file.path}: {reason}. Set {option}.word_column and {option}.tag_column, counted "
                "from 1"
            )
    except PermissionError:
        raise DataError(f"{option}.path: no permission to read {file.path}") from None
    except NoRowsError:
        return "has no rows"
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(
            f"{option}.path: {file.path} is not a readable {file.format} file (truncated?): {reason}"
        ) from None
    _check_columns(file, found, option, task, heads)
    return ""


def _check_columns(
    file: SourceFile, found: list[str], option: str, task: Task, heads: list[tuple[str, SourceFile]]
) -> None:
    for column in task.required_columns():
        if found.count(column) > 1:
            raise DataError(
                f"{option}.path: {file.path} has {found.count(column)} columns named {column!r}; rename or remove all "
                "but one"
            )
    missing = [column for column in task.required_columns() if column not in found]
    if not missing:
        return
    if file.format == SourceFormat.CSV and (delimiter := other_delimiter(file, task.required_columns())):
        raise DataError(
            f"{option}.path: {file.path} has no column {missing[0]!r}; its columns seem to be separated by "
            f"{delimiter!r}: set {option}.delimiter={'tab' if delimiter == chr(9) else repr(delimiter)}"
        )
    if file.format in MISTAKEN_FOR_CONLL and looks_like_conll(file):
        raise DataError(
            f"{option}.path: {file.path} has no column {missing[0]!r}; it seems to hold a word and its tag per line: "
            f"set {option}.format=conll"
        )
    what = f"{option}.path: {file.path} has no column {missing[0]!r} (it has {', '.join(map(repr, found))})"
    column_option = _column_option(task, missing[0])
    if (other := _file_with(missing[0], file, heads)) is not None:
        raise DataError(
            f"{what}, and {other[1].path} of {other[0]} has it. {column_option} names the column for all files: rename "
            "it in one of them"
        )
    if file.format == SourceFormat.TXT:
        raise DataError(
            f"{what}: each line of a txt file is a text, and there are no other columns. Use another format"
        )
    close = difflib.get_close_matches(missing[0], found, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise DataError(f"{what}{hint} Set {column_option} to the name in your files")


def _file_with(column: str, file: SourceFile, heads: list[tuple[str, SourceFile]]) -> tuple[str, SourceFile] | None:
    """(option, file) of another file that has this column."""
    for option, other in heads:
        with contextlib.suppress(OSError, ValueError, NoRowsError):  # it has a message of its own
            if other != file and column in column_names(other):
                return option, other
    return None


def _check_head(file: SourceFile, task: Task, *, is_evaluation: bool) -> None:
    """Raises DataError for the first bad row among the first rows of a text file."""
    if file.format == SourceFormat.PARQUET:
        return
    try:
        head = head_of(file, task.required_columns(), HEAD_ROWS)
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path} can't be read to its end (truncated?): {first_line(error)}") from None
    bad = list(head.bad_rows)
    if len(head.table):
        state = task.declared_state()
        rejected = task.check_before_survey(head.table) if state is None else task.rejections(head.table, state)
        rows = head.table[ROW].to_pylist()
        bad += [BadRow(file.path, rows[one.row], one.reason, one.code) for one in rejected]
    if bad:
        num_read = len(head.table) + len(head.bad_rows)
        raise refusal(bad, num_read, is_counted=num_read < HEAD_ROWS, is_evaluation=is_evaluation)


def _column_option(task: Task, column: str) -> str:
    """The dotted option that names a column."""
    options = vars(getattr(task, "config", None) or object)
    names = [name for name, value in options.items() if name.endswith("_column") and value == column]
    return f"task.{names[0]}" if names else "the task's *_column option"


def _tasks_of(split: str, file_of_split: int, file: SourceFile) -> list[ReadTask]:
    if file.format != SourceFormat.PARQUET:
        return [ReadTask(split, file_of_split, file)]
    with open_source(file) as opened:
        metadata = pq.ParquetFile(opened).metadata
    tasks, start, first_row, rows = [], 0, 1, 0
    for i in range(metadata.num_row_groups):
        rows += metadata.row_group(i).num_rows
        if rows >= TASK_ROWS or i == metadata.num_row_groups - 1:
            tasks.append(ReadTask(split, file_of_split, file, (start, i + 1), first_row))
            start, first_row, rows = i + 1, first_row + rows, 0
    return tasks
