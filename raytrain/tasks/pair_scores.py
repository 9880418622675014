"""Metrics of pairs: how often, and by how much, the chosen answer has the larger value."""

import numpy as np

from raytrain.tasks.base import Metrics
from raytrain.tasks.scores import CountedScores

UNIT = 2.0**-24
"""Values are summed as integers, in multiples of it, so that the sums do not depend on the order."""
MOST = 2.0**20
"""Larger values count as this one: sums of 2**18 of them are exact."""


class PairScores(CountedScores):
    """Accuracy, margin, and the means of the values of the pairs."""

    def __init__(self, names: list[str]):
        """`names`: of the values; the first two are compared."""
        self._names = names
        self._sums = np.zeros(2 + len(names), np.int64)  # pairs, right ones, values in UNIT

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Values of each pair, of shape (num_names,)."""
        if predictions:
            self._sums += self.counts_of(predictions, targets).sum(0).astype(np.int64)

    def state(self) -> dict[str, np.ndarray]:
        """The sums."""
        return {"sums": self._sums}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's sums."""
        self._sums += state["sums"]

    def compute(self) -> Metrics:
        """All of them."""
        if not self._sums[0]:
            return Metrics({})
        return Metrics({name: float(value) for name, value in self.values_of(self._sums.astype(np.float64)).items()})

    def counts_of(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
        """For each pair 1, whether it is right, and its values in UNIT."""
        values = np.array(predictions, np.float64).reshape(len(predictions), len(self._names))
        is_right = values[:, 0] > values[:, 1]
        whole = np.round(np.clip(np.nan_to_num(values, nan=MOST), -MOST, MOST) / UNIT)
        return np.column_stack([np.ones(len(values)), is_right, whole])

    def values_of(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics from sums of these numbers; 0 where there are no pairs."""
        pairs, right, *values = np.moveaxis(counts, -1, 0)
        means = [_ratio(value * UNIT, pairs) for value in values]
        found = {"accuracy": _ratio(right, pairs), "margin": means[0] - means[1]}
        return {**found, **dict(zip(self._names, means, strict=True))}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
