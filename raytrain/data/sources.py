"""Source files: which ones a split has, whether they can be used, and how they are divided into read tasks. No Ray, no
torch.

`readers` reads their rows.
"""

import difflib
import glob
import os
import re

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raytrain.config import SPLITS, DataConfig, SourceConfig, SourceFormat, ValidationConfig
from raytrain.data.readers import (
    CHUNK_ROWS,
    ROW,
    BadRow,
    Chunk,
    ReadTask,
    SourceFile,
    column_names,
    first_line,
    open_source,
    read_chunks,
)
from raytrain.errors import DataError
from raytrain.tasks.base import Task

__all__ = [
    "CHUNK_ROWS",
    "ROW",
    "BadRow",
    "Chunk",
    "ReadTask",
    "SourceFile",
    "check_sources",
    "list_files",
    "read_chunks",
    "read_tasks",
]

# Rows of Parquet per read task; a large file is divided among several tasks.
TASK_ROWS = 65_536

ENDINGS = {
    ".parquet": SourceFormat.PARQUET,
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".csv": SourceFormat.CSV,
    ".tsv": SourceFormat.TSV,
    ".txt": SourceFormat.TXT,
    ".conll": SourceFormat.CONLL,
    ".conllu": SourceFormat.CONLLU,
}


def list_files(source: SourceConfig | ValidationConfig, option: str) -> list[SourceFile]:
    """The files of a source, sorted by path within each path that is given.

    Args:
        option: Dotted option of the source, such as data.train, for messages.

    Raises:
        DataError: A path matches nothing, can't be read, or has an ending that does not tell the format.
    """
    paths = [source.path] if isinstance(source.path, str) else source.path or []
    files = [file for path in paths for file in _expand(path, source.format, option)]
    if not files:
        raise DataError(f"{option}.path is empty: give a file, a folder, a glob, or a list of these")
    return files


def check_sources(data: DataConfig, task: Task, only: str | None = None) -> dict[str, list[SourceFile]]:
    """The files of every split, after a quick check that they exist, are not empty, can be read, and have the columns
    of the task.

    Args:
        only: The only split to check; None: all splits.

    Raises:
        DataError: The message names the option, the file, and what to do.
    """
    sources = {split: getattr(data, split) for split in SPLITS if only in (None, split)}
    splits = {
        split: list_files(source, f"data.{split}")
        for split, source in sources.items()
        if source is not None and source.path is not None
    }
    for split, files in splits.items():
        for file in files:
            _check_file(file, f"data.{split}.path", task)
    return splits


def read_tasks(splits: dict[str, list[SourceFile]]) -> list[ReadTask]:
    """The read tasks of all files, in the order of the prepared data."""
    return [
        task for split, files in splits.items() for i, file in enumerate(files) for task in _tasks_of(split, i, file)
    ]


def _expand(path: str, format: SourceFormat, option: str) -> list[SourceFile]:
    """The files that a path, folder or glob stands for."""
    if "://" not in path:
        path = os.path.expanduser(path)
    try:
        return _expand_readable(path, format, option)
    except PermissionError:
        raise DataError(f"{option}.path {path!r}: no permission to read it") from None
    except (OSError, pa.ArrowInvalid) as error:  # an unknown scheme, no credentials, no such bucket
        raise DataError(f"{option}.path {path!r} can't be opened: {first_line(error)}") from None


def _expand_readable(path: str, format: SourceFormat, option: str) -> list[SourceFile]:
    if "://" in path and "*" in path:
        matches = _glob_uri(path)
    elif "://" not in path and glob.has_magic(path) and not os.path.exists(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    else:
        return _expand_plain(path, format, option)
    if not matches:
        raise DataError(f"{option}.path {path!r} matches no file{_looked_for(path)}")
    return [_file(match, format, option) for match in matches]


def _expand_plain(path: str, format: SourceFormat, option: str) -> list[SourceFile]:
    """A file, or the files below a folder."""
    fs, inner = _open_fs(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{option}.path {path!r}: no such file or folder{_looked_for(path)}{_nearest_file(path)}")
    if info.type == pafs.FileType.File:
        return [_file(path, format, option)]
    names = _names_below(fs, inner)
    known = [name for name in names if format != SourceFormat.AUTO or _ending(name) in ENDINGS]
    if not known:
        raise DataError(f"{option}.path {path!r}: this folder has no file with a known ending ({', '.join(ENDINGS)})")
    scheme = f"{path.split('://')[0]}://" if "://" in path else ""
    return [_file(f"{scheme}{name}", format, option) for name in known]


def _names_below(fs: pafs.FileSystem, folder: str) -> list[str]:
    """Files below a folder, sorted, without files that programs write for themselves (_SUCCESS, .crc)."""
    infos = fs.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(i.path for i in infos if i.type == pafs.FileType.File and not i.base_name.startswith((".", "_")))


def _glob_uri(path: str) -> list[str]:
    """URIs that match a pattern with * and **. Only * is special: in a URI, ? starts the query."""
    scheme = path.split("://")[0]
    fs, pattern = _open_fs(path)
    folder = pattern[: pattern.index("*")].rpartition("/")[0]
    special = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    matcher = re.compile("".join(special.get(part) or re.escape(part) for part in parts))
    return [f"{scheme}://{name}" for name in _names_below(fs, folder) if matcher.fullmatch(name)]


def _file(path: str, format: SourceFormat, option: str) -> SourceFile:
    if format == SourceFormat.AUTO:
        if _ending(path) not in ENDINGS:
            raise DataError(
                f"{option}.path {path!r}: unknown ending (known: {', '.join(ENDINGS)}); set {option}.format to "
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


def _looked_for(path: str) -> str:
    """The absolute form of a relative path, for messages: it is relative to the command's working directory."""
    return "" if "://" in path or os.path.isabs(path) else f" (looked for {os.path.abspath(path)})"


def _nearest_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if "://" in path or not os.path.isdir(folder):
        return ""
    close = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), 1)
    return f"; did you mean {os.path.join(os.path.dirname(path), close[0])}?" if close else ""


def _check_file(file: SourceFile, option: str, task: Task) -> None:
    if file.num_bytes == 0:
        raise DataError(f"{option}: {file.path} is empty (0 bytes)")
    try:
        found = column_names(file)
    except PermissionError:
        raise DataError(f"{option}: no permission to read {file.path}") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{option}: {file.path} is not a readable {file.format} file (truncated?): {reason}") from None
    missing = [column for column in task.required_columns() if column not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], found, 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise DataError(
            f"{option}: {file.path} has no column {missing[0]!r} (it has {', '.join(map(repr, found))}){hint} "
            f"Set {_column_option(task, missing[0])} to the name in your files"
        )


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
