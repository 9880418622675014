"""The work of PREPARE on one read task: read, encode, split, write. Runs in Ray Data's processes; no Ray, no torch.

Each read task writes its own parts, named after its position, so its output does not depend on other tasks.
"""

import functools
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import BadRowPolicy, RunConfig
from raytrain.data.bad_rows import Rejected, refusal
from raytrain.data.parts import Parts
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, BadRow, ReadTask
from raytrain.data.stages.duplicates import DuplicateFilter, Duplicates
from raytrain.data.stages.held_out import source_columns, split_rows
from raytrain.errors import DataError, FailureCode, RaytrainError, first_line
from raytrain.models.tokenizer import load_tokenizer
from raytrain.retries import advice_for
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import Encoded, TaskState

# Where a bad row is refused, this many more chunks are read to count the others.
CHUNKS_TO_COUNT = 16
# Key of a report: the lengths (int32, little-endian) of the samples of all parts, one part after the other.
LENGTHS = "lengths"


def report_of(row: dict[str, Any]) -> dict[str, Any]:
    """The report of a RowFunction from the row that it has returned to Ray Data."""
    return {**json.loads(row["report"]), LENGTHS: row[LENGTHS]}


def cannot_prepare(what: str, error: OSError) -> DataError:
    """The error for storage that fails, such as a full disk, while data is prepared. `what`: what can't be done."""
    told = f"{what}: {first_line(str(error))}. {advice_for(error)}, then give the command again"
    return DataError(told, FailureCode.STORAGE)


class RowFunction:
    """Runs in Ray Data's processes and returns a report for each row. Errors meant for the user are returned as text,
    since Ray would wrap an exception in its own."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ray Data calls this with one row. Lengths stay bytes: as Python's integers they would take the driver 36 B a
        sample."""
        try:
            report = self.report(row)
            lengths = report.pop(LENGTHS, b"")
        except (RaytrainError, OSError) as error:
            told = error if isinstance(error, RaytrainError) else cannot_prepare("the data can't be prepared", error)
            report, lengths = {"ordinal": row["ordinal"], "error": str(told), "code": told.code}, b""
        return {"report": json.dumps(report), LENGTHS: lengths}

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The report on a row for the driver; JSON-able but for LENGTHS, which are bytes."""
        raise NotImplementedError


class Surveyor(RowFunction):
    """Collects what a read task's rows contribute to the task's state, such as their labels."""

    def __init__(self, config: dict[str, Any], duplicates: Duplicates):
        self._config, self._duplicates = config, duplicates

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The surveys of the read task's chunks, in their order, and which rows are duplicates."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task = make_task(config.task, config.data.max_length)
        unique = DuplicateFilter(self._duplicates, row["ordinal"], read_task.file.path)
        sides = self._duplicates.sides_of(row["ordinal"])
        surveys = [
            task.survey(kept, split)
            for chunk in read_chunks(read_task, source_columns(config, task))
            for split, rows in split_rows(config, task, read_task, chunk, sides)
            if len(kept := unique.keep(split, rows, task))
        ]
        return {"ordinal": row["ordinal"], "surveys": surveys, "found": asdict(unique.close())}


class Encoder(RowFunction):
    """Reads, encodes and writes a read task's rows."""

    def __init__(
        self,
        config: dict[str, Any],
        state: TaskState,
        root: str,
        rows_per_group: int,
        duplicates: Duplicates,
        *,
        is_evaluation: bool = False,
    ):
        self._config, self._state, self._root, self._duplicates = config, state, root, duplicates
        self._rows_per_group, self._is_evaluation = rows_per_group, is_evaluation

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """What was written, and which rows were rejected."""
        return self._encode(row["ordinal"], ReadTask.from_json(row["task"]))

    def _encode(self, ordinal: int, read_task: ReadTask) -> dict[str, Any]:
        config = RunConfig.model_validate(self._config)
        task = make_task(config.task, config.data.max_length)
        tokenizer = load_tokenizer(config.model)
        refuses = config.data.bad_rows == BadRowPolicy.REFUSE
        parts = Parts(Storage(self._root), self._duplicates.prefix, ordinal, self._rows_per_group)
        unique = DuplicateFilter(self._duplicates, ordinal, read_task.file.path)
        sides = self._duplicates.sides_of(ordinal)
        bad: list[tuple[str, BadRow]] = []  # with their split
        bad_at: int | None = None  # the first chunk with a bad row
        num_read: Counter[str] = Counter()  # by split
        refused = functools.partial(refusal, is_evaluation=self._is_evaluation)
        for number, chunk in enumerate(read_chunks(read_task, source_columns(config, task))):
            if refuses and bad_at is not None and number > bad_at + CHUNKS_TO_COUNT:
                raise refused([one for _, one in bad], num_read.total(), is_counted=False)
            num_read[read_task.split] += len(chunk.bad_rows)
            bad += [(read_task.split, one) for one in chunk.bad_rows]
            for split, rows in split_rows(config, task, read_task, chunk, sides):
                num_read[split] += len(rows)
                kept = unique.keep(split, rows, task)
                is_lost = refuses and bool(bad)  # nothing will be trained: the other bad rows are only counted
                encoded = None if is_lost else task.encode(kept, tokenizer, self._state)
                rejected = task.rejections(kept, self._state) if encoded is None else encoded.rejected
                places = kept[ROW].to_pylist()
                bad += [(split, BadRow(read_task.file.path, places[r.row], r.reason, r.code)) for r in rejected]
                if encoded is not None and len(encoded.table):
                    counts = task.count_labels(encoded.table, self._state)
                    parts.add(split, number, encoded, _index_of(encoded, kept, task.sizes(encoded.table)), counts)
            bad_at = number if bad and bad_at is None else bad_at
        if refuses and bad:
            raise refused([one for _, one in bad], num_read.total())
        bad.sort(key=lambda one: one[1].row)
        set_aside = [asdict(Rejected(split, one.path, one.row, one.code, one.reason)) for split, one in bad]
        written, lengths = parts.close()
        report = {"ordinal": ordinal, "written": written, "rejected": set_aside, LENGTHS: lengths}
        return {**report, "found": asdict(unique.close()), "num_read": dict(num_read)}


def _index_of(encoded: Encoded, rows: pa.Table, sizes: np.ndarray) -> pa.Table:
    """The lines of the index of a chunk's samples: `length`; `row`, the first source row, null if it is not known; and
    `more_rows`, the others of a sample that has several."""
    lengths = pa.array(sizes.astype(np.int32))
    if encoded.first_rows is None:
        unknown = [pa.nulls(len(lengths), kind) for kind in (pa.int64(), pa.list_(pa.int64()))]
        return pa.table([lengths, *unknown], ["length", "row", "more_rows"])
    bad = {rejection.row for rejection in encoded.rejected}
    good = np.array([row not in bad for row in range(len(rows))], dtype=bool)
    places = rows[ROW].to_numpy().astype(np.int64)
    is_first = np.zeros(len(rows), dtype=bool)
    is_first[encoded.first_rows] = True
    # The samples in order: their further rows are the usable ones up to the first row of the next sample.
    further = pa.array(places[good & ~is_first])
    ends = np.cumsum(good & ~is_first)
    starts = np.concatenate([ends[encoded.first_rows], ends[-1:]]).astype(np.int32)
    more = pa.ListArray.from_arrays(pa.array(starts), further)
    return pa.table([lengths, pa.array(places[encoded.first_rows]), more], ["length", "row", "more_rows"])
