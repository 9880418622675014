"""Whether the difference of two models may be chance: a paired bootstrap over the rows that both have answered.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, for the percentile interval; Koehn,
Statistical Significance Tests for Machine Translation Evaluation (2004), for pairs; and Berg-Kirkpatrick, Burkett and
Klein, An Empirical Investigation of Statistical Significance in NLP (2012), for the p-value: with d the difference on
the data and d* that of a resample, p = (1 + #{|d* - d| >= |d|}) / (1 + number of resamples), two-sided.

A metric such as macro F1 is not a mean over rows. It follows from counts that can be added up (`CountedScores`), so a
resample is a weighted sum of the counts of rows, and the metrics of many resamples are computed at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.inference.judging import LOSS
from raytrain.tasks.base import Scores
from raytrain.tasks.predicting import Judged
from raytrain.tasks.scores import CountedScores

RESAMPLES = 10_000
SEED = 0
MOST_GROUPS = 4000
"""More rows than this are put into as many groups by a hash of their places, and groups are resampled: the memory does
not grow with the rows, and intervals become wider or narrower by about 1 percent."""
MOST_NUMBERS = 4 << 20  # in the arrays of counts: of many labels there are fewer groups
LEAST_GROUPS = 500
AT_ONCE = 250  # resamples


@dataclass(frozen=True)
class Difference:
    """By how much the second model's metric differs from the first one's."""

    metric: str
    first: float
    second: float
    difference: float
    """Second minus first."""
    low: float
    """95 % interval of the difference."""
    high: float
    p_value: float
    """How often a difference as large would be seen if there were none; two-sided. NaN where the difference is, as of
    losses that are not finite."""


class Pairs:
    """The counts of each row, or group of rows, for two models."""

    def __init__(self, scores: Sequence[Scores]):
        """`scores`: of each model. Unless they are `CountedScores`, the loss alone is compared."""
        self._scores = [one if isinstance(one, CountedScores) else None for one in scores]
        self._kept: dict[tuple[int, int], list[np.ndarray]] = {}
        self._grouped: list[np.ndarray] | None = None
        self.num_rows = 0
        self._most = MOST_GROUPS

    def add(self, key: int, rows: np.ndarray, judged: Sequence[Judged]) -> None:
        """Add rows. `key`, `rows`: which they are, unique together."""
        parts = [self._counts(number, one) for number, one in enumerate(judged)]
        self.num_rows += len(rows)
        width = max(part.shape[1] for part in parts)
        self._most = max(LEAST_GROUPS, min(MOST_GROUPS, MOST_NUMBERS // width))
        if self._grouped is None:
            self._kept |= {(key, int(row)): [part[i] for part in parts] for i, row in enumerate(rows)}
            if self.num_rows <= self._most:
                return
            keys, kept = list(self._kept), list(self._kept.values())
            self._grouped = [np.zeros((self._most, part.shape[1])) for part in parts]
            groups = _group(np.array([one[0] for one in keys]), np.array([one[1] for one in keys]), self._most)
            parts, self._kept = [np.array([one[i] for one in kept]) for i in range(len(parts))], {}
        else:
            groups = _group(np.full(len(rows), key), rows, len(self._grouped[0]))
        for total, part in zip(self._grouped, parts, strict=True):
            np.add.at(total, groups, part)

    def differences(self, resamples: int = RESAMPLES, seed: int = SEED) -> list[Difference]:
        """One for each metric that both models have, `loss` first."""
        counts = self._grouped
        if counts is None:
            kept = [self._kept[key] for key in sorted(self._kept)]
            counts = [np.array([one[number] for one in kept]) for number in range(2)]
        observed = [self._values(number, part.sum(0)) for number, part in enumerate(counts)]
        drawn = self._resampled(counts, resamples, seed)
        names = [name for name in observed[0] if name in observed[1]]
        return [_difference(name, observed, drawn[1][name] - drawn[0][name]) for name in names]

    def _resampled(self, counts: list[np.ndarray], resamples: int, seed: int) -> list[dict[str, np.ndarray]]:
        """For each model the metrics of all resamples, which are of the same rows for both."""
        random, num_groups = np.random.default_rng(seed), len(counts[0])
        found: list[dict[str, list[np.ndarray]]] = [{}, {}]
        for begin in range(0, resamples, AT_ONCE):
            size = min(AT_ONCE, resamples - begin)
            picks = random.integers(0, num_groups, (size, num_groups)) + num_groups * np.arange(size)[:, None]
            times = np.bincount(picks.ravel(), minlength=size * num_groups).reshape(size, num_groups).astype(np.float64)
            for number, part in enumerate(counts):
                for name, values in self._values(number, times @ part).items():
                    found[number].setdefault(name, []).append(values)
        return [{name: np.concatenate(parts) for name, parts in one.items()} for one in found]

    def _counts(self, number: int, judged: Judged) -> np.ndarray:
        """Loss, weight, and the counts of the metrics; shape (num_rows, num_counts)."""
        scores, own = self._scores[number], np.stack([judged.losses, judged.weights], -1)
        return (
            own if scores is None else np.concatenate([own, scores.counts_of(judged.predictions, judged.targets)], -1)
        )

    def _values(self, number: int, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics, each of shape (...); `counts`: shape (..., num_counts)."""
        weights = counts[..., 1]
        loss = np.divide(counts[..., 0], weights, out=np.zeros_like(weights), where=weights > 0)
        scores = self._scores[number]
        return {LOSS: loss, **({} if scores is None else scores.values_of(counts[..., 2:]))}


def _difference(name: str, observed: Sequence[dict[str, np.ndarray]], drawn: np.ndarray) -> Difference:
    """`drawn`: the differences of the resamples, shape (num_resamples,)."""
    first, second = (float(one[name]) for one in observed)
    difference = second - first
    if not math.isfinite(difference) or not np.isfinite(drawn).all():
        return Difference(name, first, second, difference, math.nan, math.nan, math.nan)
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    slack = 1e-12  # sums of the same numbers in another order
    p_value = (1 + int((np.abs(drawn - difference) >= abs(difference) - slack).sum())) / (1 + len(drawn))
    return Difference(name, first, second, difference, low, high, p_value)


def _group(keys: np.ndarray, rows: np.ndarray, num_groups: int) -> np.ndarray:
    """The group of each row, from a hash of its place (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + rows.astype(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(num_groups)).astype(np.int64)
