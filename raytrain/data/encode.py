"""The work of PREPARE on one read task: read, encode, split, write. Runs in Ray Data's processes; no Ray, no torch.

Each read task writes its own parts, named after its position, so its output does not depend on other tasks.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import BadRowPolicy, RunConfig
from raytrain.data.bad_rows import Rejected, refusal
from raytrain.data.parts import LABELS, LENGTHS, Index, Parts
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, BadRow, Chunk, ReadTask
from raytrain.errors import RaytrainError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import Encoded, Task, TaskState

# Where a bad row is refused, this many more chunks are read to count the others.
CHUNKS_TO_COUNT = 16


def report_of(row: dict[str, Any]) -> dict[str, Any]:
    """The report of a RowFunction from the row that it has returned to Ray Data."""
    return {**json.loads(row["report"]), LENGTHS: row[LENGTHS], LABELS: row[LABELS]}


class RowFunction:
    """Runs in Ray Data's processes and returns a report for each row. Errors meant for the user are returned as text,
    since Ray would wrap an exception in its own."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ray Data calls this with one row. Lengths and labels stay bytes: as Python's integers they would take the
        driver 36 B a sample each."""
        index: dict[str, bytes] = {LENGTHS: b"", LABELS: b""}
        try:
            report = self.report(row)
            index = {name: report.pop(name, b"") for name in index}
        except RaytrainError as error:
            report = {"ordinal": row["ordinal"], "error": str(error), "code": error.code}
        return {"report": json.dumps(report), **index}

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The report on a row for the driver; JSON-able but for LENGTHS and LABELS, which are bytes."""
        raise NotImplementedError


class Surveyor(RowFunction):
    """Collects what a read task's rows contribute to the task's state, such as their labels."""

    def __init__(self, config: dict[str, Any]):
        self._config = config

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The surveys of the read task's chunks, in their order."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task = make_task(config.task, config.data.max_length)
        chunks = read_chunks(read_task, task.required_columns())
        surveys = [
            task.survey(rows, split) for chunk in chunks for split, rows in _split_rows(config, read_task, chunk)
        ]
        return {"ordinal": row["ordinal"], "surveys": surveys}


class Encoder(RowFunction):
    """Reads, encodes and writes a read task's rows."""

    def __init__(
        self,
        config: dict[str, Any],
        state: TaskState,
        root: str,
        rows_per_group: int,
        prefix: str,
        *,
        is_evaluation: bool = False,
    ):
        self._config, self._state, self._root, self._prefix = config, state, root, prefix
        self._rows_per_group, self._is_evaluation = rows_per_group, is_evaluation

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """What was written, and which rows were rejected."""
        return self._encode(row["ordinal"], ReadTask.from_json(row["task"]))

    def _encode(self, ordinal: int, read_task: ReadTask) -> dict[str, Any]:
        config = RunConfig.model_validate(self._config)
        task = make_task(config.task, config.data.max_length)
        tokenizer = load_tokenizer(config.model)
        refuses = config.data.bad_rows == BadRowPolicy.REFUSE
        parts = Parts(Storage(self._root), self._prefix, ordinal, self._rows_per_group)
        bad: list[tuple[str, BadRow]] = []  # with their split
        bad_at: int | None = None  # the first chunk with a bad row
        num_read = 0
        refused = functools.partial(refusal, is_evaluation=self._is_evaluation)
        for number, chunk in enumerate(read_chunks(read_task, [*task.required_columns(), "document"])):
            if refuses and bad_at is not None and number > bad_at + CHUNKS_TO_COUNT:
                raise refused([one for _, one in bad], num_read, is_counted=False)
            num_read += len(chunk.table) + len(chunk.bad_rows)
            bad += [(read_task.split, one) for one in chunk.bad_rows]
            for split, table in _split_rows(config, read_task, chunk):
                is_lost = refuses and bool(bad)  # nothing will be trained: the other bad rows are only counted
                encoded = None if is_lost else task.encode(table, tokenizer, self._state)
                rejected = task.rejections(table, self._state) if encoded is None else encoded.rejected
                rows = table[ROW].to_pylist()
                bad += [(split, BadRow(read_task.file.path, rows[r.row], r.reason, r.code)) for r in rejected]
                if encoded is not None and len(encoded.table):
                    labels = None
                    if config.data.balance is not None:
                        encoded, labels = _by_label(encoded, task, is_sorted=split == "train")
                    counts = task.count_labels(encoded.table, self._state)
                    parts.add(split, number, encoded, Index.of(task.sizes(encoded.table), labels), counts)
            bad_at = number if bad and bad_at is None else bad_at
        if refuses and bad:
            raise refused([one for _, one in bad], num_read)
        bad.sort(key=lambda one: one[1].row)
        set_aside = [asdict(Rejected(split, one.path, one.row, one.code, one.reason)) for split, one in bad]
        written, index = parts.close()
        return {"ordinal": ordinal, "written": written, "rejected": set_aside, **index.to_bytes()}


def _by_label(encoded: Encoded, task: Task, *, is_sorted: bool) -> tuple[Encoded, np.ndarray]:
    """A chunk's samples, sorted by label if they are trained on, and their labels. A row group has then few labels,
    mostly one, and one that is read for a label of which an epoch has many copies has little else in it."""
    labels = task.label_ids(encoded.table)
    assert labels is not None, "the config allows data.balance only where samples have one label"
    if not is_sorted:
        return encoded, labels
    order = np.argsort(labels, kind="stable")
    return replace(encoded, table=encoded.table.take(pa.array(order))), labels[order]


def _split_rows(config: RunConfig, read_task: ReadTask, chunk: Chunk) -> Iterator[tuple[str, pa.Table]]:
    """(split, rows) of a chunk. With data.validation.fraction, training rows are held out by a hash of their
    position."""
    table = chunk.table
    if not len(table):
        return
    fraction = config.data.validation.fraction if config.data.validation else None
    if read_task.split != "train" or fraction is None:
        yield read_task.split, table
        return
    rows = table[ROW].to_numpy().astype(np.uint64)
    is_held_out = _hash_unit(rows, config.seed, read_task.file_of_split) < fraction
    for split, mask in (("train", ~is_held_out), ("validation", is_held_out)):
        if mask.any():
            yield split, table.filter(pa.array(mask))


def _hash_unit(rows: np.ndarray, seed: int, file: int) -> np.ndarray:
    """A number in [0, 1) for each row: splitmix64 (Steele et al., 2014) of its position and the seed."""
    with np.errstate(over="ignore"):
        x = rows + np.uint64(0x9E3779B97F4A7C15) * np.uint64((1 + seed * 1_000_003 + file) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x.astype(np.float64) / 2.0**64
