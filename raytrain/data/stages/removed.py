"""Source rows that a stage of PREPARE has removed, and why: `removed.parquet` of a prepared store. No Ray, no torch.

Each read task writes files of its own; they are joined when the store is committed, in the order of the sources.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.data.plain_types import in_storage_types
from raytrain.data.storing import get, put
from raytrain.storage import Storage

REMOVED_NAME = "removed.parquet"
# With data.dedup.leakage at `report`: what `remove` would have removed, in the same columns.
LEAKS_NAME = "leaks.parquet"
SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("partner", pa.string()),  # FILE:ROW of the row that this one is nearly equal to
        ("jaccard", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Removed:
    """A source row that is in no sample."""

    split: str
    file: str
    """Path of the source file."""
    row: int
    """Position in the file, from 1; of text formats the line in which the row starts."""
    stage: str
    """`clean` or `dedup`."""
    rule: str
    """Which of the stage's rules removed it."""
    partner: str | None = None
    """FILE:ROW of the row that it duplicates."""
    jaccard: float | None = None
    """How similar they are, from 0 to 1."""

    @property
    def places(self) -> list[str]:
        """FILE:ROW of the row, and of the one that it duplicates."""
        return [f"{self.file}:{self.row}", *([self.partner] if self.partner is not None else [])]


def write_removed(folder: Storage, name: str, rows: Iterable[Removed]) -> None:
    """Write a file of them, in the given order."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA), buffer, compression="zstd")
    put(folder, name, memoryview(buffer.getvalue()))


def read_removed(folder: Storage, name: str) -> Iterator[Removed]:
    """The rows of such a file, in their order; none if there is no file. Reads it a row group at a time."""
    try:
        data = get(folder, name)
    except FileNotFoundError:
        return
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches():
        yield from (Removed(**row) for row in in_storage_types(batch).to_pylist())


ROWS = 65_536  # that are compressed together


class RemovedRows:
    """Collects the rows that one read task removes."""

    def __init__(self) -> None:
        self._buffer = pa.BufferOutputStream()
        self._writer = _writer(self._buffer)
        self._waiting: list[pa.Table] = []
        self.num_rows = 0

    def add(self, split: str, file: str, stage: str, rows: Sequence[tuple[int, str]]) -> None:
        """Add rows of a file. `rows`: (row, rule) of each."""
        if not rows:
            return
        num_rows = len(rows)
        values = {
            "split": [split] * num_rows,
            "file": [file] * num_rows,
            "row": [row for row, _ in rows],
            "stage": [stage] * num_rows,
            "rule": [rule for _, rule in rows],
            "partner": [None] * num_rows,
            "jaccard": [None] * num_rows,
        }
        self._waiting.append(pa.table(values, schema=SCHEMA))
        self.num_rows += num_rows
        if sum(map(len, self._waiting)) >= ROWS:
            self._flush()

    def write(self, folder: Storage, name: str) -> str | None:
        """Write the file. Returns its name; None: nothing was removed."""
        self._flush()
        self._writer.close()
        if not self.num_rows:
            return None
        put(folder, name, memoryview(self._buffer.getvalue()))
        return name

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting = []


def join_removed(folder: Storage, names: Sequence[str]) -> memoryview:
    """The rows of several such files as one file, one row group after the other. Without rows where nothing was
    removed."""
    buffer = pa.BufferOutputStream()
    with _writer(buffer) as writer:
        for name in names:
            file = pq.ParquetFile(pa.BufferReader(get(folder, name)))
            for row_group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(row_group).cast(SCHEMA))
    return memoryview(buffer.getvalue())


def _writer(sink: pa.NativeFile) -> pq.ParquetWriter:
    return pq.ParquetWriter(sink, SCHEMA, compression="zstd")
