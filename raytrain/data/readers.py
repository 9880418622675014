"""Rows of source files in any supported format. No Ray, no torch.

Rows are read in chunks: Arrow tables with the user's columns and `__row__`, the row's 1-based position in its file (for
text formats, the line it starts in). A row that can't be parsed becomes a BadRow, not an exception that loses the other
rows; a file that can't be read any further is a DataError.
"""

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.config import SourceFormat
from raytrain.errors import DataError
from raytrain.storage import Storage
from raytrain.tasks.base import RowError

ROW = "__row__"
CHUNK_ROWS = 4096
DOCUMENT_START = "-DOCSTART-"
ROWS_TO_LOOK_AT = 100  # to find the column names of a JSONL file whose first lines are broken


@dataclass(frozen=True)
class SourceFile:
    """One file of a split."""

    path: str
    format: SourceFormat
    num_bytes: int
    modified_at: str
    """ISO time of the last modification; with path and size, the file's identity."""


@dataclass(frozen=True)
class ReadTask:
    """A part of a file that is read at once: the whole file, but large Parquet files are split at row groups."""

    split: str
    file_of_split: int
    """Index of the file in its split."""
    file: SourceFile
    row_groups: tuple[int, int] | None = None
    """Parquet row groups [start, stop); None: the whole file."""
    first_row: int = 1
    """1-based position in the file of the first row group's first row."""


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used."""

    path: str
    row: int
    reason: str
    code: RowError = RowError.UNREADABLE

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}: {self.reason}"


@dataclass
class Chunk:
    """Rows of a file, and those that could not be parsed."""

    table: pa.Table
    bad_rows: list[BadRow] = field(default_factory=list)


def read_chunks(task: ReadTask, columns: Iterable[str] | None = None) -> Iterator[Chunk]:
    """The rows of a read task, at most CHUNK_ROWS at a time.

    Args:
        columns: Columns that are needed; Parquet skips the others. None: all.

    Raises:
        DataError: The file is damaged so that the start of its next row can't be found.
    """
    readers = {
        SourceFormat.JSONL: _jsonl_rows,
        SourceFormat.CSV: _delimited_rows,
        SourceFormat.TSV: _delimited_rows,
        SourceFormat.TXT: _text_rows,
        SourceFormat.CONLL: _conll_rows,
        SourceFormat.CONLLU: _conllu_rows,
    }
    if task.file.format == SourceFormat.PARQUET:
        yield from _read_parquet(task, columns)
        return
    try:
        yield from _in_chunks(readers[task.file.format](task.file), task.file.path)
    except (OSError, pa.ArrowInvalid, csv.Error) as error:
        raise DataError(f"{task.file.path} can't be read to its end (truncated?): {first_line(error)}") from None


def column_names(file: SourceFile) -> list[str]:
    """A file's columns, from its footer or its first rows.

    Raises:
        OSError, pa.ArrowInvalid: The file is damaged, or has no rows.
    """
    match file.format:
        case SourceFormat.PARQUET:
            with open_source(file) as opened:
                footer = pq.ParquetFile(opened)
                if footer.metadata.num_rows == 0:
                    raise pa.ArrowInvalid("it has no rows")
                return footer.schema_arrow.names
        case SourceFormat.JSONL:
            # A broken line is reported when all are read, as data.bad_rows decides; here only the names matter.
            rows = list(itertools.islice(_jsonl_rows(file), ROWS_TO_LOOK_AT))
            good = next((values for _, values in rows if isinstance(values, dict)), None)
            if good is None:
                row, reason = rows[0] if rows else (1, "it has no rows")
                raise pa.ArrowInvalid(f"row {row}: {reason}; a JSONL file has one JSON object per line")
            return list(good)
        case SourceFormat.CSV | SourceFormat.TSV:
            reader = _delimited_reader(file)
            header = next(reader, None)
            if header is None or not any(reader):
                raise pa.ArrowInvalid("it has no rows")
            return header
        case SourceFormat.CONLL | SourceFormat.CONLLU:
            if not any(_words(line) for line in _lines(file) if not _is_comment(line, file)):
                raise pa.ArrowInvalid("it has no rows")
            return ["tokens", "tags", "document"]
    if not any(line.strip() for line in _lines(file)):
        raise pa.ArrowInvalid("it has no rows")
    return ["text"]


def open_source(file: SourceFile) -> pa.NativeFile:
    """The file, opened for random access. Raises OSError."""
    folder, _, name = file.path.rpartition("/")
    return Storage(folder or "/").open_input(name)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; Arrow appends the place in its source that raised it."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_parquet(task: ReadTask, columns: Iterable[str] | None) -> Iterator[Chunk]:
    row = task.first_row
    try:
        with open_source(task.file) as opened:
            file = pq.ParquetFile(opened)
            start, stop = task.row_groups or (0, file.metadata.num_row_groups)
            wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(CHUNK_ROWS, row_groups=list(range(start, stop)), columns=wanted):
                table = pa.Table.from_batches([batch])
                yield Chunk(table.append_column(ROW, pa.array(range(row, row + len(table)), pa.int64())))
                row += len(table)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{task.file.path}, near row {row}: broken Parquet: {first_line(error)}") from None


_Rows = Iterator[tuple[int, dict[str, Any] | str]]
"""(row, its columns, or the reason why it has none)."""


def _in_chunks(rows: _Rows, path: str) -> Iterator[Chunk]:
    """Rows as chunks. Columns of earlier rows are kept, so that each chunk has the columns of the first row."""
    names: dict[str, None] = {}
    good: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for row, values in rows:
        if isinstance(values, str):
            bad.append(BadRow(path, row, values))
        else:
            names.update(dict.fromkeys(values))
            good.append({**values, ROW: row})
        if len(good) + len(bad) >= CHUNK_ROWS:
            yield Chunk(_table(good, [*names, ROW]), bad)
            good, bad = [], []
    if good or bad:
        yield Chunk(_table(good, [*names, ROW]), bad)


def _table(rows: list[dict[str, Any]], names: list[str]) -> pa.Table:
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    """Values as Arrow. A column with several types, or with numbers beyond 64 bits, becomes text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values])


def _lines(file: SourceFile) -> Iterator[str]:
    """Lines of a text file with their line ends, without a byte order mark.

    Bytes that are not UTF-8 become lone surrogates, which a valid file can't contain; `_is_valid` finds them.
    """
    with open_source(file) as opened:
        raw: Any = pa.CompressedInputStream(opened, "gzip") if file.path.endswith(".gz") else opened
        yield from io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline=None)


def _is_valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl_rows(file: SourceFile) -> _Rows:
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            yield number, _json_row(line)


def _json_row(line: str) -> dict[str, Any] | str:
    """The object in a line, or why it can't be read."""
    if not _is_valid(line):
        return "invalid UTF-8"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"malformed JSON ({error})"
    if not isinstance(row, dict):
        return "not a JSON object"
    # An escape can spell half a surrogate pair, which is not a character; texts cut by UTF-16 length contain such
    # halves.
    if "\\ud" in line.lower() and not _is_valid(json.dumps(row, ensure_ascii=False)):
        return "half a surrogate pair (a \\ud... escape without its partner)"
    return row


def _delimited_reader(file: SourceFile) -> Any:
    csv.field_size_limit(sys.maxsize)  # csv's default, 128 KiB, is less than a long document
    if file.format == SourceFormat.TSV:  # text/tab-separated-values has no quoting: a quote is an ordinary character
        return csv.reader(_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(_lines(file))  # RFC 4180


def _delimited_rows(file: SourceFile) -> _Rows:
    reader = _delimited_reader(file)
    header = next(reader)
    first = reader.line_num + 1
    for values in reader:
        last = reader.line_num
        if values:
            yield first, _delimited_row(header, values, last - first)
        first = last + 1


def _delimited_row(header: list[str], values: list[str], num_more_lines: int) -> dict[str, Any] | str:
    if len(values) != len(header):
        hint = f" and continues for {num_more_lines} more lines: is a closing quote missing?" if num_more_lines else ""
        return f"{len(values)} fields where the header has {len(header)}{hint}"
    if not all(map(_is_valid, values)):
        return "invalid UTF-8"
    return dict(zip(header, values, strict=True))


def _text_rows(file: SourceFile) -> _Rows:
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            yield number, {"text": line.rstrip("\n")} if _is_valid(line) else "invalid UTF-8"


def _conll_rows(file: SourceFile) -> _Rows:
    """Sentences in whitespace-separated columns, with blank lines between; the first column is the word, the last its
    tag."""
    words: list[str] = []
    tags: list[str] = []
    first, document, width, reason = 0, 0, 0, ""
    for number, line in enumerate(itertools.chain(_lines(file), [""]), 1):
        columns = _words(line)
        if columns:
            first = first or number
            if len(columns) < 2 or (width and len(columns) != width):
                reason = reason or f"line {number} has {len(columns)} columns, and should have {width or 'at least 2'}"
            elif not _is_valid(line):
                reason = reason or f"line {number} has invalid UTF-8"
            else:
                width = len(columns)
            words.append(columns[0])
            tags.append(columns[-1])
            continue
        if words:
            yield first, reason or {"tokens": words, "tags": tags, "document": document}
            words, tags, first, reason = [], [], 0, ""
        document += bool(line.strip())  # this line is -DOCSTART-


def _conllu_rows(file: SourceFile) -> _Rows:
    """Sentences of CoNLL-U (universaldependencies.org/format.html): the word is FORM, its tag UPOS."""
    words: list[tuple[str, str]] = []
    first, document, reason = 0, 0, ""
    for number, line in enumerate(itertools.chain(_lines(file), [""]), 1):
        if _is_comment(line, file):
            document += line.startswith("# newdoc")
        elif line.strip():
            first = first or number
            columns = line.rstrip("\n").split("\t")
            wrong = _wrong_in_conllu(columns, line)
            reason = reason or (f"line {number} {wrong}" if wrong else "")
            if not wrong and columns[0].isdigit():  # 1-2 is a contraction of words that follow, 1.1 an empty node
                words.append((columns[1], columns[3]))
        elif first:
            tokens, tags = [word for word, _ in words], [tag for _, tag in words]
            yield first, reason or {"tokens": tokens, "tags": tags, "document": document}
            words, first, reason = [], 0, ""


def _wrong_in_conllu(columns: list[str], line: str) -> str:
    """Why a line of CoNLL-U can't be used, or an empty string."""
    if len(columns) != 10:
        return f"has {len(columns)} columns, and CoNLL-U has 10, separated by tabs"
    if not re.fullmatch(r"\d+([-.]\d+)?", columns[0]):
        return f"begins with {columns[0]!r} and not with the number of a word"
    if columns[0].isdigit() and columns[3] == "_":
        return "has no tag (UPOS, the fourth column, is _)"
    return "" if _is_valid(line) else "has invalid UTF-8"


def _is_comment(line: str, file: SourceFile) -> bool:
    """Whether it is a comment of CoNLL-U; in other formats "#" is a word."""
    return file.format == SourceFormat.CONLLU and line.startswith("#")


def _words(line: str) -> list[str]:
    """The columns of a CoNLL line; none for a line that ends a sentence."""
    columns = line.split()
    return [] if columns[:1] == [DOCUMENT_START] else columns
