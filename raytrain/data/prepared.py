"""The prepared store: what PREPARE writes once and every run reads. No Ray, no torch.

A folder `<prepared_path>/<fingerprint>/` contains token Parquet in small row groups, an index of sample lengths for
each split (see `data.lengths`), and `manifest.json`, which is committed last: without it the folder is not a store. A
sample's id is its position in the split's prepared order (parts in the manifest's order, rows in file order), from 0.
"""

import hashlib
import itertools
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.data.damaged import DamagedError
from raytrain.data.lengths import Lengths, index_name, label_index_name
from raytrain.data.plain_types import in_storage_types, read_parquet
from raytrain.data.stages.counts import RowCounts
from raytrain.errors import DataError
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks.base import TaskState
from raytrain.tasks.labels import seldom_seen

FORMAT_VERSION = 7
MANIFEST_NAME = "manifest.json"
# Stores of at most this size are read whole to verify them. In a larger one, the checksum of each page that is read is.
WHOLE_BYTES = 1 << 30
# A file that is open takes a file descriptor, and its footer memory; a large store has thousands of parts.
MOST_OPEN_PARTS = 64


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
    index_bytes: int = 0
    """Size of the part's index: a Parquet file with each sample's `length`, its first source `row`, and in `more_rows`
    the others, where a sample has several."""
    index_sha256: str = ""
    """Hash of the bytes of the index; "": there is none."""
    file: int = 0
    """Which of the manifest's `sources` its rows are of."""

    @property
    def prefix(self) -> str:
        """With what the names of all files of its store begin that a preparation has written: nothing on a file system.
        In an object store, another preparation may have left files of another prefix beside them."""
        return self.name.rpartition("/")[2].partition("part-")[0]

    @property
    def index_name(self) -> str:
        """File name of the index relative to the store."""
        return f"index/{self.name}"


@dataclass(frozen=True)
class SourceInfo:
    """What a split has of one of data.train.sources. Its samples follow those of the sources before."""

    num_samples: int
    label_counts: dict[str, int]
    """How often each label that occurs is a target."""
    rows: dict[str, Any] = field(default_factory=dict)
    """What became of its rows: `RowCounts.to_json`."""
    class_counts: dict[str, int] = field(default_factory=dict)
    """As those of SplitInfo."""


@dataclass(frozen=True)
class SplitInfo:
    """The manifest's entry for one split."""

    num_samples: int
    num_tokens: int
    num_truncated: int
    """Rows longer than data.max_length."""
    num_quarantined: int
    """Source rows that could not be used; they are in quarantine/."""
    parts: list[Part]
    index_sha256: str
    """Hash of the checksums of the index; see `data.lengths`."""
    label_counts: dict[str, int] = field(default_factory=dict)
    """How often each label that occurs is a target; empty where targets are not labels."""
    num_removed: dict[str, int] = field(default_factory=dict)
    """Source rows that were removed as duplicates, by `stage.rule`; they are listed in removed.parquet."""
    num_leaks: int = 0
    """Training rows that nearly equal a held-out row and were kept, since data.dedup.leakage is `report`; they are
    listed in leaks.parquet."""
    num_short_leaks: int = 0
    """Training rows that do so, and are too short to be called leaks."""
    rows: dict[str, Any] = field(default_factory=dict)
    """What became of the source rows, which add up: `RowCounts.to_json`."""
    labels_sha256: str = ""
    """The hash of the index of labels, which `data.balance` goes by; "" without it."""
    sources: list[SourceInfo] = field(default_factory=list)
    """Of the training split what each of data.train.sources has; empty without them."""
    class_counts: dict[str, int] = field(default_factory=dict)
    """With a column in `data.balance.by`: samples by its value, in the order of the ids in the index of labels."""

    @property
    def num_read(self) -> int:
        """Source rows that were read: those in samples, those quarantined, dropped and removed."""
        return int(self.rows.get("read", 0))


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
    sources: list[str] = field(default_factory=list)
    """Paths of the source files of all splits."""
    format_version: int = FORMAT_VERSION

    @property
    def prefix(self) -> str:
        """That of its parts."""
        return next((part.prefix for info in self.splits.values() for part in info.parts), "")

    @property
    def row_counts(self) -> dict[str, RowCounts]:
        """What became of the source rows of each split."""
        return {split: RowCounts.from_json(info.rows) for split, info in self.splits.items() if info.rows}

    @property
    def remarks(self) -> list[str]:
        """What the rules of data.clean did to each split, and what is unusual about the labels, a sentence each."""
        cleaned = [f"{split}: {counts.sentence()}" for split, counts in self.row_counts.items() if counts.rules]
        labels = self.task_state.get("labels")
        counts = {split: info.label_counts for split, info in self.splits.items()}
        return [*cleaned, *seldom_seen(labels if isinstance(labels, list) else [], counts)]

    def to_json(self) -> bytes:
        """The manifest as the bytes of manifest.json."""
        raw = asdict(self)
        for info in raw["splits"].values():
            for part in info["parts"]:  # nearly all row groups have the same size, and 10^9 rows have millions of them
                runs = itertools.groupby(part["row_group_rows"])
                part["row_group_rows"] = [[rows, len(list(run))] for rows, run in runs]
        return json.dumps({**raw, "sha256": _hash_of(raw)}).encode()

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
            name: SplitInfo(
                **{
                    **info,
                    "parts": [_part_of(part) for part in info["parts"]],
                    "sources": [SourceInfo(**one) for one in info["sources"]],
                }
            )
            for name, info in raw["splits"].items()
        }
        return cls(raw["fingerprint"], raw["task_state"], raw["pad_token_id"], splits, raw["content"], raw["sources"])


def _part_of(raw: dict[str, Any]) -> Part:
    rows = [rows for rows, count in raw["row_group_rows"] for _ in range(count)]
    return Part(**{**raw, "row_group_rows": rows})


def _hash_of(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


class PreparedStore:
    """A committed prepared store, opened for reading."""

    def __init__(self, root: str):
        """Raises DataError when `root` has no committed manifest, or a damaged one."""
        self.storage = Storage(root)
        self.manifest = retrying(self._read_manifest, f"reading {self.storage.path_of()}")
        self._open_parts: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def _read_manifest(self) -> Manifest:
        try:
            return Manifest.from_json(self.storage.read_bytes(MANIFEST_NAME))
        except FileNotFoundError:
            raise DataError(f"there is no prepared data at {self.storage.path_of()}") from None
        except (ValueError, RecursionError):
            raise self._damaged(MANIFEST_NAME) from None

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
        parts = [part for info in self.manifest.splits.values() for part in info.parts]
        is_small = sum(part.num_bytes for part in parts) <= WHOLE_BYTES
        for split in self.manifest.splits:
            lengths, labels = self._lengths(split), self.labels(split)
            if is_small:
                lengths.verify()
            if is_small and labels is not None:
                labels.verify()
        indexes = [(part.index_name, part.index_bytes, part.index_sha256) for part in parts if part.index_sha256]
        for name, num_bytes, sha256 in [*((part.name, part.num_bytes, part.sha256) for part in parts), *indexes]:
            try:
                is_whole = self.storage.size_bytes(name) == num_bytes
            except FileNotFoundError:
                is_whole = False
            if not is_whole or (is_small and self.storage.sha256(name) != sha256):
                raise self._damaged(name)

    def lengths(self, split: str) -> Lengths:
        """The size of each sample: tokens, for texts. It reads what it is asked for.

        Raises DataError when the index is damaged, and OSError when storage fails for two minutes.
        """
        return retrying(lambda: self._lengths(split), f"reading {self.storage.path_of(index_name(split))}")

    def _lengths(self, split: str) -> Lengths:
        info = self.manifest.splits[split]
        lengths = Lengths(self.storage, index_name(split), info.num_samples, info.index_sha256)
        if sum(sum(part.row_group_rows) for part in info.parts) != info.num_samples:
            raise self._damaged(MANIFEST_NAME)
        return lengths

    def labels(self, split: str) -> Lengths | None:
        """The id of each sample's label; None where the store was prepared without `data.balance`. It reads what it is
        asked for.

        Raises DataError when the index is damaged.
        """
        info = self.manifest.splits[split]
        if not info.labels_sha256:
            return None
        return Lengths(self.storage, label_index_name(split), info.num_samples, info.labels_sha256)

    def row_group_starts(self, split: str) -> np.ndarray:
        """The first sample id of each row group, then the number of samples. Shape (num_row_groups + 1,), int64."""
        parts = self.manifest.splits[split].parts
        rows = [np.array([0], dtype=np.int64), *(np.array(part.row_group_rows, dtype=np.int64) for part in parts)]
        return np.cumsum(np.concatenate(rows))

    def read_row_group(self, split: str, row_group: int) -> pa.Table:
        """The rows of the split's row group with this index, counted over all its parts."""
        part, inside = self._place(split, row_group)
        file = self._file(part)
        try:
            rows = in_storage_types(file.read_row_group(inside))
        except pa.ArrowInvalid:
            raise self._damaged(part) from None
        except OSError as error:  # a page whose checksum is wrong, or storage that fails
            raise OSError(f"{self.storage.path_of(part)} can't be read: {error}") from error
        if len(rows) != self._part_of_name[part].row_group_rows[inside]:
            raise self._damaged(part)
        return rows

    def read_index(self, part: Part) -> pa.Table:
        """The index of a part: a row per sample. Raises DataError when it is damaged or missing."""
        try:
            with self.storage.open_input(part.index_name) as opened:
                index = read_parquet(opened, page_checksum_verification=True)
        except (FileNotFoundError, pa.ArrowInvalid):
            raise self._damaged(part.index_name) from None
        if len(index) != sum(part.row_group_rows):
            raise self._damaged(part.index_name)
        return index

    def row_group_bytes(self, split: str, row_group: int) -> int:
        """Compressed bytes that reading this row group takes from storage."""
        part, inside = self._place(split, row_group)
        group = self._file(part).metadata.row_group(inside)
        return sum(group.column(i).total_compressed_size for i in range(group.num_columns))

    @cached_property
    def _group_ends(self) -> dict[str, np.ndarray]:
        """Of each split: the row groups up to the end of each part, shape (num_parts,)."""
        return {
            split: np.cumsum([len(part.row_group_rows) for part in info.parts], dtype=np.int64)
            for split, info in self.manifest.splits.items()
        }

    def _place(self, split: str, row_group: int) -> tuple[str, int]:
        """The name of the part that has this row group of the split, and the row group's index in the part."""
        ends, parts = self._group_ends[split], self.manifest.splits[split].parts
        index = int(np.searchsorted(ends, row_group, side="right"))
        return parts[index].name, row_group - int(ends[index]) + len(parts[index].row_group_rows)

    def _file(self, name: str) -> pq.ParquetFile:
        """A part, opened for reading. The parts used last stay open."""
        if name not in self._open_parts:
            self._open_parts[name] = retrying(lambda: self._opened(name), f"opening {self.storage.path_of(name)}")
        self._open_parts.move_to_end(name)
        if len(self._open_parts) > MOST_OPEN_PARTS:
            self._open_parts.popitem(last=False)  # closed when no thread reads from it any more
        return self._open_parts[name]

    def _opened(self, name: str) -> pq.ParquetFile:
        part = self._part_of_name[name]
        try:
            opened = self.storage.open_input(name)
        except FileNotFoundError:
            raise self._damaged(name) from None
        if opened.size() != part.num_bytes:
            raise self._damaged(name)
        try:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
        except pa.ArrowInvalid:
            raise self._damaged(name) from None
        if file.metadata.num_rows != sum(part.row_group_rows):
            raise self._damaged(name)
        return file

    @cached_property
    def _part_of_name(self) -> dict[str, Part]:
        return {part.name: part for info in self.manifest.splits.values() for part in info.parts}

    def _damaged(self, name: str) -> DamagedError:
        return DamagedError(self.root, name)
