"""The work of PREPARE on one read task: read, split, clean, encode, write. Runs in Ray Data's processes; no Ray, no
torch.

Each read task writes its own parts, named after its position, so its output does not depend on other tasks.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import OnError, RunConfig
from raytrain.data.bad_rows import refusal
from raytrain.data.parts import Parts
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, BadRow, Chunk, ReadTask, row_itself
from raytrain.data.stages.clean import Cleaner, make_cleaner
from raytrain.data.stages.counts import RowCounts
from raytrain.data.stages.quarantine import Quarantine
from raytrain.data.stages.removed import FOLDER as REMOVED
from raytrain.data.stages.removed import RemovedRows
from raytrain.errors import RaytrainError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import RowError, Task, TaskState

# Where a bad row is refused, this many more chunks are read to count the others.
CHUNKS_TO_COUNT = 16
# Key of a report: the lengths (int32, little-endian) of the samples of all parts, one part after the other.
LENGTHS = "lengths"


def report_of(row: dict[str, Any]) -> dict[str, Any]:
    """The report of a RowFunction from the row that it has returned to Ray Data."""
    return {**json.loads(row["report"]), LENGTHS: row[LENGTHS]}


class RowFunction:
    """Runs in Ray Data's processes and returns a report for each row. Errors meant for the user are returned as text,
    since Ray would wrap an exception in its own."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Ray Data calls this with one row. Lengths stay bytes: as Python's integers they would take the driver 36 B a
        sample."""
        try:
            report = self.report(row)
            lengths = report.pop(LENGTHS, b"")
        except RaytrainError as error:
            report, lengths = {"ordinal": row["ordinal"], "error": str(error), "code": error.code}, b""
        return {"report": json.dumps(report), LENGTHS: lengths}

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The report on a row for the driver; JSON-able but for LENGTHS, which are bytes."""
        raise NotImplementedError


class Surveyor(RowFunction):
    """Collects what a read task's rows contribute to the task's state, such as their labels."""

    def __init__(self, config: dict[str, Any]):
        self._config = config

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The surveys of the read task's chunks, in their order."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task = make_task(config.task, config.data.max_length)
        cleaner = make_cleaner(config.data.clean, task)
        surveys, counts = [], defaultdict[str, RowCounts](RowCounts)
        for chunk in read_chunks(read_task, columns_of(task)):
            counts[read_task.split].read += len(chunk.bad_rows)
            for split, rows in _split_rows(config, read_task, chunk):
                counts[split].read += len(rows)
                if cleaner is not None:
                    cleaned = cleaner.clean(rows, split)
                    counts[split].add(cleaned.counts)
                    rows = cleaned.table
                if len(rows):
                    surveys.append(task.survey(rows, split))
        told = {split: one.to_json() for split, one in counts.items()}
        return {"ordinal": row["ordinal"], "surveys": surveys, "counts": told}


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
        cleaner = make_cleaner(config.data.clean, task)
        tokenizer = load_tokenizer(config.model)
        fails = config.data.on_error == OnError.FAIL
        out = _Output(Storage(self._root), self._prefix, ordinal, self._rows_per_group)
        bad_at: int | None = None  # the first chunk with a bad row
        refused = functools.partial(refusal, is_evaluation=self._is_evaluation)
        for number, chunk in enumerate(read_chunks(read_task, columns_of(task))):
            if fails and bad_at is not None and number > bad_at + CHUNKS_TO_COUNT:
                raise refused(out.bad, out.num_read, is_counted=False)
            out.add_unreadable(read_task.split, chunk.bad_rows)
            for split, table in _split_rows(config, read_task, chunk):
                rows = out.cleaned(cleaner, read_task.file.path, split, table)
                if not len(rows):
                    continue
                is_lost = fails and bool(out.bad)  # nothing will be trained: the other bad rows are only counted
                encoded = None if is_lost else task.encode(rows, tokenizer, self._state)
                rejected = task.rejections(rows, self._state) if encoded is None else encoded.rejected
                numbers = rows[ROW].to_pylist()
                for one in rejected:
                    (values,) = rows.slice(one.row, 1).to_pylist()
                    bad = BadRow(read_task.file.path, numbers[one.row], one.reason, one.code, row_itself(values))
                    out.add_bad(split, bad)
                if encoded is not None and len(encoded.table):
                    counts = task.count_labels(encoded.table, self._state)
                    out.parts.add(split, number, encoded, task.sizes(encoded.table), counts)
            bad_at = number if out.bad and bad_at is None else bad_at
            if not fails:
                out.quarantine_bad()
        if out.bad:
            raise refused(out.bad, out.num_read)
        return {"ordinal": ordinal, **out.close()}


class _Output:
    """What becomes of the rows of one read task: samples, quarantined rows, dropped rows, and the counts of all."""

    def __init__(self, folder: Storage, prefix: str, ordinal: int, rows_per_group: int):
        self._folder, self._removed_name = folder, f"{REMOVED}/{prefix}rows-{ordinal:05d}.parquet"
        self.parts = Parts(folder, prefix, ordinal, rows_per_group)
        self._quarantine, self._removed = Quarantine(folder, prefix, ordinal), RemovedRows()
        self._counts: defaultdict[str, RowCounts] = defaultdict(RowCounts)
        self._bad: list[tuple[str, BadRow]] = []  # with their splits, not yet quarantined

    @property
    def bad(self) -> list[BadRow]:
        """Rows that can't be used and are not quarantined."""
        return [one for _, one in self._bad]

    @property
    def num_read(self) -> int:
        """Rows so far."""
        return sum(counts.read for counts in self._counts.values())

    def add_bad(self, split: str, bad: BadRow) -> None:
        """Note a row that can't be used."""
        self._bad.append((split, bad))

    def add_unreadable(self, split: str, bad: list[BadRow]) -> None:
        """Note rows that could not be parsed. Those of a file of training rows are of them, wherever a fraction would
        have put them."""
        self._counts[split].read += len(bad)
        self._bad += [(split, one) for one in bad]

    def cleaned(self, cleaner: Cleaner | None, path: str, split: str, rows: pa.Table) -> pa.Table:
        """The rows of a file that are left by the rules."""
        counts = self._counts[split]
        counts.read += len(rows)
        if cleaner is None:
            return rows
        found = cleaner.clean(rows, split)
        counts.add(found.counts)
        self._removed.add(split, path, "clean", found.removed)
        for row, reason, values in found.failed:
            self.add_bad(split, BadRow(path, row, reason, RowError.CUSTOM, values))
        return found.table

    def quarantine_bad(self) -> None:
        """Put the rows noted since the last call into the quarantine, in their order."""
        self._bad.sort(key=lambda one: one[1].row)
        self._quarantine.add(self._bad)
        for split, _ in self._bad:
            self._counts[split].quarantined += 1
        self._bad = []

    def close(self) -> dict[str, Any]:
        """Write what is left. Returns the report on it."""
        written, lengths = self.parts.close()
        return {
            "written": written,
            "quarantined": self._quarantine.close().report(),
            "removed": self._removed.write(self._folder, self._removed_name),
            "counts": {split: counts.to_json() for split, counts in self._counts.items()},
            LENGTHS: lengths,
        }


def columns_of(task: Task) -> list[str]:
    """The columns that are read: those of the task, and which document a sentence belongs to, which a task on texts
    does not ask."""
    is_on_texts = bool(task.text_columns()) and not task.word_columns()
    return [*task.required_columns(), *([] if is_on_texts else ["document"])]


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
