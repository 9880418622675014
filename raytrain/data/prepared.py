"""The prepared store: what PREPARE writes once and every run reads. No Ray, no torch.

A folder `<prepared_path>/<fingerprint>/` contains token Parquet in small row groups, an index of sample lengths for
each split, and `manifest.json`, which is committed last: without it the folder is not a store. A sample's id is its
position in the split's prepared order (parts in the manifest's order, rows in file order), from 0.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.errors import DataError
from raytrain.storage import Storage
from raytrain.tasks.base import TaskState

FORMAT_VERSION = 4
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Part:
    """One Parquet file of a split."""

    name: str
    """File name relative to the store."""
    row_group_rows: list[int]
    """Rows of each row group, in file order."""
    num_bytes: int
    """Size of the file."""


@dataclass(frozen=True)
class SplitInfo:
    """The manifest's entry for one split."""

    num_samples: int
    num_tokens: int
    num_truncated: int
    """Rows longer than data.max_length."""
    num_set_aside: int
    """Source rows that could not be used; they are listed in rejected.jsonl."""
    parts: list[Part]
    label_counts: dict[str, int] = field(default_factory=dict)
    """How often each label that occurs is a target; empty where targets are not labels."""


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json."""

    fingerprint: str
    task_state: TaskState
    """What the task has learned from the data, such as its labels."""
    pad_token_id: int
    """Token id of padding, so that readers need no tokenizer; 0 if there is none."""
    splits: dict[str, SplitInfo]
    content: str
    """Hash of the prepared contents. Unlike the fingerprint, it does not depend on where the source files are."""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> bytes:
        """The manifest as the bytes of manifest.json."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Parse manifest.json. Raises DataError when another version wrote it."""
        raw = json.loads(data)
        if raw["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"the prepared data has format {raw['format_version']}, this version reads {FORMAT_VERSION}: "
                "delete the folder, and it will be prepared again"
            )
        splits = {
            name: SplitInfo(**{**info, "parts": [Part(**part) for part in info["parts"]]})
            for name, info in raw["splits"].items()
        }
        return cls(raw["fingerprint"], raw["task_state"], raw["pad_token_id"], splits, raw["content"])


def index_name(split: str) -> str:
    """File name of the split's index, a Parquet file with the column `length` (int32), one row a sample."""
    return f"index-{split}.parquet"


class PreparedStore:
    """A committed prepared store, opened for reading."""

    def __init__(self, root: str):
        """Raises DataError when `root` has no committed manifest."""
        self.storage = Storage(root)
        try:
            self.manifest = Manifest.from_json(self.storage.read_bytes(MANIFEST_NAME))
        except FileNotFoundError:
            raise DataError(f"there is no prepared data at {self.storage.path_of()}") from None
        self._open_parts: dict[str, pq.ParquetFile] = {}

    @property
    def root(self) -> str:
        """The store's folder, with which another process can open it."""
        return self.storage.path_of()

    def has_split(self, split: str) -> bool:
        """Whether the split was prepared and has samples."""
        return split in self.manifest.splits and self.manifest.splits[split].num_samples > 0

    def lengths(self, split: str) -> np.ndarray:
        """The size of each sample: tokens, for texts. Shape (num_samples,), int32."""
        with self.storage.open_input(index_name(split)) as file:
            return pq.read_table(file, columns=["length"])["length"].to_numpy()

    def row_group_starts(self, split: str) -> np.ndarray:
        """The first sample id of each row group, then the number of samples. Shape (num_row_groups + 1,), int64."""
        rows = [count for part in self.manifest.splits[split].parts for count in part.row_group_rows]
        return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)

    def read_row_group(self, split: str, row_group: int) -> pa.Table:
        """The rows of the split's row group with this index, counted over all its parts."""
        part, inside = self._places(split)[row_group]
        return self._file(part).read_row_group(inside)

    def row_group_bytes(self, split: str, row_group: int) -> int:
        """Compressed bytes that reading this row group takes from storage."""
        part, inside = self._places(split)[row_group]
        group = self._file(part).metadata.row_group(inside)
        return sum(group.column(i).total_compressed_size for i in range(group.num_columns))

    @cached_property
    def _places_of_split(self) -> dict[str, list[tuple[str, int]]]:
        return {
            split: [(part.name, i) for part in info.parts for i in range(len(part.row_group_rows))]
            for split, info in self.manifest.splits.items()
        }

    def _places(self, split: str) -> list[tuple[str, int]]:
        return self._places_of_split[split]

    def _file(self, name: str) -> pq.ParquetFile:
        if name not in self._open_parts:
            self._open_parts[name] = pq.ParquetFile(self.storage.open_input(name))
        return self._open_parts[name]
