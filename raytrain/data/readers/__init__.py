"""Rows of source files, one file a format. No Ray, no torch.

Rows are read in chunks: Arrow tables with the user's columns and `__row__`, the row's 1-based position in its file (for
text formats, the line it starts in). A row that can't be parsed becomes a BadRow, not an exception that loses the other
rows; a file that can't be read any further is a DataError.
"""

import itertools
from collections.abc import Callable, Collection, Iterator

import pyarrow as pa

from raytrain.config import SourceFormat
from raytrain.data.readers.arrow import arrow_head, read_arrow
from raytrain.data.readers.base import Chunk, ReadTask, Rows, SourceFile, Unreadable, in_chunks
from raytrain.data.readers.conll import COLUMNS, conll_rows, conllu_rows, has_sentence
from raytrain.data.readers.delimited import delimited_rows, header_of
from raytrain.data.readers.images import COLUMNS as IMAGE_COLUMNS
from raytrain.data.readers.images import image_groups, read_images
from raytrain.data.readers.json_files import json_rows, jsonl_rows
from raytrain.data.readers.parquet import parquet_footer, read_parquet
from raytrain.data.readers.sql import query_head, read_query
from raytrain.data.readers.text import CANT_BE_READ, text_rows, why_unreadable
from raytrain.errors import DataError

ROWS_TO_LOOK_AT = 100  # to find the column names of a JSON file whose first rows are broken

# Those of `cutting.CUT_AT` take a part of the file too, as a Span.
_ROWS: dict[SourceFormat, Callable[..., Rows]] = {
    SourceFormat.JSONL: jsonl_rows,
    SourceFormat.JSON: json_rows,
    SourceFormat.CSV: delimited_rows,
    SourceFormat.TSV: delimited_rows,
    SourceFormat.TXT: text_rows,
    SourceFormat.CONLL: conll_rows,
    SourceFormat.CONLLU: conllu_rows,
}


class NoRowsError(Exception):
    """A file without a row."""


def read_chunks(task: ReadTask, columns: Collection[str] | None = None) -> Iterator[Chunk]:
    """The rows of a read task, at most CHUNK_ROWS at a time.

    Args:
        columns: Columns that are needed; the others are not read. None: all.

    Raises:
        DataError: The file is damaged so that the start of its next row can't be found.
    """
    if task.file.format == SourceFormat.PARQUET:
        yield from read_parquet(task, None if columns is None else list(columns))
        return
    if task.file.format == SourceFormat.ARROW:
        yield from read_arrow(task.file, None if columns is None else list(columns))
        return
    if task.file.format == SourceFormat.SQL:
        yield from read_query(task.file, columns)
        return
    if task.file.format == SourceFormat.IMAGES:
        try:
            yield from read_images(task, columns)
        except OSError as error:
            raise DataError(f"{task.file.path} can't be listed: {why_unreadable(error)}") from None
        return
    try:
        rows = _ROWS[task.file.format]
        found = rows(task.file) if task.span is None else rows(task.file, task.span)
        yield from in_chunks(found, task.file.path, columns)
    except (*CANT_BE_READ, ValueError) as error:
        reason = why_unreadable(error)
        raise DataError(f"{task.file.path} can't be read to its end (truncated?): {reason}") from None


def head_of(file: SourceFile, columns: Collection[str], num_rows: int) -> Chunk:
    """The first rows of a text file, as `read_chunks` gives them. Raises what `column_names` raises."""
    if file.format == SourceFormat.SQL:
        return query_head(file, num_rows, columns)
    rows = itertools.islice(_ROWS[file.format](file), num_rows)
    return next(in_chunks(rows, file.path, columns), Chunk(pa.table({})))


def column_names(file: SourceFile) -> list[str]:
    """A file's columns, from its footer or its first rows.

    Raises:
        NoRowsError: The file has no rows.
        OSError, ValueError: The file is damaged.
    """
    match file.format:
        case SourceFormat.PARQUET:
            names, row_groups = parquet_footer(file)
            if not sum(row_groups):
                raise NoRowsError
            return names
        case SourceFormat.ARROW:
            names, has_rows = arrow_head(file)
            if not has_rows:
                raise NoRowsError
            return names
        case SourceFormat.SQL:
            head = query_head(file, ROWS_TO_LOOK_AT)
            if not len(head.table) and not head.bad_rows:
                raise NoRowsError
            return head.table.column_names[:-1]
        case SourceFormat.IMAGES:
            if not image_groups(file):
                raise NoRowsError
            return IMAGE_COLUMNS
        case SourceFormat.JSONL | SourceFormat.JSON:
            # A broken row is reported when all are read, as data.on_error decides; here only the names matter.
            rows = list(itertools.islice(_ROWS[file.format](file), ROWS_TO_LOOK_AT))
            if not rows:
                raise NoRowsError
            found = dict.fromkeys(name for _, values in rows if isinstance(values, dict) for name in values)
            if not found:
                row, first = rows[0]
                reason = first.reason if isinstance(first, Unreadable) else "an object without keys"
                what = "a list of objects, or " if file.format == SourceFormat.JSON else ""
                raise ValueError(f"row {row}: {reason}; such a file holds {what}one JSON object per line")
            return list(found)
        case SourceFormat.CSV | SourceFormat.TSV:
            header = header_of(file)
            if next(delimited_rows(file), None) is None:
                raise NoRowsError
            return header
        case SourceFormat.CONLL | SourceFormat.CONLLU:
            if not has_sentence(file):
                raise NoRowsError
            return COLUMNS
    if next(text_rows(file), None) is None:
        raise NoRowsError
    return ["text"]
