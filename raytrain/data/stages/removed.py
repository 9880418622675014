"""Source rows that a stage of PREPARE has removed, and why: `removed.parquet` of a prepared store. No Ray, no torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

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
        ("partner", pa.string()),
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
    folder.write_bytes(name, memoryview(buffer.getvalue()))


def read_removed(folder: Storage, name: str) -> Iterator[Removed]:
    """The rows of such a file, in their order; none if there is no file. Reads it a row group at a time."""
    try:
        opened = folder.open_input(name)
    except FileNotFoundError:
        return
    with opened:
        for batch in pq.ParquetFile(opened).iter_batches():
            yield from (Removed(**row) for row in batch.to_pylist())


def join_removed(folder: Storage, names: Sequence[str], target: str) -> None:
    """Write the rows of several such files as one, without having more than one of them in memory."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd") as writer:
        for name in names:
            with folder.open_input(name) as opened:
                writer.write_table(pq.read_table(opened, schema=SCHEMA))
    folder.write_bytes(target, memoryview(buffer.getvalue()))
