"""The unit of work of a prediction: a piece of a read task, some neighbouring rows of one file.

Which rows a piece has depends on the file alone. Each piece becomes one part in the work folder, written at once, so
that a command that was killed continues with the pieces that have no part.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from raytrain.data.bad_rows import Tally
from raytrain.data.encode import cannot_prepare
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, BadRow, Chunk, ReadTask, RowsChangedError, row_itself
from raytrain.data.storing import put
from raytrain.errors import FailureCode, RaytrainError
from raytrain.inference.card import ModelCard
from raytrain.inference.judging import JUDGED_COLUMNS, Judging, judge_rows
from raytrain.inference.predictor import Predictor, output_columns
from raytrain.inference.source import without_clashes
from raytrain.inference.texts import needed_columns
from raytrain.ray_core.nodes import own_node
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks.base import Task
from raytrain.tasks.predicting import Decoding, Predicting

PIECE_ROWS, PIECE_BYTES = 1024, 128 << 10
"""The most that a piece has: enough for batches of similar length, and little enough to share among workers. Long rows
are at least LEAST_ROWS in a piece."""
LEAST_ROWS = 64
PART, REFUSED, END, JUDGED = ".arrow", ".refused.jsonl", ".end.json", ".judged"


@dataclass(frozen=True)
class WorkSpec:
    """What every worker of a prediction is given."""

    card: ModelCard
    overrides: tuple[str, ...]
    columns: tuple[str, ...] | None
    """Columns of the source that are passed through; None: all."""
    decoding: Decoding
    embeddings: bool
    work: str
    """The folder of the parts, which no other prediction has; "": none are written."""
    num_threads: int
    use_gpu: bool
    judging: Judging | None = None
    """How answers are compared with targets; None: they are not."""


@dataclass(frozen=True)
class Done:
    """What became of a piece."""

    task: int
    """Index of the read task."""
    piece: int
    num_rows: int = 0
    """Rows with a prediction."""
    num_refused: int = 0
    num_truncated: int = 0
    num_bytes: int = 0
    """Of the rows in memory."""
    is_end: bool = False
    """There is no such piece: the read task has `piece` pieces, or fewer."""
    error: str = ""
    """What ends the command, for the user."""
    code: str = ""
    node: str = ""
    """Hex id of the worker's node, when it has loaded the model."""
    judged: pa.Table | None = None
    """That of `judge_rows`."""
    tally: list[dict[str, Any]] = field(default_factory=list)
    """With `judged`: the rows that can't be used, as `Tally.report` has them."""


def part_name(task: int, piece: int) -> str:
    """Name of a piece's files in the work folder, without their ending."""
    return f"{task:05d}-{piece:07d}"


def _passed_through(table: pa.Table, task: Task) -> pa.Table:
    """The columns that are written beside the predictions."""
    assert isinstance(task, Predicting)
    found = {name: task.passed_through(name, table[name]) for name in table.column_names}
    return pa.table({name: column for name, column in found.items() if column is not None})


class PieceWorker:
    """Predicts pieces. Lives in an actor, and loads the model once."""

    def __init__(self, spec: WorkSpec):
        self._spec, self._reader = spec, _PieceReader()
        self._work = Storage(spec.work) if spec.work else None
        self._predictor: Predictor | None = None
        self._others: list[Predictor] = []

    def load(self) -> Done:
        """Load the model. Raises nothing that is meant for the user, but returns it."""
        import ray
        import torch

        if not self._spec.use_gpu:
            torch.set_num_threads(self._spec.num_threads)
        try:
            device = "cuda" if self._spec.use_gpu else "cpu"
            overrides, judging = self._spec.overrides, self._spec.judging
            self._predictor = Predictor.load(self._spec.card, overrides, device, judging is not None)
            for other in () if judging is None else judging.others:
                self._others.append(Predictor.load(other, overrides, device, True))
        except (RaytrainError, OSError) as error:
            return _failed(-1, -1, error)
        return Done(-1, -1, node=own_node() if ray.is_initialized() else "")

    def predict(self, task: int, read_task: str, piece: int) -> Done:
        """Write the part of a piece, or note that the read task has fewer pieces. `read_task`: as JSON."""
        try:
            chunk = self._reader.piece(task, ReadTask.from_json(read_task), piece, self._joining())
            if chunk is None:
                if self._work is not None:
                    put(self._work, f"{task:05d}{END}", json.dumps(self._reader.count).encode())
                return Done(task, piece, is_end=True)
            return self._predict(task, piece, ReadTask.from_json(read_task).file.path, chunk)
        except RowsChangedError as error:
            self._forget(task)
            return _failed(task, piece, error)
        except (RaytrainError, OSError) as error:
            return _failed(task, piece, error)

    def _joining(self) -> Predictor | None:
        """The model that joins the sentences of a document, if one does."""
        joins = (one for one in self._others if getattr(one.config.task, "document_context", False))
        return next(joins, self._predictor)

    def _forget(self, task: int) -> None:
        """Remove the parts of a read task: they are of rows that are not those of the command's fingerprint."""
        for name in [] if self._work is None else self._work.list_names():
            assert self._work is not None
            if name.startswith(f"{task:05d}-"):
                self._work.delete(name)

    def _predict(self, task: int, piece: int, path: str, chunk: Chunk) -> Done:
        assert self._predictor is not None, "load comes first"
        spec, asked, judging = self._spec, self._predictor.task, self._spec.judging
        if spec.columns is None:
            is_judged = judging is not None
            added = output_columns(asked, spec.card, spec.decoding, embeddings=spec.embeddings, judged=is_judged)
            chunk = without_clashes(chunk, path, [*added, *(JUDGED_COLUMNS if is_judged else ())])
        judged = None
        if judging is None:
            rows = _with_columns(chunk.table, needed_columns(asked, chunk.table.column_names))
            found = self._predictor.predict_rows(rows, spec.decoding, embeddings=spec.embeddings)
        else:
            predictors = [self._predictor, *self._others]
            needed = [name for one in predictors for name in one.task.required_columns()]
            rows = _with_columns(chunk.table, [*needed, *([judging.by] if judging.by is not None else [])])
            judged = judge_rows(predictors, rows, judging, spec.decoding)
            found = judged.predicted
        numbers = rows[ROW].to_pylist()
        bad = list(chunk.bad_rows)
        for one in found.refused:
            (values,) = rows.slice(one.place, 1).to_pylist()
            bad.append(BadRow(path, numbers[one.place], one.reason, one.code, row_itself(values)))
        refused = {one.place for one in found.refused}
        good = chunk.table.filter(pa.array([i not in refused for i in range(len(rows))])) if refused else chunk.table
        kept = spec.columns if spec.columns is not None else [name for name in good.column_names if name != ROW]
        table = _with_columns(good, list(kept)).select(list(kept))
        if spec.columns is None:
            table = _passed_through(table, asked)
        for column in (found.table, *([judged.added] if judged is not None else [])):
            for name in column.column_names:
                table = table.append_column(name, column[name])
        done = Done(task, piece, len(good), len(bad), found.num_truncated, chunk.table.nbytes)
        if judged is not None:
            done = replace(done, judged=judged.table, tally=_tally_of(bad))
        if self._work is not None:
            self._write(done, table, sorted(bad, key=lambda one: one.row))
        return done

    def _write(self, done: Done, table: pa.Table, bad: list[BadRow]) -> None:
        """The part is written last: where it is, the piece is done."""
        assert self._work is not None, "without a work folder nothing is written"
        work = self._work
        name = part_name(done.task, done.piece)
        if bad:
            lines = [
                {"file": one.path, "row": one.row, "code": one.code, "reason": one.reason, "data": one.data}
                for one in bad
            ]
            put(work, f"{name}{REFUSED}", "".join(f"{json.dumps(x, default=str)}\n" for x in lines).encode())
        if done.judged is not None:
            put(work, f"{name}{JUDGED}", _ipc(done.judged, {"tally": json.dumps(done.tally)}))
        counts = {"refused": done.num_refused, "truncated": done.num_truncated, "bytes": done.num_bytes}
        data = _ipc(table, {"counts": json.dumps({**counts, "rows": done.num_rows})})
        retrying(lambda: work.commit_bytes(f"{name}{PART}", data), f"writing {work.path_of(name)}")


def _ipc(table: pa.Table, about: dict[str, str]) -> bytes:
    """A table as a file of Arrow's, with what is to be known about it."""
    sink, schema = pa.BufferOutputStream(), table.schema.with_metadata(about)
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.cast(schema) if table.schema != schema else table)
    return bytes(sink.getvalue().to_pybytes())


def _tally_of(bad: list[BadRow]) -> list[dict[str, Any]]:
    tally = Tally()
    for one in bad:
        tally.add("test", one)
    return tally.report()


def read_judged(work: Storage, done: Done) -> Done:
    """A piece that an earlier command has done, with what it has judged."""
    with work.open_input(f"{part_name(done.task, done.piece)}{JUDGED}") as opened:
        table = pa.ipc.open_file(opened).read_all()
    return replace(done, judged=table, tally=json.loads(table.schema.metadata[b"tally"]))


class _PieceReader:
    """Reads pieces of read tasks, in ascending order as far as possible: it keeps its place in the newest one."""

    def __init__(self) -> None:
        self._task, self.count = -1, 0
        """The number of pieces that were read of the task so far."""
        self._pieces: Iterator[Chunk] = iter(())

    def piece(self, task: int, read_task: ReadTask, number: int, predictor: Predictor | None) -> Chunk | None:
        """A piece of a read task; None when it has fewer. After an error the next call reads from the start: what has
        failed gives no more pieces, and must not look like the end."""
        if task != self._task or number < self.count:
            # Sentences of a document are joined as in training, within the chunks of the reader.
            joins = bool(getattr(getattr(predictor and predictor.task, "config", None), "document_context", False))
            self._task, self.count, self._pieces = task, 0, _pieces(read_task, is_cut=not joins)
        try:
            for chunk in self._pieces:
                self.count += 1
                if self.count == number + 1:
                    return chunk
        except BaseException:
            self._task = -1
            raise
        return None


def _pieces(read_task: ReadTask, *, is_cut: bool) -> Iterator[Chunk]:
    """The pieces of a read task. `is_cut`: False: one for each chunk of the reader."""
    for chunk in read_chunks(read_task):
        rows, bad = chunk.table, chunk.bad_rows
        per_row = rows.nbytes // max(1, len(rows))
        size = max(LEAST_ROWS, min(PIECE_ROWS, PIECE_BYTES // max(1, per_row))) if is_cut else max(1, len(rows))
        for begin in range(0, max(1, len(rows)), size):
            table = rows.slice(begin, size)
            is_last = begin + size >= len(rows)
            last_row = table[ROW][-1].as_py() if len(table) and not is_last else None
            own = [one for one in bad if last_row is None or one.row <= last_row]
            bad = [] if last_row is None else [one for one in bad if one.row > last_row]
            yield Chunk(table, own)


def _with_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The table, with nulls for columns that none of its rows has."""
    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table)))
    return table


def _failed(task: int, piece: int, error: Exception) -> Done:
    told: Any = error
    if isinstance(error, OSError):
        told = cannot_prepare("the predictions can't be made", error)
    code = told.code if isinstance(told, RaytrainError) else FailureCode.INTERNAL
    return Done(task, piece, error=str(told), code=code)
