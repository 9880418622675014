"""Duplicates within the training rows, found without a shuffle. No Ray, no torch.

    1. sketch      each read task writes the texts of its rows, and their keys sorted by value
    2. pairs       each range of key values: rows that share a key may be duplicates
    3. candidates  each read task keeps the texts of those rows only
    4. check       each read task compares its candidates with their partners before them
    5. choose      one task decides greedily, in the order of the sources, which rows go

A row's id is that of its read task and its position in the file, so ids are in the order of the sources. Texts of
candidates are all that a task reads of another one's rows; nothing is in Ray's object store.
"""

import functools
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raytrain.config import RunConfig
from raytrain.data.encode import NUM_READ, RowFunction
from raytrain.data.parallel import ahead, in_threads
from raytrain.data.plain_types import read_parquet
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, ReadTask
from raytrain.data.stages.clean import make_cleaner
from raytrain.data.stages.duplicates import EXACT, MIN_CHARACTERS, NEAR, STAGE, DuplicateFilter, Duplicates, example_of
from raytrain.data.stages.examples import MOST_EXAMPLES
from raytrain.data.stages.held_out import rows_of, source_columns
from raytrain.data.stages.near_duplicates import (
    NUM_BANDS,
    THRESHOLD,
    Match,
    band_keys,
    candidate_pairs,
    greedy,
    jaccard,
    normalized,
    shingle_set,
)
from raytrain.data.stages.removed import Removed, write_removed
from raytrain.data.storing import get, put, read
from raytrain.storage import Storage
from raytrain.tasks import make_task

ROW_BITS = 40  # of an id; the others are the read task's
# A range of keys is sorted in memory: 16 bytes each.
KEYS_PER_RANGE = 1 << 23
MOST_RANGES = 1024
TABLES_AHEAD = 4  # of candidates, which are read while others are compared: each may be large
TEXTS = pa.schema([("id", pa.int64()), ("text", pa.large_string())])
EDGES = pa.schema([("later", pa.int64()), ("earlier", pa.int64()), ("jaccard", pa.float32()), ("exact", pa.bool_())])


class Sketch(RowFunction):
    """Writes the texts of a read task's training rows that are not leaks, and their keys."""

    phase = "comparing training rows with each other"

    def __init__(self, config: dict[str, Any], duplicates: Duplicates, *, exact: bool, near: bool, whole: bool = False):
        """Args:
        exact, near: Which duplicates are looked for.
        whole: Whether all rows of the file are meant, before some are held out.
        """
        self._config, self._duplicates = config, duplicates
        self._exact, self._near, self._whole = exact, near, whole
        self.prefix = duplicates.prefix

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The number of keys, and which rows are leaks."""
        config, read_task = RunConfig.model_validate(self._config), ReadTask.from_json(row["task"])
        task, ordinal = make_task(config.task, config.data.max_length), row["ordinal"]
        unique = DuplicateFilter(self._duplicates, ordinal, read_task.file.path)
        tables, keys, ids = [], [np.array([], np.uint64)], [np.array([], np.int64)]
        sides, cleaner = self._duplicates.sides_of(ordinal), make_cleaner(config.data.clean, task)
        num_read = 0
        for chunk in read_chunks(read_task, source_columns(config, task)):
            num_read += chunk.num_rows
            splits = rows_of(config, task, read_task, chunk, sides, cleaner)
            if self._whole:
                splits = iter([("train", chunk.table)])
            for split, rows in splits:
                if split != "train" or not len(rows):
                    continue
                kept = unique.keep(split, rows, task)
                texts = [normalized(text) for text in task.compared_texts(kept)]
                filled = [i for i, text in enumerate(texts) if text]
                texts = [texts[i] for i in filled]
                of_rows = (ordinal << ROW_BITS) + kept[ROW].to_numpy().astype(np.int64)[filled]
                tables.append(pa.table([pa.array(of_rows), pa.array(texts, pa.large_string())], TEXTS))
                for some_keys, some_ids in self._keys(texts, of_rows):
                    keys.append(some_keys)
                    ids.append(some_ids)
        folder = Storage(self._duplicates.root)
        write_table(folder, self._duplicates.name("texts", ordinal), pa.concat_tables([TEXTS.empty_table(), *tables]))
        all_keys, all_ids = np.concatenate(keys), np.concatenate(ids)
        order = np.lexsort((all_ids, all_keys))
        content = [_starts(all_keys[order]).tobytes(), all_keys[order].tobytes(), all_ids[order].tobytes()]
        put(folder, self._duplicates.name("keys", ordinal), b"".join(content))
        found = asdict(unique.close())
        return {"ordinal": ordinal, "num_keys": len(order), "found": found, NUM_READ: num_read}

    def _keys(self, texts: list[str], ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(keys, id of each key), by option."""
        keys = []
        if self._exact and texts:
            digests = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts]
            keys.append((np.frombuffer(b"".join(digests), dtype="<u8"), ids))
        is_long = np.array([len(text) >= MIN_CHARACTERS for text in texts], dtype=bool)
        if self._near and is_long.any():
            bands = band_keys([text for text, long in zip(texts, is_long, strict=True) if long])
            keys.append((bands.ravel(), np.repeat(ids[is_long], NUM_BANDS)))
        return keys


def _starts(keys: np.ndarray) -> np.ndarray:
    """Where each of MOST_RANGES equal ranges of sorted keys begins, then the number of keys. Shape (MOST_RANGES + 1,),
    int64."""
    bounds = np.arange(1, MOST_RANGES, dtype=np.uint64) << np.uint64(64 - MOST_RANGES.bit_length() + 1)
    return np.concatenate([[0], np.searchsorted(keys, bounds), [len(keys)]]).astype("<i8")


class Pairs(RowFunction):
    """Finds the rows that share a key, in a range of keys."""

    def __init__(self, duplicates: Duplicates, ordinals: list[int], num_ranges: int):
        self._duplicates, self._ordinals, self._num_ranges = duplicates, ordinals, num_ranges
        self.prefix = duplicates.prefix

    @staticmethod
    def num_ranges(num_keys: int) -> int:
        """A power of two."""
        return min(MOST_RANGES, 1 << (num_keys // KEYS_PER_RANGE).bit_length())

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes the pairs of the range."""
        folder, width = Storage(self._duplicates.root), MOST_RANGES // self._num_ranges

        def keys_in(file: pa.NativeFile) -> tuple[np.ndarray, np.ndarray]:
            starts = np.frombuffer(file.read_at(8 * (MOST_RANGES + 1), 0), dtype="<i8")
            begin, end = (int(starts[i * width]) for i in (row["ordinal"], row["ordinal"] + 1))
            size, first = 8 * (end - begin), 8 * (MOST_RANGES + 1 + begin)
            keys = np.frombuffer(file.read_at(size, first), dtype="<u8")
            return keys, np.frombuffer(file.read_at(size, first + 8 * int(starts[-1])), dtype="<i8")

        names = [self._duplicates.name("keys", ordinal) for ordinal in self._ordinals]
        keys, ids = zip(*in_threads(lambda name: read(folder, name, keys_in), names), strict=True)
        pairs = candidate_pairs(np.concatenate(keys), np.concatenate(ids))
        put(folder, self._duplicates.name("pairs", row["ordinal"]), pairs.astype("<i8").tobytes())
        return {"ordinal": row["ordinal"]}


class _OnPairs(RowFunction):
    """What reads the pairs of all ranges."""

    def __init__(self, duplicates: Duplicates, num_ranges: int):
        self._duplicates, self._num_ranges = duplicates, num_ranges
        self.prefix = duplicates.prefix

    def _pairs(self, ordinal: int, *, of_partners: bool) -> np.ndarray:
        """Pairs (later, earlier) whose later row is the read task's, or with `of_partners` any of the two; sorted, each
        once. Shape (num_pairs, 2)."""
        folder = Storage(self._duplicates.root)

        def pairs_of(i: int) -> np.ndarray:
            pairs = np.frombuffer(get(folder, self._duplicates.name("pairs", i)), dtype="<i8").reshape(-1, 2)
            is_own = pairs >> ROW_BITS == ordinal
            return pairs[is_own.any(axis=1) if of_partners else is_own[:, 0]]

        return np.unique(np.concatenate(in_threads(pairs_of, range(self._num_ranges))), axis=0)


class Candidates(_OnPairs):
    """Keeps the texts of a read task's rows that are in a pair."""

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes them."""
        folder, ordinal = Storage(self._duplicates.root), row["ordinal"]
        ids = pa.array(np.unique(self._pairs(ordinal, of_partners=True)))

        def kept(opened: pa.NativeFile) -> list[pa.RecordBatch]:
            return [batch.filter(pc.is_in(batch["id"], ids)) for batch in pq.ParquetFile(opened).iter_batches()]

        batches = read(folder, self._duplicates.name("texts", ordinal), kept)
        write_table(folder, self._duplicates.name("candidates", ordinal), pa.Table.from_batches(batches, TEXTS))
        return {"ordinal": ordinal}


class Check(_OnPairs):
    """Compares the candidates of a read task with their partners."""

    phase = "comparing likely duplicates"

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes the pairs that are duplicates."""
        folder, ordinal = Storage(self._duplicates.root), row["ordinal"]
        pairs = self._pairs(ordinal, of_partners=False)
        own = _candidate_texts(folder, self._duplicates, ordinal)
        edges: dict[str, list[Any]] = {name: [] for name in EDGES.names}
        others = np.unique(pairs[:, 1] >> ROW_BITS).tolist()

        def read_texts(other: int) -> dict[int, str]:
            return own if other == ordinal else _candidate_texts(folder, self._duplicates, other)

        for other, texts in zip(others, ahead(read_texts, others, TABLES_AHEAD), strict=True):
            sets = functools.lru_cache(4096)(shingle_set)  # pairs are in order, so few are enough
            for later, earlier in pairs[pairs[:, 1] >> ROW_BITS == other].tolist():
                is_equal = own[later] == texts[earlier]
                similarity = 1.0 if is_equal else jaccard(sets(own[later]), sets(texts[earlier]))
                if similarity >= THRESHOLD:
                    for name, value in zip(EDGES.names, (later, earlier, similarity, is_equal), strict=True):
                        edges[name].append(value)
        write_table(folder, self._duplicates.name("edges", ordinal), pa.table(edges, EDGES))
        return {"ordinal": ordinal}


def _candidate_texts(folder: Storage, duplicates: Duplicates, ordinal: int) -> dict[int, str]:
    """The texts of the candidates of a read task, by id."""
    table = read_parquet(io.BytesIO(get(folder, duplicates.name("candidates", ordinal))))
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


class Choose(RowFunction):
    """Decides which rows go."""

    def __init__(self, duplicates: Duplicates, paths: dict[int, str]):
        """Args:
        paths: Read task -> path of its file.
        """
        self._duplicates, self._paths = duplicates, paths

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes a file for each read task that loses rows; gives their names, and the first pairs of each rule."""
        folder, is_exact, matches = Storage(self._duplicates.root), {}, []
        for edge in read_rows(folder, [self._duplicates.name("edges", ordinal) for ordinal in self._paths]):
            matches.append(Match(edge["later"], edge["earlier"], edge["jaccard"]))
            is_exact[edge["later"], edge["earlier"]] = edge["exact"]
        by_task: dict[int, list[Removed]] = {}
        first: dict[str, list[tuple[Match, Removed]]] = {EXACT: [], NEAR: []}
        for match in greedy(matches):
            ordinal, place = place_of(match.index)
            partner, partner_row = place_of(match.partner)
            rule = EXACT if is_exact[match.index, match.partner] else NEAR
            of_partner = f"{self._paths[partner]}:{partner_row}"
            removed = Removed("train", self._paths[ordinal], place, STAGE, rule, of_partner, match.jaccard)
            by_task.setdefault(ordinal, []).append(removed)
            if len(first[rule]) < MOST_EXAMPLES:
                first[rule].append((match, removed))
        names = []
        for ordinal, of_task in sorted(by_task.items()):
            names.append((ordinal, self._duplicates.name("within", ordinal)))
            write_removed(folder, names[-1][1], of_task)
        examples = [self._example(folder, *one) for of_rule in first.values() for one in of_rule]
        return {"ordinal": row["ordinal"], "names": names, "examples": examples}

    def _example(self, folder: Storage, match: Match, removed: Removed) -> tuple[int, dict[str, Any]]:
        """(read task, the pair with both texts)."""
        ids = (match.index, match.partner)
        texts = [_candidate_texts(folder, self._duplicates, place_of(one)[0])[one] for one in ids]
        return place_of(match.index)[0], example_of(removed, texts[0], texts[1])


def place_of(row: int) -> tuple[int, int]:
    """(read task, position in the file) of a row's id."""
    return row >> ROW_BITS, row & ((1 << ROW_BITS) - 1)


class InOrder(RowFunction):
    """Several passes over few rows, in one task: each pass of Ray Data takes longer than they do."""

    phase = "comparing likely duplicates"

    def __init__(self, passes: "list[tuple[list[dict[str, Any]], RowFunction]]"):
        self._passes = passes
        self.prefix = passes[-1][1].prefix

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """The last report."""
        last = [[function.report(one) for one in rows] for rows, function in self._passes][-1][-1]
        return {**last, "ordinal": row["ordinal"]}


def read_rows(folder: Storage, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of Parquet files, in their order. Many files are read at once, and their bytes are held together."""
    for data in in_threads(lambda name: get(folder, name), names):
        yield from read_parquet(io.BytesIO(data)).to_pylist()


def write_table(folder: Storage, name: str, table: pa.Table) -> None:
    """Write a table as a Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    put(folder, name, memoryview(buffer.getvalue()))
