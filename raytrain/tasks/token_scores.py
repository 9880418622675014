"""Metrics of models that predict tokens: sums of losses, whose sizes do not grow with the data."""

import math

import numpy as np

from raytrain.tasks.base import Metrics
from raytrain.tasks.scores import CountedScores

LOSS_UNITS = 2**24
"""Losses are summed as integers, in units of 1/LOSS_UNITS, so that the sum does not depend on the order."""
MOST_NATS = 700.0  # of a mean loss whose perplexity a float can tell


def loss_units(loss: float) -> int:
    """A sum of losses in LOSS_UNITS."""
    return round(loss * LOSS_UNITS) if math.isfinite(loss) else np.iinfo(np.int64).max // 2**20


class TokenScores(CountedScores):
    """Perplexity, accuracy of the tokens, and bits per byte of the text where its bytes are known."""

    def __init__(self, *, knows_bytes: bool):
        self._knows_bytes = knows_bytes
        self._sums = np.zeros(4, dtype=np.int64)  # loss units, right tokens, tokens, bytes

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """For each sample (loss in LOSS_UNITS, tokens predicted right), and (targets, their bytes), int64."""
        if targets:
            self._sums += np.concatenate([np.sum(predictions, 0), np.sum(targets, 0)])

    def state(self) -> dict[str, np.ndarray]:
        """The sums."""
        return {"sums": self._sums}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's sums."""
        self._sums += state["sums"]

    def compute(self) -> Metrics:
        """All of them."""
        if not self._sums[2]:
            return Metrics({})
        values = {name: float(value) for name, value in self.values_of(self._sums.astype(np.float64)).items()}
        if not self._sums[3]:
            values.pop("bits_per_byte", None)
        return Metrics(values)

    def counts_of(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
        """The numbers of `update`, for each row."""
        pairs = zip(predictions, targets, strict=True)
        return np.array([np.concatenate(pair) for pair in pairs], np.float64).reshape(len(predictions), 4)

    def values_of(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics from sums of these numbers; 0 where there are no tokens or no bytes."""
        loss, right, tokens, num_bytes = np.moveaxis(counts, -1, 0)
        loss = loss / LOSS_UNITS
        values = {"perplexity": np.exp(np.minimum(_ratio(loss, tokens), MOST_NATS)) * (tokens > 0)}
        if self._knows_bytes:
            values["bits_per_byte"] = _ratio(loss / math.log(2), num_bytes)
        return {**values, "token_accuracy": _ratio(right, tokens)}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0))
