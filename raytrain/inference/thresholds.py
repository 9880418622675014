"""The probability from which on a label is given, chosen on rows with targets: `raytrain eval --tune-threshold`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raytrain.inference.formats import TunedFor
from raytrain.inference.judging import unlisted
from raytrain.models.card import CARD, FACTS, FACTS_VERSION, model_card
from raytrain.storage import Storage
from raytrain.tasks.predicting import DEFAULT_THRESHOLD
from raytrain.tasks.scores import LabelScores

GRID = np.arange(1, 1000) / 1000
"""The thresholds that are tried, ascending."""


@dataclass(frozen=True)
class Tuned:
    """A threshold that was chosen."""

    threshold: float | dict[str, float]
    """One for all labels, or label -> its own."""
    metric: str
    """micro_f1 or macro_f1."""
    value: float
    """With this threshold, on the same rows that it was chosen on."""
    before: float
    """With 0.5."""
    num_rows: int


class ThresholdCounts:
    """How many thresholds lie below each probability, by label and by whether the label is true. Its size does not grow
    with the rows."""

    def __init__(self, labels: Sequence[str]):
        self.labels, self.num_rows = list(labels), 0
        self._counts = np.zeros((2, len(labels), len(GRID) + 1), np.int64)

    def add(self, table: pa.Table) -> None:
        """Add rows, as `judge_rows` made them."""
        self.add_rows(np.array(unlisted(table["probabilities"])), np.array(unlisted(table["targets_0"])))

    def add_rows(self, probabilities: np.ndarray, true: np.ndarray) -> None:
        """Add rows; both of shape (num_rows, num_labels)."""
        if not len(true):
            return
        labels = np.broadcast_to(np.arange(len(self.labels)), true.shape)
        np.add.at(self._counts, (true.astype(np.int64), labels, np.searchsorted(GRID, probabilities, "left")), 1)
        self.num_rows += len(true)

    def tuned(self, tuned_for: TunedFor) -> Tuned:
        """The best threshold. Of several that are as good, the one in the middle of the longest range of them; of a
        label that no row has, the default."""
        above = self._counts[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]  # probabilities above each threshold
        right, predicted = above[1], above.sum(0)
        true = np.broadcast_to(self._counts[1].sum(-1)[:, None], right.shape)
        by_label = LabelScores(right, predicted, true).f1
        micro = LabelScores(right.sum(0), predicted.sum(0), true.sum(0)).f1
        scores = micro if tuned_for == TunedFor.MICRO_F1 else by_label.mean(0)
        default = int(np.searchsorted(GRID, DEFAULT_THRESHOLD))
        metric = str(TunedFor.MICRO_F1 if tuned_for == TunedFor.MICRO_F1 else TunedFor.MACRO_F1)
        if tuned_for != TunedFor.LABELS:
            place = _middle_of_best(scores) if scores.any() else default
            return Tuned(float(GRID[place]), metric, float(scores[place]), float(scores[default]), self.num_rows)
        places = [_middle_of_best(row) if row.any() else default for row in by_label]
        thresholds = {name: float(GRID[place]) for name, place in zip(self.labels, places, strict=True)}
        value = float(np.mean([row[place] for row, place in zip(by_label, places, strict=True)]))
        return Tuned(thresholds, metric, value, float(scores[default]), self.num_rows)


def _middle_of_best(scores: np.ndarray) -> int:
    """The place in the middle of the longest range of the largest score; the first of ranges of one length."""
    is_best = np.concatenate([[False], scores == scores.max(), [False]])
    edges = np.flatnonzero(is_best[1:] != is_best[:-1])
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return int((begins[longest] + ends[longest] - 1) // 2)


def keep_threshold(folder: Storage, tuned: Tuned, data: str) -> None:
    """Write a threshold to raytrain.json and to the model card. `data`: where the rows were from. Raises OSError."""
    facts = folder.read_json(FACTS)
    about = {name: getattr(tuned, name) for name in ("metric", "value", "before", "num_rows")}
    facts |= {"threshold": tuned.threshold, "threshold_chosen": {**about, "rows_of": data}}
    facts["version"] = max(FACTS_VERSION, facts.get("version", 1))  # an older raytrain would go by 0.5
    folder.commit_bytes(FACTS, json.dumps(facts, indent=1).encode())
    folder.commit_bytes(CARD, model_card(facts, {}).encode())
