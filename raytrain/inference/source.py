"""The input and the output of a prediction, checked before anything is started."""

import os
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from raytrain.config import RunConfig
from raytrain.data.listing import real_path
from raytrain.data.parallel import Checked, in_threads
from raytrain.data.readers import NoRowsError, column_names
from raytrain.data.readers.base import ROW, BadRow, Chunk, SourceFile, row_itself
from raytrain.data.sources import check_sources
from raytrain.errors import ConfigError, did_you_mean
from raytrain.inference.output import ASSEMBLING, SHARD, Target
from raytrain.inference.texts import stand_in, takes_texts
from raytrain.storage import Storage
from raytrain.tasks.base import RowError, Task


def check_source(
    config: RunConfig,
    task: Task,
    columns: Sequence[str] | None,
    added: Sequence[str],
    checked: Checked,
    judged: Sequence[str] | None = None,
    by: str | None = None,
) -> list[SourceFile]:
    """The files of the input that have rows.

    Args:
        columns: Those that are passed through; None: all.
        added: Those that the prediction adds.
        judged: Columns that are needed beside those of the task's inputs, such as the targets; None: none, and texts
            may stand for words.
        by: A column that an evaluation divides the rows by.

    Raises DataError or ConfigError when the rows can't be predicted.
    """
    asked = _Asked(task, judged or ())
    if judged is None:
        files = _listed(config, asked, checked)
    else:
        files = check_sources(config.data, asked, "test", checked)["test"]  # type: ignore[arg-type]
    found: dict[str, None] = {}
    for file, names in zip(files, in_threads(_columns_of, files), strict=True):
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise ConfigError(f"{file.path} has {names.count(twice)} columns named {twice!r}; rename all but one")
        found.update(dict.fromkeys(names))
    passed = list(found) if columns is None else list(columns)
    if unknown := [name for name in passed if name not in found]:
        hint = did_you_mean(unknown[0], found)
        raise ConfigError(f"--columns {unknown[0]}: the input has no such column; it has {', '.join(found)}{hint}")
    if by is not None and by not in found:
        raise ConfigError(f"--by {by}: no such column; the input has {', '.join(found)}{did_you_mean(by, found)}")
    if clash := [name for name in added if name in passed]:
        raise ConfigError(
            f"the input has a column {clash[0]!r} already, which the prediction would add: name the columns to keep "
            "with --columns, or rename it"
        )
    return files


class _Asked:
    """A task as the check of the source files sees it: with its inputs, and the columns that are needed beside them."""

    def __init__(self, task: Task, judged: Sequence[str]):
        self.task, self.columns = task, [*task.input_columns(), *judged]

    def required_columns(self) -> list[str]:
        return self.columns

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def _listed(config: RunConfig, asked: Any, checked: Checked) -> list[SourceFile]:
    """The files that have rows and the columns of the inputs; for words, a column of texts will do, and for
    conversations a question."""
    words, others = asked.word_columns(), asked.stand_ins()

    def suffices(columns: list[str]) -> bool:
        if others:
            return stand_in(asked.task, columns) is not None
        return takes_texts(asked.task, columns) or words[0] in columns

    if words or others:
        asked.columns = []
        files = check_sources(config.data, asked, "test", checked)["test"]
        if all(map(suffices, in_threads(_columns_of, files))):
            return files
        asked.columns = others[:1] or asked.input_columns()
    return check_sources(config.data, asked, "test", checked)["test"]


def _columns_of(file: SourceFile) -> list[str]:
    try:
        return column_names(file)
    except NoRowsError:
        return []


def check_target(target: Target, files: list[SourceFile], *, overwrite: bool) -> None:
    """Raises ConfigError when the target, or the file of the rows without a prediction, is there already or is read
    from. What a command has left that was killed while it wrote them is replaced."""
    path, refused = target.parent.path_of(target.name), target.parent.path_of(target.refused)
    _check_not_read(path, refused, target.work.path_of(), files)
    is_left = target.work.exists(ASSEMBLING)
    is_whole = target.work.local_path() is not None  # a file system has all of the predictions or nothing
    if target.parent.exists(target.name):
        if _is_file(target.parent, target.name) == target.is_folder:
            there, meant = ("file", "folder") if target.is_folder else ("folder", "file")
            raise ConfigError(f"--out {path} is a {there}: give the name of a {meant}")
        if not overwrite and (is_whole or not is_left):
            raise ConfigError(f"--out {path} exists already: give another name, or --overwrite")
        names = target.parent.list_names(target.name) if target.is_folder else []
        if others := [name for name in names if not SHARD.fullmatch(name)]:
            raise ConfigError(f"--out {path} also holds {others[0]}, which is not of a prediction: give another name")
    if target.parent.exists(target.refused):
        if not _is_file(target.parent, target.refused):
            raise ConfigError(f"--out {path}: {refused} is a folder, and rows are written there: give another name")
        if not overwrite and not is_left:
            raise ConfigError(
                f"--out {path}: {refused} exists already, and rows without a prediction are written there: give "
                "another name, or --overwrite"
            )


def _check_not_read(path: str, refused: str, work: str, files: list[SourceFile]) -> None:
    """Raises ConfigError when what is written is an input, under whatever name."""
    out, bad, parts = map(_real, (path, refused, work))
    for file in files:
        read = real_path(file)
        if read == out or read.startswith(f"{out}/"):
            raise ConfigError(f"--out {path} is the input itself: give another name")
        if read == bad or read.startswith((f"{bad}/", f"{parts}/")):
            where = refused if read.startswith(bad) else work
            raise ConfigError(
                f"--out {path}: {file.path} is read, and {where} is written beside the predictions: give another name"
            )


def _real(path: str) -> str:
    """Where a file is, as `real_path` tells it of those that are read."""
    return path if "://" in path else os.path.realpath(path)


def _is_file(folder: Storage, name: str) -> bool:
    """Whether what is there is a file and not a folder."""
    try:
        folder.size_bytes(name)
    except FileNotFoundError:
        return False
    return True


def without_clashes(chunk: Chunk, path: str, added: Sequence[str]) -> Chunk:
    """Rows without the columns that the prediction adds. A row that has a value there can't be used: such columns are
    refused before anything starts, but of some files only the beginning is looked at then."""
    table, bad = chunk.table, list(chunk.bad_rows)
    for name in [name for name in added if name in table.column_names]:
        is_empty = pc.is_null(table[name])
        for values in table.filter(pc.invert(is_empty)).to_pylist():
            reason = f"has a value in {name}, a column that the prediction adds: name the columns to keep, or rename it"
            bad.append(BadRow(path, values[ROW], reason, RowError.BAD_INPUT, row_itself(values)))
        table = table.filter(is_empty).drop_columns(name)
    return Chunk(table, bad)


def absolute(path: str) -> str:
    """A local path in full; a URI as it is."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
