"""How well predictions order the rows of lists: what a reader is shown first, or a query finds.

Normalized discounted cumulative gain, Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques",
ACM TOIS 20(4), 2002, with the target as gain and the discount 1 / log2(1 + rank). Rows with equal predictions share
their gains, as in McSherry and Najork, "Computing information retrieval performance measures efficiently in the
presence of tied scores", ECIR 2008.
"""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np

from raytrain.tasks.base import Metrics

TOP = 10
NDCG = f"ndcg_at_{TOP}"
MOST_ROWS = 1_000_000
"""Rows that are kept, 24 bytes each: of more, the lists with the smallest numbers, which are a random choice."""
_BITS = 53  # of a list's number, so that it is exact in float64
_LAST = np.int64(2**62)


def list_number(cell: Any) -> int:
    """A number for the value of a list's column, below 2**53: a hash, the same everywhere."""
    digest = hashlib.blake2b(str(cell).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _BITS)


class RankedLists:
    """Predictions and targets by list, of whole lists, in bounded memory.

    Which lists are kept does not depend on the workers or on the order: those whose numbers are below the limit, which
    sinks as rows come.
    """

    def __init__(self, most_rows: int = MOST_ROWS):
        self._most_rows = most_rows
        self._lists, self._limit = np.zeros(0, np.int64), _LAST
        self._values = np.zeros((0, 2))
        """Prediction and target of each row, float64."""

    def add(self, lists: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> None:
        """Add rows. `lists`: their lists' numbers; each of shape (num_rows,)."""
        self._take(lists.astype(np.int64), np.stack([predicted, true], axis=1).astype(np.float64))

    def state(self) -> dict[str, np.ndarray]:
        """What another worker needs for `merge`."""
        return {"lists": self._lists, "values": self._values, "limit": np.array([self._limit], np.int64)}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's rows."""
        self._limit = min(self._limit, state["limit"][0])
        self._take(state["lists"], state["values"])

    def ndcg(self) -> float | None:
        """The mean over the lists with a target above 0; None: there is no such list."""
        order = np.lexsort((-self._values[:, 1], -self._values[:, 0], self._lists))
        lists, values = self._lists[order], self._values[order]
        begins = np.flatnonzero(np.diff(lists, prepend=-1))
        found = [_ndcg_of(one[:, 0], one[:, 1]) for one in np.split(values, begins[1:]) if len(one)]
        known = [one for one in found if one is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def is_whole(self) -> bool:
        """Whether all lists were kept."""
        return bool(self._limit == _LAST)

    @property
    def num_rows(self) -> int:
        """Rows that are kept."""
        return len(self._lists)

    def _take(self, lists: np.ndarray, values: np.ndarray) -> None:
        self._lists = np.concatenate([self._lists, lists])
        self._values = np.concatenate([self._values, values])
        if len(self._lists) > self._most_rows:
            # The list of the first row above the maximum goes whole, and all lists with larger numbers.
            self._limit = min(self._limit, np.partition(self._lists, self._most_rows)[self._most_rows])
        if self._limit < _LAST:
            keep = self._lists < self._limit
            self._lists, self._values = self._lists[keep], self._values[keep]


def with_ranking(metrics: Metrics, lists: RankedLists | None) -> Metrics:
    """The metrics with that of the lists, if there are any."""
    if lists is None:
        return metrics
    value, notes = lists.ndcg(), metrics.notes
    if value is None:
        notes += (f"{NDCG}: no list has a row whose first target is above 0, so there is nothing to find",)
    elif not lists.is_whole:
        notes += (f"{NDCG}: of a random choice of the lists, {lists.num_rows:,} rows in all",)
    return replace(metrics, values={**metrics.values, NDCG: 0.0 if value is None else value}, notes=notes)


def _ndcg_of(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """That of one list, whose predictions are in descending order. None: no target is above 0."""
    gains = np.maximum(true, 0.0)
    discounts = np.where(np.arange(len(gains)) < TOP, 1 / np.log2(np.arange(len(gains)) + 2.0), 0.0)
    best = float((np.sort(gains)[::-1] * discounts).sum())
    if best <= 0:
        return None
    tie = np.cumsum(np.diff(predicted, prepend=np.nan) != 0) - 1
    shared = np.bincount(tie, gains) / np.bincount(tie)
    return float((shared[tie] * discounts).sum()) / best
