"""The passes over the data that PREPARE makes for duplicates before it encodes rows. No Ray, no torch.

Held-out rows take one pass over their files. For duplicates within the training rows see `within_training`. Only names
of files and counts go through the driver.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.config import LeakagePolicy, RunConfig
from raytrain.data.encode import NUM_READ, RowFunction
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, ReadTask
from raytrain.data.stages.clean import make_cleaner
from raytrain.data.stages.clusters import Units
from raytrain.data.stages.duplicates import Duplicates, Found, held_out_table
from raytrain.data.stages.held_out import rows_of, source_columns
from raytrain.data.stages.near_duplicates import normalized
from raytrain.data.stages.strata import ChooseUnits, CountUnits, with_strata
from raytrain.data.stages.within_training import Candidates, Check, Choose, InOrder, Pairs, Sketch
from raytrain.data.storing import put
from raytrain.storage import Storage
from raytrain.tasks import make_task

# Of two splits with the same row, that of the test split is named.
PRIORITY = ("test", "validation")
Rows = list[dict[str, Any]]
Passes = list[tuple[Rows, RowFunction]]
# Up to some 100,000 rows in few files, one task takes less time than passes of Ray Data.
FEW_KEYS, FEW_TASKS = 2_000_000, 32
Run = Callable[[Rows, RowFunction], Iterator[dict[str, Any]]]
"""Applies a function to each row, and yields the reports in any order."""


class HeldOutSketch(RowFunction):
    """Writes the texts and band keys of a read task's validation or test rows."""

    phase = "reading held-out rows"

    def __init__(self, config: dict[str, Any], duplicates: Duplicates):
        self._config, self._duplicates = config, duplicates

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The name of the file; None: the read task has no such rows."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task = make_task(config.task, config.data.max_length)
        tables, sides = [], self._duplicates.sides_of(row["ordinal"])
        cleaner, num_read = make_cleaner(config.data.clean, task), 0
        for chunk in read_chunks(read_task, source_columns(config, task)):
            num_read += chunk.num_rows
            for split, rows in rows_of(config, task, read_task, chunk, sides, cleaner):
                if split in PRIORITY:
                    texts = [normalized(text) for text in task.compared_texts(rows)]
                    tables.append(held_out_table(split, read_task.file.path, rows[ROW].to_pylist(), texts))
        if not sum(map(len, tables)):
            return {"ordinal": row["ordinal"], "name": None, NUM_READ: num_read}
        name, buffer = self._duplicates.name("held-out", row["ordinal"]), pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
        put(Storage(self._duplicates.root), name, memoryview(buffer.getvalue()))
        return {"ordinal": row["ordinal"], "name": name, NUM_READ: num_read}


def find_sides(config: RunConfig, duplicates: Duplicates, rows: Rows, tasks: list[ReadTask], run: Run) -> Duplicates:
    """With data.validation.fraction: find the near-duplicate clusters that are held out, or not, as a whole, and with
    data.validation.stratify where the share of each label ends."""
    validation = config.data.validation
    training = [row for row, task in zip(rows, tasks, strict=True) if task.split == "train"]
    if not training or validation is None or validation.fraction is None:
        return duplicates
    if _has_clusters(config):
        duplicates = _find_clusters(config, duplicates, training, run)
    if not validation.stratify:
        return duplicates
    ordinals = sorted(one["ordinal"] for one in run(training, CountUnits(_raw(config), duplicates)))
    (chosen,) = run([{"ordinal": 0}], ChooseUnits(duplicates, ordinals, validation.fraction))
    return with_strata(duplicates, chosen)


def _find_clusters(config: RunConfig, duplicates: Duplicates, training: Rows, run: Run) -> Duplicates:
    whole = replace(duplicates, prefix="sides-")  # `find_within` has files of the same names
    sketch = Sketch(_raw(config), whole, exact=True, near=True, whole=True)
    ordinals, passes, num_keys = _passes(training, whole, list(run(training, sketch)))
    units = _run_all([*passes, ([{"ordinal": 0}], Units(whole, ordinals))], num_keys, run)
    return replace(duplicates, sides=dict(units["names"]))


def _has_clusters(config: RunConfig) -> bool:
    validation = config.data.validation
    holds_out = validation is not None and validation.fraction is not None and validation.group_column is None
    return holds_out and config.data.dedup.leakage != LeakagePolicy.OFF


def find_held_out(config: RunConfig, duplicates: Duplicates, rows: Rows, tasks: list[ReadTask], run: Run) -> Duplicates:
    """Write the held-out rows that training rows are compared with.

    Args:
        rows: The read tasks as rows for `run`.
    """
    validation = config.data.validation
    # Clusters that are on one side leak nothing.
    in_train = validation is not None and validation.fraction is not None and not _has_clusters(config)
    chosen = [row for row, task in zip(rows, tasks, strict=True) if task.split != "train" or in_train]
    if duplicates.leakage == LeakagePolicy.OFF or not chosen or all(task.split != "train" for task in tasks):
        return duplicates
    names = {one["ordinal"]: one["name"] for one in run(chosen, HeldOutSketch(_raw(config), duplicates)) if one["name"]}
    # With a fraction, the validation rows are in the files of `train`.
    order = sorted(names, key=lambda i: (PRIORITY.index(tasks[i].split) if tasks[i].split in PRIORITY else 1, i))
    return replace(duplicates, held_out=tuple(names[i] for i in order))


def find_within(config: RunConfig, duplicates: Duplicates, rows: Rows, tasks: list[ReadTask], run: Run) -> Duplicates:
    """Decide which training rows go: those that are leaks, and of the others the duplicates of one another."""
    dedup = config.data.dedup
    if not (dedup.exact or dedup.near) or all(task.split != "train" for task in tasks):
        return duplicates
    training = [row for row, task in zip(rows, tasks, strict=True) if task.split == "train"]
    sketches = list(run(training, Sketch(_raw(config), duplicates, exact=dedup.exact, near=dedup.near)))
    found = {one["ordinal"]: Found(**one["found"]) for one in sketches}
    ordinals, passes, num_keys = _passes(training, duplicates, sketches)
    choose = Choose(duplicates, {i: tasks[i].file.path for i in ordinals})
    chosen = _run_all([*passes, ([{"ordinal": 0}], choose)], num_keys, run)
    for i, name in chosen["names"]:
        found[i].removed.append(name)
    for i, example in chosen["examples"]:
        found[i].examples.append(example)
    return replace(duplicates, decided=found)


def _passes(training: Rows, duplicates: Duplicates, sketches: list[dict[str, Any]]) -> tuple[list[int], Passes, int]:
    """(read tasks, the passes that check their pairs, number of keys)."""
    ordinals, num_keys = sorted(one["ordinal"] for one in sketches), sum(one["num_keys"] for one in sketches)
    num_ranges = Pairs.num_ranges(num_keys)
    passes: Passes = [
        ([{"ordinal": i} for i in range(num_ranges)], Pairs(duplicates, ordinals, num_ranges)),
        (training, Candidates(duplicates, num_ranges)),
        (training, Check(duplicates, num_ranges)),
    ]
    return ordinals, passes, num_keys


def _run_all(passes: Passes, num_keys: int, run: Run) -> dict[str, Any]:
    """One pass after the other. Gives the last report."""
    if num_keys <= FEW_KEYS and all(len(rows) <= FEW_TASKS for rows, _ in passes):
        passes = [([{"ordinal": 0}], InOrder(passes))]
    reports: list[dict[str, Any]] = []
    for rows, function in passes:
        reports = list(run(rows, function))
    return reports[-1]


def _raw(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True)
