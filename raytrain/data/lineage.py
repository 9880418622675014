"""Where a sample comes from, and what became of a source row: answered from a prepared store's files. No Ray, no torch.

The index of each part has the source rows of its samples; `removed.parquet` and `quarantine/` list the rows that are
in none.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain.data.plain_types import read_parquet
from raytrain.data.prepared import PreparedStore
from raytrain.data.stages.quarantine import quarantined
from raytrain.data.stages.removed import LEAKS_NAME, REMOVED_NAME, Removed, read_removed
from raytrain.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """The source rows of a sample."""

    split: str
    sample: int
    file: str
    rows: list[int]
    """Positions in the file, from 1; of text formats the line in which a row starts. Empty: the task does not say."""

    def __str__(self) -> str:
        places = f":{','.join(map(str, self.rows))}" if self.rows else ", of an unknown row"
        return f"sample {self.sample} of {self.split} is from {self.file}{places}"


def source_of(store: PreparedStore, split: str, sample: int) -> Source:
    """The source rows of a sample.

    Raises:
        ConfigError: There is no such split or sample.
        DataError: The index of its part is damaged.
    """
    if not store.has_split(split):
        raise ConfigError(f"there is no split {split!r}; allowed: {', '.join(store.manifest.splits)}")
    info = store.manifest.splits[split]
    if not 0 <= sample < info.num_samples:
        raise ConfigError(f"--sample {sample}: {split} has the samples 0 to {info.num_samples - 1}")
    ends = np.cumsum([sum(part.row_group_rows) for part in info.parts])
    part = info.parts[int(np.searchsorted(ends, sample, side="right"))]
    place = sample - int(ends[info.parts.index(part)]) + sum(part.row_group_rows)
    line = store.read_index(part).slice(place, 1).to_pylist()[0]
    rows = [] if line["row"] is None else [line["row"], *(line["more_rows"] or [])]
    return Source(split, sample, store.manifest.sources[part.file], rows)


def fate_of(store: PreparedStore, place: str) -> tuple[list[str], list[Source]]:
    """What became of a source row.

    Args:
        place: FILE:ROW; the file's path, or the end of it.

    Returns:
        (a sentence for each thing that happened to it, the samples that it is in).

    Raises:
        ConfigError: There is no such file, or the row is in none of the lists.
    """
    file, row = _parsed(store, place)
    samples = list(_samples_with(store, store.manifest.sources.index(file), row))
    lines = [f"{file}:{row} is in sample {source.sample} of {source.split}" for source in samples]
    lines += [f"{file}:{row} was removed: {_why(one)}" for one in _listed(store, REMOVED_NAME, file, row)]
    lines += [f"{file}:{row} {_why(one)}, and was kept" for one in _listed(store, LEAKS_NAME, file, row)]
    for bad in quarantined(store.storage):
        if (bad["file"], bad["row"]) == (file, row):
            lines.append(f"{file}:{row} was quarantined: {bad['reason']} ({bad['code']})")
    if not lines:
        raise ConfigError(
            f"--row {place}: no row of {file} begins there. Rows are counted from 1; in text formats a row is named by "
            "the line in which it begins, headers and comments counted"
        )
    return lines, samples


def pairs(store: PreparedStore, most: int) -> Iterator[Removed]:
    """The first rows that duplicate another one, removed or not."""
    found = (one for name in (LEAKS_NAME, REMOVED_NAME) for one in read_removed(store.storage, name) if one.partner)
    for one, _ in zip(found, range(most), strict=False):
        yield one


def parse_place(place: str) -> tuple[str, int]:
    """FILE:ROW as (file, row). Raises ConfigError."""
    file, _, row = place.rpartition(":")
    if not file or not row.isdecimal():
        raise ConfigError(f"--row {place!r}: give FILE:ROW, such as data/train.csv:17")
    return file, int(row)


def _parsed(store: PreparedStore, place: str) -> tuple[str, int]:
    """(source file, row), from a place that may name the end of the file's path only. Raises ConfigError."""
    file, row = parse_place(place)
    sources = list(dict.fromkeys(store.manifest.sources))
    full = file if "://" in file else os.path.abspath(file)
    matching = [path for path in sources if path in (file, full)]
    # Of a query, whose path ends with the split, the database as the config names it is enough.
    matching = matching or [path for path in sources if "://" in file and path.rpartition("#")[0] == file]
    matching = matching or [path for path in sources if path.endswith(f"/{file}")]
    if len(matching) == 1:
        return matching[0], row
    what = "is the end of several source files" if matching else "is none of the source files"
    named = (matching or sources)[:5]
    more = ", ..." if len(matching or sources) > len(named) else ""
    raise ConfigError(f"--row {place}: {file} {what}: {', '.join(named)}{more}")


def _samples_with(store: PreparedStore, file: int, row: int) -> Iterator[Source]:
    """The samples that a row is in. Only indexes of the file's parts are read."""
    for split, info in store.manifest.splits.items():
        first = 0
        for part in info.parts:
            if part.file == file:
                for place in _places_of(store.read_index(part), row):
                    yield source_of(store, split, first + place)
            first += sum(part.row_group_rows)


def _places_of(index: pa.Table, row: int) -> list[int]:
    """Positions in a part of the samples that have a source row."""
    is_first = pc.equal(index["row"], row).fill_null(False).to_numpy()
    more = index["more_rows"].combine_chunks()
    is_among = np.zeros(len(index), dtype=bool)
    parents = pc.list_parent_indices(more).to_numpy()
    is_among[parents[pc.equal(more.flatten(), row).to_numpy(zero_copy_only=False)]] = True
    return np.flatnonzero(is_first | is_among).tolist()


def _listed(store: PreparedStore, name: str, file: str, row: int) -> Iterator[Removed]:
    """The lines for a row; row groups that can't have it are not read."""
    if not store.storage.exists(name):
        return
    with store.storage.open_input(name) as opened:
        for line in read_parquet(opened, filters=[("file", "=", file), ("row", "=", row)]).to_pylist():
            yield Removed(**line)


def _why(one: Removed) -> str:
    if one.partner is None:
        return f"{one.stage}.{one.rule}"
    return f"nearly equals {one.partner} ({one.stage}.{one.rule}, Jaccard {one.jaccard:.2f})"
