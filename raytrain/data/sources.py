"""Source files: whether they can be used, and how they are divided into read tasks. No Ray, no torch.

`listing` finds them and `readers` reads their rows.
"""

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from raytrain.config import SPLITS, DataConfig, OnError
from raytrain.data.content import with_content
from raytrain.data.cutting import InParallel, bytes_per_task, spans_of
from raytrain.data.examined import Examined, HeadCheck, examine, row_groups_of
from raytrain.data.listing import list_split, real_path
from raytrain.data.parallel import Checked, in_threads
from raytrain.data.readers import column_names
from raytrain.data.readers.base import GROUPED, ReadTask, SourceFile
from raytrain.data.stages.clean import make_cleaner
from raytrain.errors import DataError
from raytrain.tasks.base import Task

logger = logging.getLogger(__name__)

# Rows of Parquet, or images, per read task; a large file is divided among several tasks.
TASK_ROWS = 65_536
# The first rows of this many text files of a split are read before Ray starts.
HEAD_FILES = 64


def check_sources(
    data: DataConfig, task: Task, only: str | None = None, checked: Checked | None = None
) -> dict[str, list[SourceFile]]:
    """The files of every split that have rows, after a quick check that they exist, can be read, have the columns of
    the task, and begin with rows that can be used.

    Args:
        only: The only split to check, for an evaluation; None: all splits.
        checked: Is told how many files are checked, if there are many.

    Raises:
        ConfigError: A rule of data.clean can't be applied.
        DataError: The message names the option, the file, and what to do.
    """
    cleaner = make_cleaner(data.clean, task)
    sources = {split: getattr(data, split) for split in SPLITS if only in (None, split)}
    splits = {
        split: list_split(source, f"data.{split}")
        for split, source in sources.items()
        if source is not None and (split == "train" or source.path is not None)
    }
    _check_no_file_twice(splits, has_sources=data.train.sources is not None)
    num_heads = HEAD_FILES if data.on_error == OnError.FAIL else 0
    items = [(split, file, i < num_heads) for split, files in splits.items() for i, file in enumerate(files)]
    ends = [(f"data.{split}", file) for split, files in splits.items() for file in dict.fromkeys((files[0], files[-1]))]

    def examine_one(item: tuple[str, SourceFile, bool]) -> Examined:
        split, file, with_head = item
        of_head = HeadCheck(cleaner, is_evaluation=only is not None) if with_head else None
        return examine(file, f"data.{split}", task, of_head, others=ends)

    found = iter(in_threads(examine_one, items, checked))
    splits = {split: _with_rows(files, f"data.{split}", found) for split, files in splits.items()}
    if data.validation is not None and data.validation.group_column is not None:
        _check_column("data.validation.group_column", data.validation.group_column, splits.get("train", []))
    if data.balance is not None and data.balance.column is not None:
        _check_column("data.balance.by", data.balance.column, splits.get("train", []))
    return with_content(splits)


def read_tasks(splits: dict[str, list[SourceFile]], run: InParallel = in_threads) -> list[ReadTask]:
    """The read tasks of all files, in the order of the prepared data. They depend on the files alone.

    Args:
        run: Applies a function to many parts of files at once; large text files are read once to cut them.
    """
    items = [(split, i, file) for split, files in splits.items() for i, file in enumerate(files)]
    files = [file for _, _, file in items]
    num_bytes = bytes_per_task(files)
    spans = spans_of(files, num_bytes, run)
    row_groups = in_threads(lambda file: row_groups_of(file) if file.format in GROUPED else (), files)
    tasks: list[ReadTask] = []
    for (split, place, file), rows, of_file in zip(items, row_groups, spans, strict=True):
        if rows:
            tasks += _tasks_of_groups(split, place, file, rows, num_bytes)
        else:
            whole = [ReadTask(split, place, file, num_bytes=file.num_bytes)]
            tasks += [ReadTask(split, place, file, span=s, num_bytes=s.stop - s.start) for s in of_file] or whole
    return tasks


def count_rows(files: Sequence[SourceFile]) -> int:
    """Rows of files whose rows come in groups. Raises OSError or pa.ArrowInvalid."""
    return sum(map(sum, in_threads(row_groups_of, files)))


@functools.cache
def _warn_once(message: str) -> None:
    """A command checks the sources several times."""
    logger.warning("%s", message)


def _check_no_file_twice(splits: dict[str, list[SourceFile]], *, has_sources: bool) -> None:
    """A file in two splits would measure the model on what it has learned; one that is named twice counts twice."""
    option_of: dict[str, str] = {}
    for split, files in splits.items():
        for file in files:
            of_source = f".sources.{file.source}" if has_sources and split == "train" else ""
            place, option = real_path(file), f"data.{split}{of_source}.path"
            if place in option_of:
                where = f"{option} twice" if option_of[place] == option else f"{option_of[place]} and in {option}"
                raise DataError(
                    f"{file.path} is in {where}: a file belongs to one split, once. Narrow the paths, to "
                    "folder/train-*.parquet for example; to hold out some of its rows, set data.validation.fraction"
                )
            option_of[place] = option


def _check_column(option: str, column: str, files: Sequence[SourceFile]) -> None:
    """Text formats would read a column that is not there as one without values."""
    for file, names in zip(files, in_threads(column_names, files), strict=True):
        if column not in names:
            raise DataError(f"{option} {column!r}: {file.path} has no such column; it has {', '.join(names)}")


def _with_rows(files: list[SourceFile], option: str, examined: Iterator[Examined]) -> list[SourceFile]:
    """The files of a split that have rows, with what the object store calls their content. Raises DataError when none
    has. `examined`: yields what was found in each."""
    found = list(zip(files, itertools.islice(examined, len(files)), strict=True))
    empty = [(file.path, one.why_empty) for file, one in found if one.why_empty]
    if len(empty) == len(files):
        raise DataError(f"{option}.path: {' '.join(empty[0])}")
    if empty:
        have = "has no rows and is" if len(empty) == 1 else "have no rows and are"
        named = f"{option}.path: {len(empty)} of {len(files)} files {have} passed over"
        _warn_once(f"{named}, such as {empty[0][0]}")
    return [replace(file, content=one.etag or file.content) for file, one in found if not one.why_empty]


def _tasks_of_groups(
    split: str, file_of_split: int, file: SourceFile, row_groups: Sequence[int], num_bytes: int
) -> list[ReadTask]:
    """`row_groups`: rows of each. `num_bytes`: of a read task, taking all rows of a file for equally long."""
    most_rows = min(TASK_ROWS, max(1, sum(row_groups) * num_bytes // max(1, file.num_bytes)))
    tasks, start, first_row, rows = [], 0, 1, 0
    for i, num_rows in enumerate(row_groups):
        rows += num_rows
        if rows >= most_rows or i == len(row_groups) - 1:
            of_task = file.num_bytes * rows // max(1, sum(row_groups))
            groups = (start, i + 1)
            tasks.append(ReadTask(split, file_of_split, file, groups, first_row, num_bytes=of_task))
            start, first_row, rows = i + 1, first_row + rows, 0
    return tasks
