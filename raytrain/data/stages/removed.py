"""`removed.parquet` of a prepared store: each source row that a stage has removed, and by which rule.

Each read task writes a file of its own; they are joined when the store is committed, in the order of the sources.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.storage import Storage

REMOVED_NAME = "removed.parquet"
FOLDER = "removed"
"""Of the read tasks' files, until they are joined."""
SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("stage", pa.string()),  # clean
        ("rule", pa.string()),
        ("partner", pa.string()),  # FILE:ROW of the row that this one is nearly equal to
        ("jaccard", pa.float32()),
    ]
)
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
        folder.write_bytes(name, memoryview(self._buffer.getvalue()))
        return name

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting = []


def join_removed(folder: Storage, names: Sequence[str]) -> None:
    """Write `removed.parquet` of the files of the read tasks, one row group at a time, and delete them. It is there
    where nothing was removed too, without rows."""
    buffer = pa.BufferOutputStream()
    with _writer(buffer) as writer:
        for name in names:
            with folder.open_input(name) as opened:
                file = pq.ParquetFile(opened)
                for row_group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(row_group))
    folder.write_bytes(REMOVED_NAME, memoryview(buffer.getvalue()))
    for name in names:
        folder.delete(name)
    if folder.local_path() is not None:  # on an object store another attempt may have files there
        folder.delete(FOLDER)


def _writer(sink: pa.NativeFile) -> pq.ParquetWriter:
    return pq.ParquetWriter(sink, SCHEMA, compression="zstd")
