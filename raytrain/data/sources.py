"""Source files: which ones a split has, whether they can be used, and how their rows are read. No Ray, no torch.

Rows are read in chunks, Arrow tables that carry the user's columns and `__row__`: the row's 1-based place in its
file (for text formats its line). A row that can't be parsed is a BadRow, never an exception that loses the rest.
"""

import csv
import difflib
import glob
import io
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raytrain.config import DataConfig, SourceConfig, SourceFormat, ValidationConfig
from raytrain.errors import DataError
from raytrain.storage import Storage
from raytrain.tasks.base import Task

ROW = "__row__"
CHUNK_ROWS = 4096
# Rows of Parquet that one read task takes; several tasks share a large file.
TASK_ROWS = 65_536

ENDINGS = {
    ".parquet": SourceFormat.PARQUET,
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".csv": SourceFormat.CSV,
    ".tsv": SourceFormat.TSV,
    ".txt": SourceFormat.TXT,
    ".conll": SourceFormat.CONLL,
    ".conllu": SourceFormat.CONLL,
}


@dataclass(frozen=True)
class SourceFile:
    """One file of a split."""

    path: str
    format: SourceFormat
    num_bytes: int
    modified_at: str
    """ISO time of the last change; with path and size the file's identity."""


@dataclass(frozen=True)
class ReadTask:
    """A part of a file that is read in one go: whole files, but for large Parquet, which is cut at row groups."""

    split: str
    file_of_split: int
    """Ordinal of the file in its split."""
    file: SourceFile
    row_groups: tuple[int, int] | None = None
    """Parquet row groups [start, stop); None: the whole file."""
    first_row: int = 1
    """1-based row of the file that the first row group starts with."""


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used."""

    path: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}: {self.reason}"


@dataclass
class Chunk:
    """Rows of a file, and those that could not be parsed."""

    table: pa.Table
    bad_rows: list[BadRow] = field(default_factory=list)


def list_files(source: SourceConfig | ValidationConfig, option: str) -> list[SourceFile]:
    """The files of a source, sorted by path within each path that is given.

    Args:
        option: Dotted option of the source, such as data.train, for messages.

    Raises:
        DataError: A path matches nothing, can't be read, or has an ending that says no format.
    """
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    files = [file for path in paths for file in _expand(path, source.format, option)]
    if not files:
        raise DataError(f"{option}.path is empty: give a file, a folder, a glob, or a list of these")
    return files


def check_sources(data: DataConfig, task: Task) -> dict[str, list[SourceFile]]:
    """The files of every split, after checking what can be checked at once: they are there, are not empty, can be
    read, have the task's columns.

    Raises:
        DataError: Naming the option, the file, and what to do.
    """
    splits: dict[str, list[SourceFile]] = {"train": list_files(data.train, "data.train")}
    if data.validation is not None and data.validation.path is not None:
        splits["validation"] = list_files(data.validation, "data.validation")
    if data.test is not None:
        splits["test"] = list_files(data.test, "data.test")
    for split, files in splits.items():
        for file in files:
            _check_file(file, f"data.{split}.path", task.required_columns())
    return splits


def read_tasks(splits: dict[str, list[SourceFile]]) -> list[ReadTask]:
    """How the files are shared out to read tasks, in the order of the prepared data."""
    return [
        task for split, files in splits.items() for i, file in enumerate(files) for task in _tasks_of(split, i, file)
    ]


def read_chunks(task: ReadTask) -> Iterator[Chunk]:
    """The rows of a read task, at most CHUNK_ROWS at a time."""
    readers = {
        SourceFormat.PARQUET: _read_parquet,
        SourceFormat.JSONL: _read_jsonl,
        SourceFormat.CSV: _read_delimited,
        SourceFormat.TSV: _read_delimited,
        SourceFormat.TXT: _read_text,
        SourceFormat.CONLL: _read_conll,
    }
    return readers[task.file.format](task)


def _expand(path: str, format: SourceFormat, option: str) -> list[SourceFile]:
    """A path, folder or glob as files."""
    if "://" not in path and glob.has_magic(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if not matches:
            raise DataError(f"{option}.path {path!r} matches no file")
        return [_file(match, format, option) for match in matches]
    fs, inner = _open_fs(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{option}.path {path!r}: no such file or folder{_nearest_file(path)}")
    if info.type == pafs.FileType.File:
        return [_file(path, format, option)]
    infos = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    names = sorted(i.path for i in infos if i.type == pafs.FileType.File and not i.base_name.startswith((".", "_")))
    known = [name for name in names if format != SourceFormat.AUTO or _ending(name) in ENDINGS]
    if not known:
        raise DataError(f"{option}.path {path!r}: this folder holds no file with a known ending ({', '.join(ENDINGS)})")
    scheme = f"{path.split('://')[0]}://" if "://" in path else ""
    return [_file(f"{scheme}{name}", format, option) for name in known]


def _file(path: str, format: SourceFormat, option: str) -> SourceFile:
    if format == SourceFormat.AUTO:
        if _ending(path) not in ENDINGS:
            raise DataError(
                f"{option}.path {path!r}: the ending says no format ({', '.join(ENDINGS)}); set {option}.format to "
                f"one of {', '.join(f.value for f in SourceFormat if f != SourceFormat.AUTO)}"
            )
        format = ENDINGS[_ending(path)]
    fs, inner = _open_fs(path)
    info = fs.get_file_info(inner)
    modified_at = info.mtime.isoformat() if info.mtime else ""
    full = path if "://" in path else os.path.abspath(path)
    return SourceFile(full, format, info.size or 0, modified_at)


def _ending(path: str) -> str:
    return os.path.splitext(path.removesuffix(".gz"))[1].lower()


def _open_fs(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" in path:
        return pafs.FileSystem.from_uri(path)
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))


def _nearest_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if "://" in path or not os.path.isdir(folder):
        return ""
    close = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), 1)
    return f"; did you mean {os.path.join(os.path.dirname(path), close[0])}?" if close else ""


def _check_file(file: SourceFile, option: str, columns: list[str]) -> None:
    if file.num_bytes == 0:
        raise DataError(f"{option}: {file.path} is empty (0 bytes)")
    try:
        found = _columns_of(file)
    except PermissionError:
        raise DataError(f"{option}: no permission to read {file.path}") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{option}: {file.path} is no readable {file.format} file (half-written?): {reason}") from None
    missing = [column for column in columns if column not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], found, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(
            f"{option}: {file.path} has no column {missing[0]!r} (it has {', '.join(map(repr, found))}){hint} "
            "Set the task's *_column options to the names in your files"
        )


def _columns_of(file: SourceFile) -> list[str]:
    """Column names, from the footer or the first line. Raises ArrowInvalid or OSError when the file is broken."""
    match file.format:
        case SourceFormat.PARQUET:
            with _open(file) as opened:
                footer = pq.ParquetFile(opened)
                if footer.metadata.num_rows == 0:
                    raise pa.ArrowInvalid("it has no rows")
                return footer.schema_arrow.names
        case SourceFormat.JSONL:
            # A broken line is found when all are read, with its row; here only the names matter.
            for line in _lines(file):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise pa.ArrowInvalid(f"row 1: {error}") from None
                    if not isinstance(row, dict):
                        raise pa.ArrowInvalid("row 1 is no JSON object; a JSONL file has one object a line")
                    return list(row)
            raise pa.ArrowInvalid("it has no rows")
        case SourceFormat.CSV | SourceFormat.TSV:
            header = next(_delimited_rows(file), None)
            if header is None:
                raise pa.ArrowInvalid("it has no rows")
            return header
        case SourceFormat.CONLL:
            return ["tokens", "tags", "document"]
    return ["text"]


def _tasks_of(split: str, file_of_split: int, file: SourceFile) -> list[ReadTask]:
    if file.format != SourceFormat.PARQUET:
        return [ReadTask(split, file_of_split, file)]
    with _open(file) as opened:
        metadata = pq.ParquetFile(opened).metadata
    tasks, start, first_row, rows = [], 0, 1, 0
    for i in range(metadata.num_row_groups):
        rows += metadata.row_group(i).num_rows
        if rows >= TASK_ROWS or i == metadata.num_row_groups - 1:
            tasks.append(ReadTask(split, file_of_split, file, (start, i + 1), first_row))
            start, first_row, rows = i + 1, first_row + rows, 0
    return tasks


def _open(file: SourceFile) -> pa.NativeFile:
    folder, _, name = file.path.rpartition("/")
    return Storage(folder or "/").open_input(name)


def _read_parquet(task: ReadTask) -> Iterator[Chunk]:
    row = task.first_row
    with _open(task.file) as opened:
        file = pq.ParquetFile(opened)
        start, stop = task.row_groups or (0, file.metadata.num_row_groups)
        try:
            for batch in file.iter_batches(CHUNK_ROWS, row_groups=list(range(start, stop))):
                table = pa.Table.from_batches([batch])
                yield Chunk(table.append_column(ROW, pa.array(range(row, row + len(table)), pa.int64())))
                row += len(table)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{task.file.path}, near row {row}: broken Parquet: {error}") from None


def _lines(file: SourceFile) -> Iterator[str]:
    """Lines of a text file, without their ends. Invalid UTF-8 becomes U+FFFD, which the callers refuse."""
    with _open(file) as opened:
        raw: Any = pa.CompressedInputStream(opened, "gzip") if file.path.endswith(".gz") else opened
        yield from io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline=None)


def _in_chunks(rows: Iterator[tuple[int, dict[str, Any] | str]], path: str) -> Iterator[Chunk]:
    """(row, its columns, or the reason why it has none) as chunks."""
    good: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for row, values in rows:
        if isinstance(values, str):
            bad.append(BadRow(path, row, values))
        else:
            good.append({**values, ROW: row})
        if len(good) + len(bad) >= CHUNK_ROWS:
            yield Chunk(_table(good), bad)
            good, bad = [], []
    if good or bad:
        yield Chunk(_table(good), bad)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row)) or [ROW]
    columns = {name: [row.get(name) for row in rows] for name in names}
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of several types: the task sees text
            arrays[name] = pa.array([v if v is None else v if isinstance(v, str) else json.dumps(v) for v in values])
    return pa.table(arrays)


def _read_jsonl(task: ReadTask) -> Iterator[Chunk]:
    def rows() -> Iterator[tuple[int, dict[str, Any] | str]]:
        for number, line in enumerate(_lines(task.file), 1):
            if not line.strip():
                continue
            if "\ufffd" in line:
                yield number, "invalid UTF-8"
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, f"malformed JSON ({error})"
                continue
            yield number, row if isinstance(row, dict) else "no JSON object"

    return _in_chunks(rows(), task.file.path)


def _delimited_rows(file: SourceFile) -> Iterator[list[str]]:
    if file.format == SourceFormat.TSV:
        return csv.reader(_lines(file), delimiter="\t")
    return csv.reader(_lines(file))


def _read_delimited(task: ReadTask) -> Iterator[Chunk]:
    def rows() -> Iterator[tuple[int, dict[str, Any] | str]]:
        reader = _delimited_rows(task.file)
        header = next(reader)
        for number, values in enumerate(reader, 2):
            if not values:
                continue
            if len(values) != len(header):
                yield number, f"{len(values)} fields where the header has {len(header)}"
            elif any("\ufffd" in value for value in values):
                yield number, "invalid UTF-8"
            else:
                yield number, dict(zip(header, values, strict=True))

    return _in_chunks(rows(), task.file.path)


def _read_text(task: ReadTask) -> Iterator[Chunk]:
    def rows() -> Iterator[tuple[int, dict[str, Any] | str]]:
        for number, line in enumerate(_lines(task.file), 1):
            if line.strip():
                yield number, "invalid UTF-8" if "\ufffd" in line else {"text": line.rstrip("\n")}

    return _in_chunks(rows(), task.file.path)


def _read_conll(task: ReadTask) -> Iterator[Chunk]:
    """Sentences of whitespace-separated columns, blank lines between; first column the word, last the tag."""

    def rows() -> Iterator[tuple[int, dict[str, Any] | str]]:
        words: list[str] = []
        tags: list[str] = []
        first, document, width, reason = 0, 0, 0, ""
        has_comments = task.file.path.endswith(".conllu")  # elsewhere "#" is a word
        for number, line in enumerate(itertools.chain(_lines(task.file), [""]), 1):
            if has_comments and line.startswith("#"):
                continue
            columns = line.split()
            if columns and columns[0] != "-DOCSTART-":
                first = first or number
                width = width or len(columns)
                if len(columns) < 2 or len(columns) != width:
                    reason = reason or f"line {number} has {len(columns)} columns, the ones before it {max(width, 2)}"
                if "\ufffd" in line:
                    reason = reason or f"line {number} has invalid UTF-8"
                words.append(columns[0])
                tags.append(columns[-1])
                continue
            if words:
                yield first, reason or {"tokens": words, "tags": tags, "document": document}
                words, tags, first, reason = [], [], 0, ""
            document += bool(columns)  # the line is -DOCSTART-

    return _in_chunks(rows(), task.file.path)
