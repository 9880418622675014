"""Which training rows a fraction holds out for validation. No Ray, no torch.

A unit of rows is on one side: the rows of a group; else those of a near-duplicate cluster (see `clusters`), or with
data.dedup.leakage at `off` those with the same text. The side is a hash of the unit's content, so other rows, their
order and their files don't move it. With data.validation.stratify, a label's units with the smallest hashes are held
out (see `strata`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.data.readers.base import ROW, Chunk, ReadTask, whole
from raytrain.data.stages.clean import Cleaner
from raytrain.data.stages.near_duplicates import normalized
from raytrain.tasks.base import Task

NO_EDGE = 1 << 64
"""Above every hash of a unit."""


@dataclass(frozen=True)
class Sides:
    """What the side of a row of a read task depends on beside the row."""

    units: Mapping[int, str] = field(default_factory=dict)
    """Row -> unit, of the rows whose unit does not follow from themselves."""
    edges: Mapping[str, int] | None = None
    """With data.validation.stratify: by label the hash below which its units are held out."""
    mixed: Mapping[int, str] = field(default_factory=dict)
    """The label of each unit whose rows have several, by its hash."""


def source_columns(config: RunConfig, task: Task) -> list[str]:
    """The columns of a source that PREPARE reads: those of the task, the group of a row, what is balanced, and which
    document a sentence belongs to, which a task on texts does not ask."""
    validation, balance = config.data.validation, config.data.balance
    group = validation.group_column if validation else None
    balanced = balance.column if balance else None
    is_on_texts = bool(task.text_columns()) and not task.word_columns()
    document = [] if is_on_texts else ["document"]
    named = [name for name in (group, balanced) if name]
    return list(dict.fromkeys([*task.required_columns(), *document, *named]))


def rows_of(
    config: RunConfig, task: Task, read_task: ReadTask, chunk: Chunk, sides: Sides, cleaner: Cleaner | None
) -> Iterator[tuple[str, pa.Table]]:
    """`split_rows`, cleaned: what the rows are compared by."""
    for split, rows in split_rows(config, task, read_task, chunk, sides):
        yield split, rows if cleaner is None else cleaner.clean(rows, split).table


def split_rows(
    config: RunConfig, task: Task, read_task: ReadTask, chunk: Chunk, sides: Sides
) -> Iterator[tuple[str, pa.Table]]:
    """(split, rows) of a chunk, not cleaned: with data.validation.fraction, training rows are in two splits."""
    table = chunk.table
    if not len(table):
        return
    validation = config.data.validation
    if read_task.split != "train" or validation is None or validation.fraction is None:
        yield read_task.split, table
        return
    hashes = [hash_of(unit, config.seed) for unit in units_of(config, task, table, sides)]
    if sides.edges is None:
        is_held_out = [one / 2.0**64 < validation.fraction for one in hashes]
    else:
        labels = map(stratum_of, task.row_labels(table) or ())
        is_held_out = [
            one < sides.edges.get(sides.mixed.get(one, label), 0) for one, label in zip(hashes, labels, strict=True)
        ]
    for split, side in (("train", False), ("validation", True)):
        if side in is_held_out:
            yield split, table.filter(pa.array([held_out == side for held_out in is_held_out], pa.bool_()))


def units_of(config: RunConfig, task: Task, table: pa.Table, sides: Sides) -> list[str]:
    """The unit of each row of a chunk."""
    validation = config.data.validation
    units = _units(task, table, validation.group_column if validation else None)
    return [sides.units.get(row, unit) for row, unit in zip(table[ROW].to_pylist(), units, strict=True)]


def stratum_of(labels: Sequence[str]) -> str:
    """What a row counts for with data.validation.stratify: its label, or "" where it has none that can be used."""
    return labels[0] if labels else ""


def _units(task: Task, table: pa.Table, group_column: str | None) -> list[str]:
    """What each row's side is a hash of: its group, else its text, else all of its inputs."""
    groups = table[group_column].to_pylist() if group_column else [None] * len(table)
    units = []
    for row, (group, text) in enumerate(zip(groups, task.compared_texts(table), strict=True)):
        if group is not None:
            units.append(f"group {_json(whole(group))}")
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


def hash_of(unit: str, seed: int) -> int:
    """A number in [0, 2^64)."""
    digest = hashlib.blake2b(f"{seed} {unit}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
