"""Which training rows a fraction holds out for validation. No Ray, no torch.

A unit of rows is on one side: the rows of a group; else those of a near-duplicate cluster (see `clusters`), or with
data.dedup.leakage at `off` those with the same text. The side is a hash of the unit's content, so other rows, their
order and their files don't move it.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.data.readers.base import ROW, Chunk, ReadTask
from raytrain.data.stages.clean import Cleaner
from raytrain.data.stages.near_duplicates import normalized
from raytrain.tasks.base import Task


def source_columns(config: RunConfig, task: Task) -> list[str]:
    """The columns of a source that PREPARE reads: those of the task, the group of a row, and which document a sentence
    belongs to, which a task on texts does not ask."""
    validation = config.data.validation
    group = validation.group_column if validation else None
    is_on_texts = bool(task.text_columns()) and not task.word_columns()
    document = [] if is_on_texts else ["document"]
    return list(dict.fromkeys([*task.required_columns(), *document, *([group] if group else [])]))


def rows_of(
    config: RunConfig, task: Task, read_task: ReadTask, chunk: Chunk, sides: dict[int, str], cleaner: Cleaner | None
) -> Iterator[tuple[str, pa.Table]]:
    """`split_rows`, cleaned: what the rows are compared by."""
    for split, rows in split_rows(config, task, read_task, chunk, sides):
        yield split, rows if cleaner is None else cleaner.clean(rows, split).table


def split_rows(
    config: RunConfig, task: Task, read_task: ReadTask, chunk: Chunk, sides: dict[int, str]
) -> Iterator[tuple[str, pa.Table]]:
    """(split, rows) of a chunk, not cleaned: with data.validation.fraction, training rows are in two splits.

    Args:
        sides: Row -> unit, of the rows whose unit does not follow from themselves.
    """
    table = chunk.table
    if not len(table):
        return
    validation = config.data.validation
    if read_task.split != "train" or validation is None or validation.fraction is None:
        yield read_task.split, table
        return
    units = _units(task, table, validation.group_column)
    units = [sides.get(row, unit) for row, unit in zip(table[ROW].to_pylist(), units, strict=True)]
    is_held_out = [_hash_unit(unit, config.seed) < validation.fraction for unit in units]
    for split, side in (("train", False), ("validation", True)):
        if side in is_held_out:
            yield split, table.filter(pa.array([held_out == side for held_out in is_held_out], pa.bool_()))


def _units(task: Task, table: pa.Table, group_column: str | None) -> list[str]:
    """What each row's side is a hash of: its group, else its text, else all of its inputs."""
    groups = table[group_column].to_pylist() if group_column else [None] * len(table)
    units = []
    for row, (group, text) in enumerate(zip(groups, task.compared_texts(table), strict=True)):
        if group is not None:
            units.append(f"group {_json(group)}")
        elif form := normalized(text):
            units.append(unit_of_text(form))
        else:
            inputs = {name: table[name][row].as_py() for name in task.input_columns() if name in table.column_names}
            units.append(f"inputs {_json(inputs)}")
    return units


def unit_of_text(form: str) -> str:
    """The unit of a row that is held out by its normalized text."""
    return f"text {hashlib.blake2b(form.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _hash_unit(unit: str, seed: int) -> float:
    """A number in [0, 1)."""
    digest = hashlib.blake2b(f"{seed} {unit}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2.0**64
