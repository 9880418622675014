"""How often each sample occurs in an epoch, and the sequence of an epoch in which samples have several copies or none.

Samples belong to groups, such as the labels of a source. An epoch has a whole number of copies of each group, m, of its
n samples. The sample of rank r, in a permutation of the group that the seed determines, comes

    (m * (e + 1) + r) // n - (m * e + r) // n

times in epoch e. By Hermite's identity these add up to m in every epoch, and each sample comes m/n times, rounded up or
down; over any number of epochs the counts of two samples of a group differ by at most one.

Ranks are not stored. A *cell* is what a row group has of a group. Ranks go by the sample's place in its cell (by a hash
of its id), then by the cell (in a permutation), so that the number of a cell's samples below a rank takes no look at
them. So an epoch's layout takes memory and time by cells, and a window the samples of its row groups.

A row group is visited once or several times in an epoch, and each visit takes a share of the copies. Visits are few
enough that the rows that are read are at most those of the epoch and of the prepared data together. They are arranged
so that each stretch of the epoch has the groups in the epoch's proportions, and copies of a sample lie far apart.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raytrain.steps.hashes import GOLDEN, mixed

# Identifies the algorithm below in state.json, beside ORDER_VERSION, for runs whose samples have copies.
COPIES_VERSION = 1
# First in the seed of each random stream; `steps.order` has 1 to 3, `tasks.base` has 4.
_CELLS, _VISITS = 5, 6
_COPY_SHIFT = 40  # an entry has 40 bits for the sample's id and 23 for its copy
MOST_COPIES = 1 << 23
"""Of one sample in an epoch."""
_ID_MASK = (1 << _COPY_SHIFT) - 1


def ids_of(entries: np.ndarray) -> np.ndarray:
    """The sample ids of entries of an order. The same shape."""
    return entries & _ID_MASK


def copies_of(entries: np.ndarray) -> np.ndarray:
    """Which copy of its sample each entry is, from 0 in each epoch. The same shape."""
    return entries >> _COPY_SHIFT


def whole_counts(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportions of the weights that add up to `total`: each is rounded down, and those with the
    largest remainders get one more. Among equal remainders the first ones do.

    Raises ValueError when no weight is above 0.
    """
    if not any(weight > 0 for weight in weights):
        raise ValueError("no weight is above 0")
    shares = np.asarray(weights, np.float64) / float(np.sum(weights)) * total
    counts = np.floor(shares).astype(np.int64)
    missing = total - int(counts.sum())
    # Rounding errors may make a sum of floors too large or small by a few, of which no group without weight gets one.
    order = [place for place in np.argsort(counts - shares, kind="stable").tolist() if weights[place] > 0]
    for i in range(abs(missing)):
        counts[order[i % len(order)] if missing > 0 else order[-1 - i % len(order)]] += np.sign(missing)
    return counts.tolist()


class Groups(Protocol):
    """The group of each sample: an array, or something that reads only what it is asked for."""

    def __getitem__(self, ids: np.ndarray, /) -> np.ndarray:
        """The groups of these samples, in this order. `ids`: shape (n,); the result too."""


@dataclass(frozen=True)
class Cells:
    """What the row groups have of each group: the pairs that occur, by row group and then by group."""

    row_groups: np.ndarray
    """Shape (num_cells,)."""
    groups: np.ndarray
    """Shape (num_cells,)."""
    counts: np.ndarray
    """Samples of the cell, at least 1. Shape (num_cells,)."""


def count_cells(row_group_starts: np.ndarray, groups: Groups, num_groups: int, chunk_samples: int = 1 << 18) -> Cells:
    """The cells of a split. Reads the group of each sample once.

    Args:
        row_group_starts: First sample id of each row group, followed by the number of samples.
        chunk_samples: Samples that are looked at together, about.
    """
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    first, num_row_groups = 0, len(row_group_starts) - 1
    while first < num_row_groups:
        limit = row_group_starts[first] + chunk_samples
        stop = max(first + 1, int(np.searchsorted(row_group_starts, limit, side="right")) - 1)
        ids = np.arange(row_group_starts[first], row_group_starts[stop])
        inside = np.repeat(np.arange(stop - first), np.diff(row_group_starts[first : stop + 1]))
        counts = np.bincount(inside * num_groups + groups[ids], minlength=0)
        occurring = np.flatnonzero(counts)
        found.append((first + occurring // num_groups, occurring % num_groups, counts[occurring]))
        first = stop
    row_groups, of_group, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Cells(row_groups, of_group, counts)


@dataclass(frozen=True)
class Copies:
    """How often the samples of a split occur in each epoch."""

    row_group_starts: np.ndarray
    """First sample id of each row group, followed by the number of samples. Shape (num_row_groups + 1,)."""
    groups: Groups
    cells: Cells
    per_epoch: Sequence[int]
    """Samples of each group in an epoch, copies counted; 0 for a group without a sample. Shape (num_groups,)."""
    seed: int

    @functools.cached_property
    def num_samples(self) -> int:
        """Samples per epoch, copies counted."""
        return sum(self.per_epoch)

    @functools.cached_property
    def cell_keys(self) -> np.ndarray:
        """row group * number of groups + group of each cell, ascending. Shape (num_cells,)."""
        return self.cells.row_groups * len(self.per_epoch) + self.cells.groups

    @functools.cached_property
    def ranks(self) -> "list[_Ranks | None]":
        """The ranks within each group; None for one without samples."""
        order = np.argsort(self.cells.groups, kind="stable")
        bounds = np.searchsorted(self.cells.groups[order], np.arange(len(self.per_epoch) + 1))
        found: list[_Ranks | None] = []
        for group in range(len(self.per_epoch)):
            cells = order[bounds[group] : bounds[group + 1]]
            cells = np.random.default_rng((_CELLS, self.seed, group)).permutation(cells)
            found.append(_Ranks(cells, self.cells.counts[cells]) if len(cells) else None)
        return found

    def positions(self, ids: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The place of each sample in its cell, by a hash of its id and the seed.

        Args:
            ids: All samples of some cells. Shape (n,), and so is the result.
            places: Samples of one cell have one number. Shape (n,).
        """
        order = np.lexsort((_hash_of(ids, self.seed), places))
        ordered = places[order]
        is_first = np.r_[True, ordered[1:] != ordered[:-1]]
        starts = np.flatnonzero(is_first)
        positions = np.empty(len(ids), np.int64)
        positions[order] = np.arange(len(ids)) - starts[np.cumsum(is_first) - 1]
        return positions


class _Ranks:
    """The ranks of the samples of one group: by the place in the cell, then by the cell."""

    def __init__(self, cells: np.ndarray, counts: np.ndarray):
        """`cells`: their indices, in the order of ranks; `counts`: their samples. Shape (cells of the group,)."""
        self.cells, self._counts = cells, counts
        # Cells with more than p samples, for each p. Shape (largest count,).
        at_least = len(counts) - np.cumsum(np.bincount(counts))[:-1]
        # Samples at places before p, for each p. Shape (largest count + 1,).
        self._before = np.r_[0, np.cumsum(at_least)]

    @property
    def num_samples(self) -> int:
        """Samples of the group."""
        return int(self._before[-1])

    def below(self, rank: int) -> np.ndarray:
        """Samples of each cell whose rank is below this one, in [0, num_samples]: they have the first places."""
        place = int(np.searchsorted(self._before, rank, side="right")) - 1
        has_more = self._counts > place
        rest = rank - int(self._before[place])
        return np.minimum(self._counts, place) + (has_more & (np.cumsum(has_more) <= rest))


class CopiesLayout:
    """The visits of one epoch, in their order."""

    def __init__(self, copies: Copies, epoch: int):
        self._copies = copies
        num_row_groups = len(copies.row_group_starts) - 1
        self._count_copies(epoch)
        cells, extra = copies.cells, self._num_extra
        in_cell = self._base * cells.counts + extra
        most_in_cell = self._base + (extra > 0)
        # (num_row_groups,) each: samples in the epoch, the most copies of one, and visits
        total = np.bincount(cells.row_groups, weights=in_cell, minlength=num_row_groups).astype(np.int64)
        most = np.zeros(num_row_groups, np.int64)
        np.maximum.at(most, cells.row_groups, most_in_cell)
        visits = np.minimum(most, -(-total // np.maximum(1, np.diff(copies.row_group_starts))))
        # (num_visits,) each, by row group: the row group, the number of the visit, and the copies that it takes
        row_group = np.repeat(np.arange(num_row_groups), visits)
        number = np.arange(len(row_group)) - np.repeat(np.cumsum(visits) - visits, visits)
        per_visit, of_all = most[row_group], visits[row_group]
        first, stop = -(-number * per_visit // of_all), -(-(number + 1) * per_visit // of_all)
        sizes, main_group = self._sizes(row_group, first, stop)
        random = np.random.default_rng((_VISITS, copies.seed, epoch))
        order = _arranged(number, of_all, sizes, main_group, row_group, random)
        self._row_group, self._first, self._stop = row_group[order], first[order], stop[order]
        self._sizes_in_order = sizes[order]
        # (num_visits,): position in the epoch where the i-th visit ends
        self._ends = np.cumsum(self._sizes_in_order)

    @property
    def num_visits(self) -> int:
        """Reads of a row group in this epoch."""
        return len(self._ends)

    def entries(self, begin: int, end: int) -> np.ndarray:
        """Entries at positions [begin, end) of the epoch's sequence. Shape (end - begin,)."""
        if end <= begin:
            return np.empty(0, np.int64)
        first = int(np.searchsorted(self._ends, begin, side="right"))
        last = int(np.searchsorted(self._ends, end - 1, side="right"))
        found = self._entries_of(np.arange(first, last + 1))
        skipped = begin - int(self._ends[first] - self._sizes_in_order[first])
        return found[skipped : skipped + end - begin]

    def _count_copies(self, epoch: int) -> None:
        """Of each cell, the copies that all of its samples have at least, and which places have one more."""
        copies, num_cells = self._copies, len(self._copies.cells.counts)
        # (num_cells,) each. One more have the places from `_low` on and below `_high`; `_wraps`: those that are either.
        self._base, self._low, self._high = (np.zeros(num_cells, np.int64) for _ in range(3))
        self._wraps = np.zeros(num_cells, bool)
        for wanted, ranks in zip(copies.per_epoch, copies.ranks, strict=True):
            if ranks is None:
                continue
            num = ranks.num_samples
            base, more = divmod(wanted, num)
            low = (num - more - wanted * epoch) % num
            wraps = low + more > num
            self._base[ranks.cells] = base
            self._low[ranks.cells] = ranks.below(low)
            self._high[ranks.cells] = ranks.below(low + more - num * wraps)
            self._wraps[ranks.cells] = wraps
        self._num_extra = self._high - self._low + np.where(self._wraps, copies.cells.counts, 0)

    def _sizes(self, row_group: np.ndarray, first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples of each visit, and the group that most of them are of. Shape (num_visits,) each."""
        cells, extra = self._copies.cells, self._num_extra
        bounds = np.searchsorted(cells.row_groups, np.arange(len(self._copies.row_group_starts)))
        num_cells = np.diff(bounds)[row_group]
        starts = np.cumsum(num_cells) - num_cells
        # (sum of num_cells,): one for each cell of each visit
        visit = np.repeat(np.arange(len(row_group)), num_cells)
        cell = bounds[row_group[visit]] + np.arange(len(visit)) - starts[visit]
        base, low, high = self._base[cell], first[visit], stop[visit]
        few = np.maximum(0, np.minimum(base, high) - low)
        more = np.maximum(0, np.minimum(base + 1, high) - low)
        taken = few * (cells.counts[cell] - extra[cell]) + more * extra[cell]
        if not len(row_group):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        num_groups = len(self._copies.per_epoch)
        main = np.maximum.reduceat(taken * num_groups + cells.groups[cell], starts) % num_groups
        return np.add.reduceat(taken, starts), main

    def _entries_of(self, visits: np.ndarray) -> np.ndarray:
        """The entries of these visits, one visit after the other; in each by sample, then by copy."""
        copies, starts = self._copies, self._copies.row_group_starts
        row_group = self._row_group[visits]
        rows = starts[row_group + 1] - starts[row_group]
        # (rows of all visits,), and so are all arrays below
        visit = np.repeat(np.arange(len(visits)), rows)
        ids = np.arange(len(visit)) - (np.cumsum(rows) - rows)[visit] + starts[row_group][visit]
        cell = np.searchsorted(
            copies.cell_keys, row_group[visit] * len(copies.per_epoch) + copies.groups[ids].astype(np.int64)
        )
        place = copies.positions(ids, visit * len(copies.cell_keys) + cell)
        is_above, is_below = place >= self._low[cell], place < self._high[cell]
        has_more = np.where(self._wraps[cell], is_above | is_below, is_above & is_below)
        first, stop = self._first[visits][visit], self._stop[visits][visit]
        taken = np.maximum(0, np.minimum(self._base[cell] + has_more, stop) - first)
        # (samples of all visits,)
        number = np.arange(int(taken.sum())) - np.repeat(np.cumsum(taken) - taken, taken)
        return np.repeat(ids, taken) + ((np.repeat(first, taken) + number) << _COPY_SHIFT)


def _arranged(
    number: np.ndarray,
    of_all: np.ndarray,
    sizes: np.ndarray,
    main_group: np.ndarray,
    row_group: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """The order of the visits: each stretch of the epoch has the groups in the epoch's proportions.

    The visits of a row group are spread over the epoch: each has a slot of its own, and a random place in it. The
    visits of each main group are then put in this order at equal distances, by the samples in them.

    Args:
        number, of_all: Which visit of its row group each is, and how many that has.
        sizes: Samples of each visit.
        main_group: Group of most of its samples.

    Returns:
        A permutation of the visits. Shape (num_visits,), as all arguments.
    """
    if not len(number):
        return np.empty(0, np.int64)
    turned = random.random(int(row_group.max()) + 1)[row_group]  # the first visit is the fullest: it may have any slot
    slot = (number + (turned * of_all).astype(np.int64)) % of_all
    place = (slot + random.random(len(number))) / of_all
    by_group = np.lexsort((place, main_group))
    is_first = np.r_[True, np.diff(main_group[by_group]) != 0]
    starts, which = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    ends = np.cumsum(sizes[by_group])
    before = (ends - sizes[by_group])[starts]  # samples of the groups before
    totals = np.add.reduceat(sizes[by_group], starts)
    inside = ends - before[which] - random.random(len(number)) * sizes[by_group]
    return by_group[np.argsort(inside / totals[which], kind="stable")]


def _hash_of(ids: np.ndarray, seed: int) -> np.ndarray:
    """A hash of each id and the seed, uint64."""
    with np.errstate(over="ignore"):
        return mixed((ids.astype(np.uint64) + np.uint64(1)) * GOLDEN + np.uint64(seed % 2**64))
