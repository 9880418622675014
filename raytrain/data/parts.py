"""The parts that one read task writes: Parquet files of some ten thousand samples. Runs in Ray Data's processes."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.data.prepared import Part
from raytrain.data.stages.classes import CLASS, LABEL
from raytrain.data.storing import put
from raytrain.storage import Storage
from raytrain.tasks.base import Encoded

# A part is closed when it has this many rows. Larger parts would take readers more time and memory for their footers.
PART_ROWS = 65_536


# Keys of a report: the lengths and the labels (int32, little-endian) of the samples of all parts, one part after the
# other.
LENGTHS, LABELS = "lengths", "labels"


@dataclass(frozen=True)
class Index:
    """What the index has of some samples, beside the parts."""

    lengths: np.ndarray
    """Shape (num_samples,), int32."""
    labels: np.ndarray
    """Ids of their labels where `data.balance` needs them, else empty. With a column to balance by, ids of its values:
    those of the read task, and in the store those of the split. Shape (num_samples,) or (0,), int32."""

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """From the lines of a part's index."""
        name = next((name for name in (LABEL, CLASS) if name in table.column_names), None)
        labels = np.array([]) if name is None else table[name].to_numpy()
        return cls(table["length"].to_numpy().astype("<i4"), labels.astype("<i4"))

    @classmethod
    def joined(cls, several: Sequence[Self]) -> Self:
        """One after the other."""
        none = np.array([], dtype="<i4")
        return cls(
            np.concatenate([none, *(one.lengths for one in several)]),
            np.concatenate([none, *(one.labels for one in several)]),
        )

    def __getitem__(self, which: slice) -> Self:
        """The index of some of the samples."""
        return type(self)(self.lengths[which], self.labels[which])

    def to_bytes(self) -> dict[str, bytes]:
        """As columns of a report."""
        return {LENGTHS: self.lengths.tobytes(), LABELS: self.labels.tobytes()}

    @classmethod
    def from_bytes(cls, report: dict[str, Any]) -> Self:
        """The inverse of `to_bytes`."""
        return cls(np.frombuffer(report[LENGTHS], dtype="<i4"), np.frombuffer(report[LABELS], dtype="<i4"))


class Parts:
    """Writes the samples of one read task, in the order in which they are added."""

    def __init__(self, folder: Storage, ordinal: int, rows_per_group: int):
        """Args:
        ordinal: Index of the read task, part of the names of its files.
        """
        self._folder, self._ordinal = folder, ordinal
        self._rows_per_group = rows_per_group
        self._open: dict[str, _OpenPart] = {}
        self._written: list[dict[str, Any]] = []
        self._index: list[Index] = []

    def add(self, split: str, number: int, encoded: Encoded, index: pa.Table, label_counts: dict[str, int]) -> None:
        """Add a chunk's samples.

        Args:
            number: Index of the chunk.
            index: Their `length` and `row`, the first source row of each, and with `data.balance` their `label` or
                `class`.
        """
        schema = encoded.table.schema
        if split in self._open and self._open[split].schema != schema:
            self._write(split)
        if split not in self._open:
            name = f"{split}/part-{self._ordinal:05d}-{number:05d}.parquet"
            self._open[split] = _OpenPart(name, (self._ordinal, number), schema)
        part = self._open[split]
        part.add(encoded, self._rows_per_group)
        part.index.append(index)
        part.label_counts.update(label_counts)
        if sum(part.row_group_rows) >= PART_ROWS:
            self._write(split)

    def close(self) -> tuple[list[dict[str, Any]], Index]:
        """Write what is left. Returns a report on each part, and what the driver needs to know of their samples."""
        for split in list(self._open):
            self._write(split)
        return self._written, Index.joined(self._index)

    def _write(self, split: str) -> None:
        part = self._open.pop(split)
        self._written.append({"split": split, **part.write(self._folder)})
        self._index += [Index.of_table(index) for index in part.index]


class _OpenPart:
    """A part that further chunks may be added to. Each chunk begins a row group."""

    def __init__(self, name: str, place: tuple[int, int], schema: pa.Schema):
        self.name, self.place, self.schema = name, place, schema
        self.row_group_rows: list[int] = []
        self.index: list[pa.Table] = []
        self.label_counts: Counter[str] = Counter()
        self._num_truncated = 0
        self._buffer = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd", write_page_checksum=True)

    def add(self, encoded: Encoded, rows_per_group: int) -> None:
        """Add the samples of a chunk, at least one."""
        self._writer.write_table(encoded.table, row_group_size=rows_per_group)
        full, rest = divmod(len(encoded.table), rows_per_group)
        self.row_group_rows += [rows_per_group] * full + [rest] * bool(rest)
        self._num_truncated += encoded.num_truncated

    def write(self, folder: Storage) -> dict[str, Any]:
        """Write the file and its index. Returns the report on it, JSON-able."""
        self._writer.close()
        data = memoryview(self._buffer.getvalue())
        index = pa.BufferOutputStream()
        lines_of = pa.concat_tables(self.index)
        lines_of = lines_of.drop_columns([name for name in lines_of.column_names if name == CLASS])
        pq.write_table(lines_of, index, compression="zstd", write_page_checksum=True)
        lines = memoryview(index.getvalue())
        hashes = [hashlib.sha256(content).hexdigest() for content in (data, lines)]
        part = Part(self.name, self.row_group_rows, len(data), hashes[0], len(lines), hashes[1])
        put(folder, part.name, data)
        put(folder, part.index_name, lines)
        return {
            "part": asdict(part),
            "place": self.place,
            "num_truncated": self._num_truncated,
            "label_counts": dict(self.label_counts),
        }


def rows_in_group(num_bytes: int) -> int:
    """Rows per row group: a power of two from 16 to 256, which gives about 4096 row groups if a row has 1 KiB.

    A row group on the border between two lanes is read twice, so there must be far more row groups than
    lanes (P5); and small groups let the samples of a small data set mix well.
    """
    return 1 << max(4, min(8, (num_bytes >> 22).bit_length() - 1))
