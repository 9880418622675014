"""The work of PREPARE on one read task: read, split, clean, encode, write. Runs in Ray Data's processes; no Ray, no
torch.

Each read task writes its own parts, named after its position, so its output does not depend on other tasks.
"""

import functools
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import OnError, RunConfig
from raytrain.data.bad_rows import refusal
from raytrain.data.parts import LABELS, LENGTHS, Parts
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, BadRow, ReadTask, row_itself
from raytrain.data.stages.classes import Classes
from raytrain.data.stages.clean import Cleaner, make_cleaner
from raytrain.data.stages.counts import RowCounts
from raytrain.data.stages.duplicates import DuplicateFilter, Duplicates
from raytrain.data.stages.examples import Example, Observed, excerpts
from raytrain.data.stages.held_out import source_columns, split_rows
from raytrain.data.stages.quarantine import Quarantine
from raytrain.data.stages.removed import RemovedRows
from raytrain.data.storing import noting_files
from raytrain.data.work_folder import Records
from raytrain.errors import DataError, FailureCode, RaytrainError, first_line
from raytrain.models.tokenizer import load_tokenizer
from raytrain.retries import advice_for
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import Encoded, RowError, Task, TaskState

# Where a bad row is refused, this many more chunks are read to count the others.
CHUNKS_TO_COUNT = 16
# While a read task is worked on, its rows are told as often as this: a compressed file may take hours.
TELL_EVERY_S = 2.0
ROWS_SO_FAR = "rows_so_far"
NUM_READ = "num_read"
"""In the report of a pass that has no `counts`: the rows of the read task."""
# The stage at which a row can't be used, where it is not that of encoding.
STAGE_OF = {RowError.UNREADABLE: "read", RowError.CUSTOM: "clean.custom"}


def report_of(row: dict[str, Any]) -> dict[str, Any]:
    """The report of a RowFunction from the row that it has returned to Ray Data."""
    return {**json.loads(row["report"]), LENGTHS: row[LENGTHS], LABELS: row[LABELS]}


def cannot_prepare(what: str, error: OSError) -> DataError:
    """The error for storage that fails, such as a full disk, while data is prepared. `what`: what can't be done."""
    told = f"{what}: {first_line(str(error))}. {advice_for(error)}, then give the command again"
    return DataError(told, FailureCode.STORAGE)


class RowFunction:
    """Runs in Ray Data's processes and returns a report for each row. Errors meant for the user are returned as text,
    since Ray would wrap an exception in its own."""

    records: Records | None = None
    """Where it is recorded that a row is done; None: nowhere."""
    prefix = ""
    """Tells passes of the same class apart."""
    phase = ""
    """What the pass does, for the display; empty: it is too short to be told."""

    @property
    def pass_name(self) -> str:
        """The name of the records of this pass."""
        return f"{self.prefix}{type(self).__name__.lower()}"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The report on a row, as Ray Data takes it."""
        *_, last = self.steps(row)
        return last

    def steps(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ray Data calls this with one row: what `reports` gives, for Ray Data. Lengths and labels stay bytes: as
        Python's integers they would take the driver 36 B a sample each."""
        index: dict[str, bytes] = {LENGTHS: b"", LABELS: b""}
        try:
            report: dict[str, Any] = {}
            with noting_files() as files:
                for found in self.reports(row):
                    if report:
                        yield {"report": json.dumps(report), **index}
                    report = found
            report = {**index, **report, "files": files}
            if self.records is not None:
                self.records.write(row["ordinal"], report)
            index = {name: report.pop(name) for name in index}
        except (RaytrainError, OSError) as error:
            told = error if isinstance(error, RaytrainError) else cannot_prepare("the data can't be prepared", error)
            report = {"ordinal": row["ordinal"], "error": str(told), "code": told.code}
        yield {"report": json.dumps(report), **index}

    def reports(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The report on a row; before it, if that takes long, how many rows of the source are done (ROWS_SO_FAR)."""
        yield self.report(row)

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The report on a row for the driver; JSON-able but for LENGTHS and LABELS, which are bytes."""
        raise NotImplementedError


class Surveyor(RowFunction):
    """Collects what a read task's rows contribute to the task's state, such as their labels."""

    phase = "reading labels"

    def __init__(self, config: dict[str, Any], duplicates: Duplicates):
        self._config, self._duplicates = config, duplicates

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The surveys of the read task's chunks, in their order, and which rows are duplicates."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task = make_task(config.task, config.data.max_length)
        unique = DuplicateFilter(self._duplicates, row["ordinal"], read_task.file.path)
        sides = self._duplicates.sides_of(row["ordinal"])
        cleaner = make_cleaner(config.data.clean, task)
        surveys, counts = [], defaultdict[str, RowCounts](RowCounts)
        for chunk in read_chunks(read_task, source_columns(config, task)):
            counts[read_task.split].read += len(chunk.bad_rows)
            for split, rows in split_rows(config, task, read_task, chunk, sides):
                counts[split].read += len(rows)
                if cleaner is not None:
                    cleaned = cleaner.clean(rows, split)
                    counts[split].add(cleaned.counts)
                    rows = cleaned.table
                if len(rows := unique.keep(split, rows, task)):
                    surveys.append(task.survey(rows, split))
        told = {split: one.to_json() for split, one in counts.items()}
        return {"ordinal": row["ordinal"], "surveys": surveys, "counts": told, "found": asdict(unique.close())}


class Encoder(RowFunction):
    """Reads, encodes and writes a read task's rows."""

    phase = "encoding rows"

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

    def reports(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What was written, and which rows were rejected."""
        ordinal, read_task, told_at_s = row["ordinal"], ReadTask.from_json(row["task"]), time.monotonic()
        config = RunConfig.model_validate(self._config)
        task = make_task(config.task, config.data.max_length)
        cleaner = make_cleaner(config.data.clean, task)
        tokenizer = load_tokenizer(config.model)
        fails = config.data.on_error == OnError.FAIL
        unique = DuplicateFilter(self._duplicates, ordinal, read_task.file.path)
        out = _Output(Storage(self._root), self._duplicates, ordinal, self._rows_per_group)
        classes = Classes(config.data.balance, task)
        sides = self._duplicates.sides_of(ordinal)
        bad_at: int | None = None  # the first chunk with a bad row
        refused = functools.partial(refusal, is_evaluation=self._is_evaluation)
        chunks = out.seen.timing("read", read_chunks(read_task, source_columns(config, task)))
        for number, chunk in enumerate(chunks):
            if fails and bad_at is not None and number > bad_at + CHUNKS_TO_COUNT:
                raise refused(out.bad, out.num_read, is_counted=False)
            out.add_unreadable(read_task.split, chunk.bad_rows)
            for split, table in split_rows(config, task, read_task, chunk, sides):
                out.count_read(task, split, table)
                rows = out.cleaned(cleaner, read_task.file.path, split, table)
                rows = out.without_duplicates(unique, split, rows, task)
                if not len(rows):
                    continue
                is_lost = fails and bool(out.bad)  # nothing will be trained: the other bad rows are only counted
                with out.seen.timed("encode"):
                    encoded = None if is_lost else task.encode(rows, tokenizer, self._state)
                rejected = task.rejections(rows, self._state) if encoded is None else encoded.rejected
                numbers = rows[ROW].to_pylist()
                for one in rejected:
                    (values,) = rows.slice(one.row, 1).to_pylist()
                    bad = BadRow(read_task.file.path, numbers[one.row], one.reason, one.code, row_itself(values))
                    out.add_bad(split, bad, is_set_aside=one.is_set_aside)
                if encoded is not None and len(encoded.table):
                    index = _index_of(encoded, rows, task.sizes(encoded.table))
                    encoded, index = classes.add(encoded, index, rows, is_training=split == "train")
                    out.parts.add(split, number, encoded, index, task.count_labels(encoded.table, self._state))
            bad_at = number if out.bad and bad_at is None else bad_at
            out.quarantine_bad(all_of_them=not fails)
            if time.monotonic() - told_at_s > TELL_EVERY_S:
                told_at_s = time.monotonic()
                yield {"ordinal": ordinal, ROWS_SO_FAR: out.num_read}
        if out.bad:
            raise refused(out.bad, out.num_read)
        yield {"ordinal": ordinal, "found": asdict(unique.close()), "classes": classes.names, **out.close()}


class _Output:
    """What becomes of the rows of one read task: samples, quarantined rows, dropped rows, and the counts of all."""

    def __init__(self, folder: Storage, duplicates: Duplicates, ordinal: int, rows_per_group: int):
        """`duplicates`: names the files."""
        self._folder, self._removed_name = folder, duplicates.name("cleaned", ordinal)
        self.parts = Parts(folder, ordinal, rows_per_group)
        self._quarantine, self._removed = Quarantine(folder, ordinal), RemovedRows()
        self._counts: defaultdict[str, RowCounts] = defaultdict(RowCounts)
        self._bad: list[tuple[str, BadRow]] = []  # with their splits, not yet quarantined
        self._set_aside: list[tuple[str, BadRow]] = []  # likewise; those whose task says that they are quarantined
        self.seen = Observed()
        self._labels: list[tuple[pa.ChunkedArray, list[list[str]]]] = []  # (rows, their labels) of the chunk

    @property
    def bad(self) -> list[BadRow]:
        """Rows that can't be used and are not quarantined."""
        return [one for _, one in self._bad]

    @property
    def num_read(self) -> int:
        """Rows so far."""
        return sum(counts.read for counts in self._counts.values())

    def add_bad(self, split: str, bad: BadRow, *, is_set_aside: bool = False) -> None:
        """Note a row that can't be used. `is_set_aside`: whether it is quarantined whatever data.on_error is."""
        (self._set_aside if is_set_aside else self._bad).append((split, bad))

    def add_unreadable(self, split: str, bad: list[BadRow]) -> None:
        """Note rows that could not be parsed. Those of a file of training rows are of them, wherever a fraction would
        have put them."""
        self._counts[split].read += len(bad)
        self._bad += [(split, one) for one in bad]
        self._labels = []

    def count_read(self, task: Task, split: str, rows: pa.Table) -> None:
        """Count rows of a file that could be parsed, by their labels too."""
        self._counts[split].read += len(rows)
        if (labels := task.row_labels(rows)) is not None:
            self._labels.append((rows[ROW], labels))
            self._counts[split].count_labels("read", labels)

    def cleaned(self, cleaner: Cleaner | None, path: str, split: str, rows: pa.Table) -> pa.Table:
        """The rows of a file that are left by the rules."""
        if cleaner is None:
            return rows
        found = cleaner.clean(rows, split)
        self._counts[split].add(found.counts)
        self._lose("dropped", split, (row for row, _ in found.removed))
        self.seen.add_seconds({f"clean.{rule}": seconds for rule, seconds in found.seconds.items()})
        for one in found.touched:
            what, texts = "dropped" if one.after is None else "changed", excerpts(one.before, one.after or "")
            place = f"{path}:{one.row}"
            self.seen.examples.add([Example(split, f"clean.{one.rule}", what, place, *texts, one.reason)])
        self._removed.add(split, path, "clean", found.removed)
        for row, reason, values in found.failed:
            self.add_bad(split, BadRow(path, row, reason, RowError.CUSTOM, values))
        return found.table

    def without_duplicates(self, unique: DuplicateFilter, split: str, rows: pa.Table, task: Task) -> pa.Table:
        """The rows that are neither leaks nor duplicates."""
        with self.seen.timed("dedup.leakage"):
            kept = unique.keep(split, rows, task)
        self._counts[split].duplicates += len(rows) - len(kept)
        if len(kept) < len(rows):
            self._lose("duplicates", split, set(rows[ROW].to_pylist()) - set(kept[ROW].to_pylist()))
        return kept

    def _lose(self, what: str, split: str, rows: Iterable[int]) -> None:
        """Count rows of the chunk that are not kept by their labels."""
        lost = set(rows)
        for numbers, labels in self._labels if lost else ():
            pairs = zip(numbers.to_pylist(), labels, strict=True)
            self._counts[split].count_labels(what, [names for row, names in pairs if row in lost])

    def quarantine_bad(self, *, all_of_them: bool) -> None:
        """Put the rows noted since the last call into the quarantine, in their order; those that are set aside, or
        all."""
        rows, self._set_aside = self._set_aside, []
        if all_of_them:
            rows, self._bad = [*rows, *self._bad], []
        rows.sort(key=lambda one: one[1].row)
        self._quarantine.add(rows)
        for split, one in rows:
            self._counts[split].quarantined += 1
            self._counts[split].codes[one.code.value] += 1
            if one.code != RowError.UNREADABLE:
                self._lose("quarantined", split, [one.row])
            text = one.data if isinstance(one.data, str) else json.dumps(one.data, ensure_ascii=False, default=str)
            stage = STAGE_OF.get(one.code, "encode")
            place, about = f"{one.path}:{one.row}", f"{one.code}: {one.reason}"
            self.seen.examples.add([Example(split, stage, "quarantined", place, excerpts(text)[0], reason=about)])

    def close(self) -> dict[str, Any]:
        """Write what is left. Returns the report on it."""
        written, index = self.parts.close()
        return {
            "written": written,
            "quarantined": self._quarantine.close().report(),
            "removed": self._removed.write(self._folder, self._removed_name),
            "counts": {split: counts.to_json() for split, counts in self._counts.items()},
            "seen": self.seen.to_json(),
            **index.to_bytes(),
        }


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
