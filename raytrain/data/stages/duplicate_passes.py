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
from raytrain.data.encode import RowFunction
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, ReadTask
from raytrain.data.stages.duplicates import Duplicates, Found, held_out_table
from raytrain.data.stages.held_out import source_columns, split_rows
from raytrain.data.stages.near_duplicates import normalized
from raytrain.data.stages.within_training import Candidates, Check, Choose, Pairs, Sketch
from raytrain.storage import Storage
from raytrain.tasks import make_task

# Of two splits with the same row, that of the test split is named.
PRIORITY = ("test", "validation")
Rows = list[dict[str, Any]]
Run = Callable[[Rows, RowFunction], Iterator[dict[str, Any]]]
"""Applies a function to each row, and yields the reports in any order."""


class HeldOutSketch(RowFunction):
    """Writes the texts and band keys of a read task's validation or test rows."""

    def __init__(self, config: dict[str, Any], duplicates: Duplicates):
        self._config, self._duplicates = config, duplicates

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The name of the file; None: the read task has no such rows."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task = make_task(config.task, config.data.max_length)
        tables = []
        for chunk in read_chunks(read_task, source_columns(config, task)):
            for split, rows in split_rows(config, task, read_task, chunk):
                if split in PRIORITY:
                    texts = [normalized(text) for text in task.compared_texts(rows)]
                    tables.append(held_out_table(split, read_task.file.path, rows[ROW].to_pylist(), texts))
        if not sum(map(len, tables)):
            return {"ordinal": row["ordinal"], "name": None}
        name, buffer = self._duplicates.name("held-out", row["ordinal"]), pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
        Storage(self._duplicates.root).write_bytes(name, memoryview(buffer.getvalue()))
        return {"ordinal": row["ordinal"], "name": name}


def find_held_out(config: RunConfig, duplicates: Duplicates, rows: Rows, tasks: list[ReadTask], run: Run) -> Duplicates:
    """Write the held-out rows that training rows are compared with.

    Args:
        rows: The read tasks as rows for `run`.
    """
    validation = config.data.validation
    holds_out = validation is not None and validation.fraction is not None
    splits = {task.split for task in tasks}
    if duplicates.leakage == LeakagePolicy.OFF or "train" not in splits or (splits == {"train"} and not holds_out):
        return duplicates
    chosen = [row for row, task in zip(rows, tasks, strict=True) if task.split != "train" or holds_out]
    sketch = HeldOutSketch(config.model_dump(mode="json", exclude_unset=True), duplicates)
    names = {one["ordinal"]: one["name"] for one in run(chosen, sketch) if one["name"]}
    # With a fraction, the validation rows are in the files of `train`.
    order = sorted(names, key=lambda i: (PRIORITY.index(tasks[i].split) if tasks[i].split in PRIORITY else 1, i))
    return replace(duplicates, held_out=tuple(names[i] for i in order))


def find_within(config: RunConfig, duplicates: Duplicates, rows: Rows, tasks: list[ReadTask], run: Run) -> Duplicates:
    """Decide which training rows go: those that are leaks, and of the others the duplicates of one another."""
    dedup, raw = config.data.dedup, config.model_dump(mode="json", exclude_unset=True)
    if not (dedup.exact or dedup.near) or all(task.split != "train" for task in tasks):
        return duplicates
    training = [row for row, task in zip(rows, tasks, strict=True) if task.split == "train"]
    sketches = list(run(training, Sketch(raw, duplicates)))
    found = {one["ordinal"]: Found(**one["found"]) for one in sketches}
    num_ranges = Pairs.num_ranges(sum(one["num_keys"] for one in sketches))
    for rows_of_pass, function in (
        ([{"ordinal": i} for i in range(num_ranges)], Pairs(duplicates, sorted(found), num_ranges)),
        (training, Candidates(duplicates, num_ranges)),
        (training, Check(duplicates, num_ranges)),
    ):
        for _ in run(rows_of_pass, function):
            pass
    paths = {i: tasks[i].file.path for i in sorted(found)}
    (chosen,) = run([{"ordinal": 0}], Choose(duplicates, paths))
    for i, name in chosen["names"]:
        found[i].removed.append(name)
    return replace(duplicates, decided=found)
