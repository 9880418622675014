"""Which training rows duplicate a held-out row or one another, decided inside the tasks of PREPARE. No Ray, no torch.

Validation and test rows are few: their texts and band keys are files that each task reads, and looks its training rows
up in. `duplicate_passes` writes these files, and finds duplicates within the training rows.
"""

import functools
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import LeakagePolicy
from raytrain.data.parallel import in_threads
from raytrain.data.plain_types import read_parquet
from raytrain.data.readers.base import ROW
from raytrain.data.stages.examples import MOST_EXAMPLES, Example, excerpts
from raytrain.data.stages.held_out import Sides
from raytrain.data.stages.near_duplicates import (
    NUM_BANDS,
    THRESHOLD,
    KeyIndex,
    Match,
    band_keys,
    jaccard,
    normalized,
    shingle_set,
)
from raytrain.data.stages.removed import Removed, read_removed, write_removed
from raytrain.data.storing import read
from raytrain.storage import Storage
from raytrain.tasks.base import Task

STAGE = "dedup"
LEAKAGE, EXACT, NEAR = "leakage", "exact", "near"
# "Central Division" in two splits is a heading and no leak: shorter texts (as they are compared) are only counted.
MIN_CHARACTERS = 40
WORK = "work"
"""Folder of files that are deleted when the store is complete."""
HELD_OUT_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("text", pa.large_string()),
        ("keys", pa.binary(8 * NUM_BANDS)),
    ]
)


@dataclass(frozen=True)
class Duplicates:
    """What a task is told about duplicates."""

    leakage: LeakagePolicy
    root: str
    """The folder of the preparation, see `work_folder`."""
    prefix: str = ""
    """First in the name of each file, so that two passes don't share them."""
    held_out: tuple[str, ...] = ()
    """Files of held-out rows, in order of priority."""
    decided: "dict[int, Found] | None" = None
    """Read task -> what an earlier pass has found in it. None: each task has to look its rows up."""

    sides: dict[int, str] = field(default_factory=dict)
    """Read task -> file of its rows that are held out, or not, with another text."""

    edges: dict[str, int] | None = None
    """With data.validation.stratify: see `Sides`."""
    mixed: str = ""
    """File of the units whose rows have several labels."""

    def sides_of(self, ordinal: int) -> Sides:
        """What `split_rows` takes for a read task."""
        units = {}
        if ordinal in self.sides:
            table = read(Storage(self.root), self.sides[ordinal], read_parquet)
            units = dict(zip(table["row"].to_pylist(), table["unit"].to_pylist(), strict=True))
        return Sides(units, self.edges, _mixed_units(self.root, self.mixed) if self.mixed else {})

    @property
    def finds_leaks(self) -> bool:
        """Whether training rows have to be compared with held-out rows."""
        return self.leakage != LeakagePolicy.OFF and bool(self.held_out)

    def name(self, what: str, ordinal: int) -> str:
        """Name of a read task's file."""
        return f"{WORK}/{self.prefix}{what}-{ordinal:05d}.parquet"


@functools.lru_cache(1)
def _mixed_units(root: str, name: str) -> dict[int, str]:
    """A process has many tasks of the same attempt."""
    table = read(Storage(root), name, read_parquet)
    return dict(zip(table["unit"].to_pylist(), table["label"].to_pylist(), strict=True))


@dataclass
class Found:
    """What was found among a read task's training rows. JSON-able by `asdict`."""

    removed: list[str] = field(default_factory=list)
    """Names of the files of the rows that were removed."""
    leaks: list[str] = field(default_factory=list)
    """With data.dedup.leakage at `report`: names of the files of the rows that would have been."""
    num_leaks: int = 0
    """How many rows these files have."""
    num_short: int = 0
    """Rows that nearly equal a held-out row and are too short to say that they are leaks."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many rows each rule has removed."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first of each, with both texts: `Example` as JSON."""


class HeldOut:
    """Validation and test rows, looked up by text."""

    def __init__(self, rows: pa.Table):
        """Args:
        rows: HELD_OUT_SCHEMA, in order of priority.
        """
        # Of equal texts the first: many of them would fill a bucket, and hide the others in it.
        texts = rows["text"].combine_chunks().dictionary_encode().indices.to_numpy()
        self._rows = rows.take(np.sort(np.unique(texts, return_index=True)[1])).combine_chunks()
        keys = b"".join(self._rows["keys"].to_pylist())
        self._index = KeyIndex(np.frombuffer(keys, dtype="<u8").reshape(-1, NUM_BANDS))
        self._set_of = functools.lru_cache(4096)(lambda index: shingle_set(self.text(index)))

    @classmethod
    def read(cls, folder: Storage, names: tuple[str, ...]) -> "HeldOut":
        """From files."""

        read_table = functools.partial(read_parquet, schema=HELD_OUT_SCHEMA)
        return cls(pa.concat_tables(in_threads(lambda name: read(folder, name, read_table), names)))

    def matches(self, texts: list[str]) -> dict[int, Match]:
        """For each normalized text that nearly equals a held-out row, by its index, the most similar of those
        compared."""
        filled = np.array([i for i, text in enumerate(texts) if text], dtype=np.int64)
        if not len(filled) or not len(self._rows):
            return {}
        best: dict[int, Match] = {}
        for place, partner in self._index.candidates(band_keys([texts[i] for i in filled])).tolist():
            index = int(filled[place])
            similarity = self._jaccard(texts[index], partner)
            if similarity >= THRESHOLD and (index not in best or similarity > best[index].jaccard):
                best[index] = Match(index, partner, similarity)
        return best

    def place(self, partner: int) -> str:
        """FILE:ROW of a match's partner."""
        return f"{self._rows['file'][partner].as_py()}:{self._rows['row'][partner].as_py()}"

    def text(self, partner: int) -> str:
        """The text of a match's partner, as it is compared."""
        return self._rows["text"][partner].as_py()

    def _jaccard(self, text: str, partner: int) -> float:
        return 1.0 if text == self.text(partner) else jaccard(shingle_set(text), self._set_of(partner))


@functools.lru_cache(1)
def _held_out(root: str, names: tuple[str, ...]) -> HeldOut:
    """A process has many tasks of the same attempt."""
    return HeldOut.read(Storage(root), names)


def held_out_table(split: str, file: str, rows: list[int], texts: list[str]) -> pa.Table:
    """Rows with normalized texts as HELD_OUT_SCHEMA; those without a text are left out."""
    filled = [i for i, text in enumerate(texts) if text]
    texts = [texts[i] for i in filled]
    keys = [row.tobytes() for row in band_keys(texts).astype("<u8")] if texts else []
    columns = [[split] * len(texts), [file] * len(texts), [rows[i] for i in filled], texts, keys]
    return pa.table(dict(zip(HELD_OUT_SCHEMA.names, columns, strict=True)), HELD_OUT_SCHEMA)


def example_of(removed: Removed, text: str, partner: str, *, is_kept: bool = False) -> dict[str, Any]:
    """A pair of rows, as JSON. `text`, `partner`: their texts as they are compared."""
    stage, what = f"{removed.stage}.{removed.rule}", "kept" if is_kept else "dropped"
    pair = Example(
        split=removed.split,
        stage=stage,
        what=what,
        place=removed.places[0],
        text=excerpts(text, partner)[0],
        other=excerpts(text, partner)[1],
        partner=removed.partner or "",
        jaccard=removed.jaccard,
    )
    return asdict(pair)


class DuplicateFilter:
    """Leaves out the training rows of a read task that are duplicates."""

    def __init__(self, duplicates: Duplicates, ordinal: int, file: str):
        """Args:
        ordinal, file: The read task's index, and the path of its file.
        """
        self._duplicates, self._ordinal, self._file = duplicates, ordinal, file
        self._folder = Storage(duplicates.root)
        self._leaks: list[Removed] = []
        self._found = Found()
        self._decided: set[int] | None = None
        if duplicates.decided is not None:
            self._found = duplicates.decided.get(ordinal, self._found)
            removed = [one for name in self._found.removed for one in read_removed(self._folder, name)]
            self._decided = {one.row for one in removed}
            self._found.counts = dict(Counter(f"{one.stage}.{one.rule}" for one in removed))

    def keep(self, split: str, table: pa.Table, task: Task) -> pa.Table:
        """The rows of a chunk that stay."""
        if split != "train" or not len(table):
            return table
        rows = table[ROW].to_pylist()
        gone = self._decided
        if gone is None:
            if not self._duplicates.finds_leaks:
                return table
            leaks = self._find_leaks(rows, [normalized(text) for text in task.compared_texts(table)])
            self._leaks += leaks
            gone = {leak.row for leak in leaks} if self._duplicates.leakage == LeakagePolicy.REMOVE else set()
        if gone.isdisjoint(rows):
            return table
        return table.filter(pa.array([row not in gone for row in rows], pa.bool_()))

    def close(self) -> Found:
        """Write down what was removed. To be called after the last chunk."""
        if self._decided is None and self._leaks:
            is_removed = self._duplicates.leakage == LeakagePolicy.REMOVE
            name = self._duplicates.name("removed" if is_removed else "leaks", self._ordinal)
            write_removed(self._folder, name, self._leaks)
            if is_removed:
                self._found.removed, self._found.counts = [name], {f"{STAGE}.{LEAKAGE}": len(self._leaks)}
            else:
                self._found.leaks, self._found.num_leaks = [name], len(self._leaks)
        return self._found

    def _find_leaks(self, rows: list[Any], texts: list[str]) -> list[Removed]:
        held_out = _held_out(self._duplicates.root, self._duplicates.held_out)
        leaks = []
        for index, match in sorted(held_out.matches(texts).items()):
            if len(texts[index]) < MIN_CHARACTERS:
                self._found.num_short += 1
                continue
            place = held_out.place(match.partner)
            leaks.append(Removed("train", self._file, rows[index], STAGE, LEAKAGE, place, match.jaccard))
            if len(self._found.examples) < MOST_EXAMPLES:
                is_kept = self._duplicates.leakage == LeakagePolicy.REPORT
                partner = held_out.text(match.partner)
                self._found.examples.append(example_of(leaks[-1], texts[index], partner, is_kept=is_kept))
        return leaks
