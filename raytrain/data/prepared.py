"""The prepared store: what PREPARE writes once and every run reads. No Ray, no torch.

A folder `<prepared_path>/<fingerprint>/` contains token Parquet in small row groups, an index of sample lengths for
each split, and `manifest.json`, which is committed last: without it the folder is not a store. A sample's id is its
position in the split's prepared order (parts in the manifest's order, rows in file order), from 0.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.errors import DataError, FailureCode
from raytrain.storage import Storage
from raytrain.tasks.base import TaskState

FORMAT_VERSION = 4
MANIFEST_NAME = "manifest.json"
# Stores of at most this size are read whole to verify them. In a larger one, the checksum of each page that is read is.
WHOLE_BYTES = 1 << 30


class DamagedError(DataError):
    """A file of a prepared store is not what was written."""

    code = FailureCode.STORAGE

    def __init__(self, root: str, name: str):
        super().__init__(
            f"the prepared data is damaged: {root}/{name} is not what was written; delete the folder {root}, and it "
            "will be prepared again"
        )
        self.path = f"{root}/{name}"


@dataclass(frozen=True)
class Part:
    """One Parquet file of a split."""

    name: str
    """File name relative to the store."""
    row_group_rows: list[int]
    """Rows of each row group, in file order."""
    num_bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file's bytes, which depend on the rows alone."""


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
    index_sha256: str
    """Hash of the index's bytes."""
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
        return json.dumps({**asdict(self), "sha256": _hash_of(asdict(self))}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Parse manifest.json.

        Raises:
            ValueError: It is damaged.
            DataError: Another version wrote it.
        """
        raw = json.loads(data)
        if not isinstance(raw, dict) or "format_version" not in raw:
            raise ValueError("not a manifest")
        version = raw["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"the prepared data has format {version}, this version reads {FORMAT_VERSION}: "
                "delete the folder, and it will be prepared again"
            )
        if raw.pop("sha256", None) != _hash_of(raw):
            raise ValueError("its hash is not that of its contents")
        splits = {
            name: SplitInfo(**{**info, "parts": [Part(**part) for part in info["parts"]]})
            for name, info in raw["splits"].items()
        }
        return cls(raw["fingerprint"], raw["task_state"], raw["pad_token_id"], splits, raw["content"])


def _hash_of(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def index_name(split: str) -> str:
    """File name of the split's index, a Parquet file with the column `length` (int32), one row a sample."""
    return f"index-{split}.parquet"


class PreparedStore:
    """A committed prepared store, opened for reading."""

    def __init__(self, root: str):
        """Raises DataError when `root` has no committed manifest, or a damaged one."""
        self.storage = Storage(root)
        try:
            self.manifest = Manifest.from_json(self.storage.read_bytes(MANIFEST_NAME))
        except FileNotFoundError:
            raise DataError(f"there is no prepared data at {self.storage.path_of()}") from None
        except (ValueError, RecursionError):
            raise self._damaged(MANIFEST_NAME) from None
        self._open_parts: dict[str, pq.ParquetFile] = {}

    @property
    def root(self) -> str:
        """The store's folder, with which another process can open it."""
        return self.storage.path_of()

    def has_split(self, split: str) -> bool:
        """Whether the split was prepared and has samples."""
        return split in self.manifest.splits and self.manifest.splits[split].num_samples > 0

    def verify(self) -> None:
        """Compare the files with what the manifest says of them: sizes, and where the store is small enough hashes.

        Raises DataError when the store is damaged.
        """
        for split in self.manifest.splits:
            self.lengths(split)
        parts = [part for info in self.manifest.splits.values() for part in info.parts]
        is_small = sum(part.num_bytes for part in parts) <= WHOLE_BYTES
        for part in parts:
            try:
                is_whole = self.storage.size_bytes(part.name) == part.num_bytes
            except FileNotFoundError:
                is_whole = False
            if not is_whole or (is_small and _sha256(self.storage, part.name) != part.sha256):
                raise self._damaged(part.name)

    def lengths(self, split: str) -> np.ndarray:
        """The size of each sample: tokens, for texts. Shape (num_samples,), int32.

        Raises DataError when the index is damaged.
        """
        info, name = self.manifest.splits[split], index_name(split)
        try:
            data = self.storage.read_bytes(name)
        except FileNotFoundError:
            raise self._damaged(name) from None
        if hashlib.sha256(data).hexdigest() != info.index_sha256:
            raise self._damaged(name)
        lengths = pq.read_table(pa.BufferReader(data), columns=["length"])["length"].to_numpy()
        if len(lengths) != info.num_samples or sum(sum(part.row_group_rows) for part in info.parts) != len(lengths):
            raise self._damaged(name)
        return lengths

    def row_group_starts(self, split: str) -> np.ndarray:
        """The first sample id of each row group, then the number of samples. Shape (num_row_groups + 1,), int64."""
        rows = [count for part in self.manifest.splits[split].parts for count in part.row_group_rows]
        return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)

    def read_row_group(self, split: str, row_group: int) -> pa.Table:
        """The rows of the split's row group with this index, counted over all its parts."""
        part, inside = self._places(split)[row_group]
        file = self._file(part)
        try:
            rows = file.read_row_group(inside)
        except pa.ArrowInvalid:
            raise self._damaged(part) from None
        except OSError as error:  # a page whose checksum is wrong, or storage that fails
            raise OSError(f"{self.storage.path_of(part)} can't be read: {error}") from error
        if len(rows) != self._part_of_name[part].row_group_rows[inside]:
            raise self._damaged(part)
        return rows

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
            opened = self.storage.open_input(name)
            part = self._part_of_name[name]
            if opened.size() != part.num_bytes:
                raise self._damaged(name)
            try:
                file = pq.ParquetFile(opened, page_checksum_verification=True)
            except pa.ArrowInvalid:
                raise self._damaged(name) from None
            if file.metadata.num_rows != sum(part.row_group_rows):
                raise self._damaged(name)
            self._open_parts[name] = file
        return self._open_parts[name]

    @cached_property
    def _part_of_name(self) -> dict[str, Part]:
        return {part.name: part for info in self.manifest.splits.values() for part in info.parts}

    def _damaged(self, name: str) -> DamagedError:
        return DamagedError(self.root, name)


def _sha256(storage: Storage, name: str) -> str:
    digest = hashlib.sha256()
    with storage.open_input(name) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
