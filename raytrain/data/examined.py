"""What is found out about a source file by opening it, once: whether it has rows, and which; whether it can be used.

The checks of one command come one after the other (before Ray starts, on resuming, before the data is prepared). A file
on an object store that is listed with the same size and modification time is not opened again by the later ones. Files
on file systems are: opening them is cheap, and a change within one tick of their clock must be seen.
"""

import contextlib
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from raytrain.config import ImageClassificationConfig, SourceFormat
from raytrain.data.bad_rows import refusal
from raytrain.data.readers import NoRowsError, column_names, head_of
from raytrain.data.readers.base import ROW, TABLE_FORMATS, BadRow, SourceFile, first_line
from raytrain.data.readers.conll import looks_like_conll, wrong_columns
from raytrain.data.readers.delimited import other_delimiter
from raytrain.data.readers.images import image_groups
from raytrain.data.readers.opening import opened_once
from raytrain.data.readers.parquet import parquet_footer
from raytrain.data.readers.text import other_encoding
from raytrain.data.stages.clean import Cleaner
from raytrain.errors import DataError
from raytrain.storage import filesystem_of
from raytrain.tasks.base import RowError, Task

HEAD_ROWS = 200
"""Rows at the beginning of a text file that are read before Ray starts."""
# Formats whose endings files of words and tags have too.
MISTAKEN_FOR_CONLL = (SourceFormat.TXT, SourceFormat.CSV, SourceFormat.TSV)
OfOption = tuple[str, SourceFile]
"""A file and the dotted option of its source."""


@dataclass(frozen=True)
class Examined:
    """A source file that can be used, or has no rows."""

    why_empty: str = ""
    """Why it has no rows; "": it has."""
    etag: str = ""
    """What the object store calls the file's contents; "" if it says nothing, and for a file on a file system."""
    row_group_rows: tuple[int, ...] = ()
    """Rows of each row group, of Parquet."""


# A file, its option, and what it was examined for -> what was found.
_known: dict[tuple[SourceFile, str, str], Examined] = {}
_row_groups: dict[SourceFile, tuple[int, ...]] = {}


@dataclass(frozen=True)
class HeadCheck:
    """How the first rows of a text file are checked."""

    cleaner: Cleaner | None = None
    """What changes and drops rows before the task sees them."""
    is_evaluation: bool = False
    """Whether the rows are those of an evaluation, for messages."""


def examine(
    file: SourceFile, option: str, task: Task, of_head: HeadCheck | None, *, others: Sequence[OfOption] = ()
) -> Examined:
    """Open a file and check it.

    Args:
        option: Dotted option of its source, for messages.
        of_head: How the first rows of a text file are checked; None: they may be invalid.
        others: Some files of each split, in which a column that this one lacks is looked for.

    Raises:
        DataError: It can't be used.
    """
    of_task = f"{type(task).__module__}.{type(task).__qualname__} {getattr(task, 'config', None)!r}"
    of_clean = of_head and of_head.cleaner and of_head.cleaner.config
    key = (file, option, sys.intern(f"{of_task} {task.required_columns()} {of_head is None} {of_clean!r}"))
    if (known := _known.get(key)) is not None:
        return known
    with opened_once(file) as opening:
        why_empty, row_groups = _why_empty(file, option, task, others)
        if of_head is not None and not why_empty:
            _check_head(file, option.removeprefix("data."), task, of_head)
    found = Examined(why_empty, etag_of(opening.metadata), row_groups)
    if is_in_object_store(file) and file.modified_at:
        _known[key] = found
        if row_groups:
            _row_groups[file] = row_groups
    return found


def etag_of(metadata: Mapping[str, bytes]) -> str:
    """What an object store calls the contents of a file; "" if it says nothing."""
    return next((value.decode() for name, value in metadata.items() if name.lower() == "etag"), "")


def row_groups_of(file: SourceFile) -> tuple[int, ...]:
    """Rows of each row group of a Parquet file, or of each group of a folder of images. Raises OSError or
    pa.ArrowInvalid."""
    listed = SourceFile(file.path, file.format, file.num_bytes, file.modified_at, file.reading)
    if (known := _row_groups.get(listed)) is not None:
        return known
    return tuple(image_groups(file) if file.format == SourceFormat.IMAGES else parquet_footer(file)[1])


def is_in_object_store(file: SourceFile) -> bool:
    """Whether the file is behind a URI, and not on a file system that is mounted here."""
    if "://" not in file.path or file.format == SourceFormat.SQL:
        return False
    return not isinstance(filesystem_of(file.path)[0], pafs.LocalFileSystem)


def _why_empty(file: SourceFile, option: str, task: Task, others: Sequence[OfOption]) -> tuple[str, tuple[int, ...]]:
    """(why it has no rows, or an empty string; rows of its row groups, if it has any). Raises DataError."""
    if file.num_bytes == 0 and file.format != SourceFormat.SQL:
        return "is empty (0 bytes)", ()
    row_groups: tuple[int, ...] = ()
    try:
        if file.format == SourceFormat.PARQUET:
            found, rows = parquet_footer(file)
            row_groups = tuple(rows)
            if not sum(rows):
                raise NoRowsError
        else:
            found = _columns_of_text(file, option)
    except PermissionError:
        raise DataError(f"{option}.path: no permission to read {file.path}") from None
    except NoRowsError:
        return "has no rows", row_groups
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(
            f"{option}.path: {file.path} is not a readable {file.format} file (truncated?): {reason}"
        ) from None
    _check_columns(file, found, option, task, others)
    return "", row_groups


def _columns_of_text(file: SourceFile, option: str) -> list[str]:
    """The columns of a file that is not Parquet. Raises what `column_names` raises, and DataError."""
    if file.format in (*TABLE_FORMATS, SourceFormat.SQL):
        return column_names(file)
    if encoding := other_encoding(file):
        raise DataError(
            f"{option}.path: {file.path} is not in {file.reading.encoding or 'UTF-8'}; it seems to be in "
            f"{encoding}: set {option}.encoding={encoding}"
        )
    found = column_names(file)
    if file.format == SourceFormat.CONLL and (reason := wrong_columns(file)):
        raise DataError(
            f"{option}.path: {file.path}: {reason}. Set {option}.word_column and {option}.tag_column, counted from 1"
        )
    return found


def _check_columns(file: SourceFile, found: list[str], option: str, task: Task, others: Sequence[OfOption]) -> None:
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
    if (other := _file_with(missing[0], file, others)) is not None:
        raise DataError(
            f"{what}, and {other[1].path} of {other[0]} has it. {column_option} names the column for all files: rename "
            "it in one of them"
        )
    config = getattr(task, "config", None)
    if isinstance(config, ImageClassificationConfig) and missing[0] == config.image_column:
        raise DataError(
            f"{what}. To read the images of the folder and pass over such files, set {option}.format=images. "
            f"If it is a table of images, set {column_option} to the column with their paths or bytes"
        )
    if file.format == SourceFormat.TXT:
        raise DataError(
            f"{what}: each line of a txt file is a text, and there are no other columns. Use another format"
        )
    close = difflib.get_close_matches(missing[0], found, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise DataError(f"{what}{hint} Set {column_option} to the name in your files")


def _file_with(column: str, file: SourceFile, others: Sequence[OfOption]) -> OfOption | None:
    """Another file that has this column."""
    for option, other in others:
        with contextlib.suppress(OSError, ValueError, NoRowsError):  # it has a message of its own
            if other != file and column in column_names(other):
                return option, other
    return None


def _check_head(file: SourceFile, split: str, task: Task, how: HeadCheck) -> None:
    """Raises DataError for the first bad row among the first rows of a text file."""
    if file.format in TABLE_FORMATS:
        return
    try:
        head = head_of(file, task.required_columns(), HEAD_ROWS)
    except (OSError, ValueError) as error:
        raise DataError(f"{file.path} can't be read to its end (truncated?): {first_line(error)}") from None
    bad, table = list(head.bad_rows), head.table
    if how.cleaner is not None and len(table):
        cleaned = how.cleaner.clean(table, split)
        table = cleaned.table
        bad += [BadRow(file.path, row, reason, RowError.CUSTOM) for row, reason, _ in cleaned.failed]
    if len(table):
        state = task.declared_state()
        rejected = task.check_before_survey(table) if state is None else task.rejections(table, state)
        rows = table[ROW].to_pylist()
        bad += [BadRow(file.path, rows[one.row], one.reason, one.code) for one in rejected]
    if bad:
        num_read = len(head.table) + len(head.bad_rows)
        raise refusal(bad, num_read, is_counted=num_read < HEAD_ROWS, is_evaluation=how.is_evaluation)


def _column_option(task: Task, column: str) -> str:
    """The dotted option that names a column."""
    options = vars(getattr(task, "config", None) or object)
    names = [name for name, value in options.items() if name.endswith("_column") and value == column]
    return f"task.{names[0]}" if names else "the task's *_column option"
