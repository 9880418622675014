"""Metrics of models that predict tokens: sums of losses, whose sizes do not grow with the data."""

import math

import numpy as np

from raytrain.tasks.base import Metrics, Scores

LOSS_UNITS = 2**24
"""Losses are summed as integers, in units of 1/LOSS_UNITS, so that the sum does not depend on the order."""
MOST_NATS = 700.0  # of a mean loss whose perplexity a float can tell


def loss_units(loss: float) -> int:
    """A sum of losses in LOSS_UNITS."""
    return round(loss * LOSS_UNITS) if math.isfinite(loss) else np.iinfo(np.int64).max // 2**20


class TokenScores(Scores):
    """Perplexity, accuracy of the tokens, and bits per byte of the text where its bytes are known."""

    def __init__(self) -> None:
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
        units, right, tokens, num_bytes = map(int, self._sums)
        if not tokens:
            return Metrics({})
        loss = units / LOSS_UNITS
        values = {"perplexity": math.exp(min(loss / tokens, MOST_NATS))}
        if num_bytes:
            values["bits_per_byte"] = loss / math.log(2) / num_bytes
        return Metrics({**values, "token_accuracy": right / tokens})
