"""Metrics of classification as counts: of labels, and of pairs of a true and a predicted label.

The numbers are scikit-learn's (with zero_division=0), which the tests compare them with; entities are in `entities`.
"""

from abc import abstractmethod
from typing import Any

import numpy as np

from raytrain.tasks.base import Metrics, Scores

DENSE_LABELS = 200
"""Up to this many labels all pairs of a true and a predicted label are counted; of more those that are confused."""
MOST_PAIRS = 1 << 17
"""Pairs that are kept then, 2 MiB to send. If more occur, the counts of the most frequent are lower bounds."""
SHOWN_PAIRS = 50


class CountedScores(Scores):
    """Scores that follow from counts of each row that can be added up: those of many sets of rows are computed at once,
    as a bootstrap and slices of the data need it."""

    @abstractmethod
    def counts_of(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
        """The counts of each row, float64, shape (num_rows, num_counts)."""

    @abstractmethod
    def values_of(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The values of `compute`, each of shape (...), from sums of counts, of shape (..., num_counts)."""


class LabelCounts:
    """How often each label is right, is predicted, and is true."""

    def __init__(self, num_labels: int):
        self.counts = np.zeros((3, num_labels), dtype=np.int64)
        """Right, predicted, true; shape (3, num_labels)."""

    def add(self, predicted: np.ndarray, true: np.ndarray) -> None:
        """Label ids, each of shape (n,)."""
        for row, ids in enumerate((true[predicted == true], predicted, true)):
            self.counts[row] += np.bincount(ids, minlength=self.counts.shape[1])

    @property
    def num_samples(self) -> int:
        """Number of samples that were added."""
        return int(self.counts[2].sum())

    def per_label(self) -> "LabelScores":
        """Precision, recall and F1 of each label."""
        return LabelScores(*self.counts)

    def averages(self, accuracy: str = "accuracy") -> dict[str, float]:
        """The values of `label_averages`; `accuracy`: what the first is called."""
        return {name: float(value) for name, value in label_averages(self.counts, accuracy).items()}


def label_averages(counts: np.ndarray, accuracy: str = "accuracy") -> dict[str, np.ndarray]:
    """The share of right predictions; macro F1 over the labels that occur in truth or prediction, so that one which is
    absent does not drag it down; and F1 weighted by support. Each of shape (...).

    Args:
        counts: Right, predicted and true, shape (..., 3, num_labels).
        accuracy: What the first is called.
    """
    right, predicted, true = (counts[..., row, :] for row in range(3))
    scores = LabelScores(right, predicted, true)
    num_labels = ((predicted + true) > 0).sum(-1)
    values = {accuracy: _ratio(right.sum(-1), true.sum(-1)), "macro_f1": _ratio(scores.f1.sum(-1), num_labels)}
    return {**values, "weighted_f1": np.asarray(scores.weighted_f1)}


def counts_by_label(predicted: np.ndarray, true: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Right, predicted and true labels of each row, float64, shape (num_rows, 3, num_labels).

    Args:
        predicted, true, rows: Label ids and the row that each pair of them belongs to, shape (n,).
        shape: (num_rows, num_labels).
    """
    counts = np.zeros((shape[0], 3, shape[1]))
    is_right = predicted == true
    for what, (which, ids) in enumerate(((rows[is_right], true[is_right]), (rows, predicted), (rows, true))):
        np.add.at(counts[:, what], (which, ids), 1)
    return counts


class Confusion:
    """How often each label was predicted where each label is true: a matrix for up to DENSE_LABELS labels; for more the
    pairs that occur, since thousands of labels would need gigabytes."""

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self.is_dense = num_labels <= DENSE_LABELS
        self.places = np.arange(num_labels**2 if self.is_dense else 0)
        """true * num_labels + predicted of each pair that is counted, ascending; shape (num_pairs,)."""
        self.counts = np.zeros(len(self.places), dtype=np.int64)
        """How often each pair occurs; shape (num_pairs,)."""

    def add(self, predicted: np.ndarray, true: np.ndarray) -> None:
        """Label ids, each of shape (n,)."""
        places = true.astype(np.int64) * self.num_labels + predicted
        if not self.is_dense:
            places = places[predicted != true]  # of these LabelCounts knows all that is asked for
        self.add_counts(*np.unique(places, return_counts=True))

    def add_counts(self, places: np.ndarray, counts: np.ndarray) -> None:
        """Pairs and how often each occurs; shapes (n,). Of too many pairs the rarest are forgotten."""
        if self.is_dense:
            self.counts[places] += counts
            return
        self.places, where = np.unique(np.concatenate([self.places, places]), return_inverse=True)
        both = np.concatenate([self.counts, counts])
        self.counts = np.zeros(len(self.places), dtype=np.int64)
        np.add.at(self.counts, where, both)
        if len(self.places) > 2 * MOST_PAIRS:  # not at each batch, which would forget a pair as it begins to grow
            self.forget_rarest()

    def forget_rarest(self) -> None:
        """Keep at most MOST_PAIRS pairs."""
        if not self.is_dense and len(self.places) > MOST_PAIRS:
            kept = np.sort(np.argsort(-self.counts, kind="stable")[:MOST_PAIRS])
            self.places, self.counts = self.places[kept], self.counts[kept]

    def table(self, labels: list[str], num_true: np.ndarray) -> dict[str, dict[str, Any]]:
        """The matrix, or of too many labels the pairs that are confused most. `num_true`: shape (num_labels,)."""
        if self.is_dense:
            counts = self.counts.reshape(self.num_labels, self.num_labels).tolist()
            return {"confusion": {"labels": labels, "counts": counts}}
        most = np.argsort(-self.counts, kind="stable")[:SHOWN_PAIRS]
        rows = []
        for place, count in zip(self.places[most].tolist(), self.counts[most].tolist(), strict=True):
            true, predicted = divmod(place, self.num_labels)
            rows.append([labels[true], labels[predicted], count, count / int(num_true[true])])
        return {"most_confused": {"columns": ["true", "predicted", "count", "share"], "rows": rows}}


class LabelScores:
    """Precision, recall and F1 from counts, each of shape (..., num_labels); 0 where nothing can be divided."""

    def __init__(self, num_right: np.ndarray, num_predicted: np.ndarray, num_true: np.ndarray):
        self.num_predicted, self.num_true = num_predicted, num_true
        self.precision, self.recall = _ratio(num_right, num_predicted), _ratio(num_right, num_true)
        self.f1 = _ratio(2 * num_right, num_predicted + num_true)

    @property
    def weighted_f1(self) -> Any:
        """The mean of F1 weighted by how often each label is true, shape (...); 0 when none is."""
        return _ratio((self.f1 * self.num_true).sum(-1), self.num_true.sum(-1))

    def table(self, names: list[str], column: str = "label") -> dict[str, Any]:
        """A row for each label."""
        columns = zip(names, self.precision, self.recall, self.f1, self.num_true, strict=True)
        rows = [[name, float(p), float(r), float(f), int(support)] for name, p, r, f, support in columns]
        return {"columns": [column, "precision", "recall", "f1", "support"], "rows": rows}


class SingleLabelScores(CountedScores):
    """One label a sample: accuracy, macro and weighted F1, the table of labels, and the confusion matrix or, of many
    labels, the pairs that are confused most."""

    def __init__(self, labels: list[str]):
        self._labels = labels
        self._counts, self._confusion = LabelCounts(len(labels)), Confusion(len(labels))

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Label ids, shape (1,) for each sample."""
        if targets:
            predicted, true = np.concatenate(predictions), np.concatenate(targets)
            self._counts.add(predicted, true)
            self._confusion.add(predicted, true)

    def state(self) -> dict[str, np.ndarray]:
        """Counts by label, and of pairs of labels."""
        self._confusion.forget_rarest()
        return {"labels": self._counts.counts, "places": self._confusion.places, "pairs": self._confusion.counts}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's counts."""
        self._counts.counts += state["labels"]
        self._confusion.add_counts(state["places"], state["pairs"])

    def compute(self) -> Metrics:
        """All of them."""
        counts = self._counts
        if not counts.num_samples:
            return Metrics({})
        tables = {
            "per_class": counts.per_label().table(self._labels),
            **self._confusion.table(self._labels, counts.counts[2]),
        }
        return Metrics(counts.averages(), tables)

    def counts_of(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
        """Right, predicted and true, by label."""
        rows, num_labels = np.arange(len(targets)), len(self._labels)
        if not targets:
            return np.zeros((0, 3 * num_labels))
        found = counts_by_label(np.concatenate(predictions), np.concatenate(targets), rows, (len(rows), num_labels))
        return found.reshape(len(rows), -1)

    def values_of(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """All values."""
        return label_averages(counts.reshape(*counts.shape[:-1], 3, -1))


class MultiLabelScores(CountedScores):
    """Several labels a sample: the share of samples with all labels right; micro, macro and weighted F1; the table."""

    def __init__(self, labels: list[str]):
        self._labels = labels
        self._counts = np.zeros((3, len(labels)), dtype=np.int64)  # right, predicted, true
        self._samples = np.zeros(2, dtype=np.int64)  # all, and those with every label right

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """0 or 1 for each label, shape (num_labels,) for each sample."""
        if targets:
            predicted, true = np.stack(predictions), np.stack(targets)
            self._counts += np.stack([(predicted & true).sum(0), predicted.sum(0), true.sum(0)])
            self._samples += [len(true), (predicted == true).all(-1).sum()]

    def state(self) -> dict[str, np.ndarray]:
        """Counts by label, and of samples."""
        return {"counts": self._counts, "samples": self._samples}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's counts."""
        self._counts += state["counts"]
        self._samples += state["samples"]

    def compute(self) -> Metrics:
        """All of them; macro is over all labels."""
        if not self._samples[0]:
            return Metrics({})
        values = self.values_of(np.concatenate([self._counts.ravel(), self._samples]))
        table = LabelScores(*self._counts).table(self._labels)
        return Metrics({name: float(value) for name, value in values.items()}, {"per_class": table})

    def counts_of(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
        """Right, predicted and true, by label; the row itself, and whether all of its labels are right."""
        shape = (len(targets), len(self._labels))
        predicted, true = np.array(predictions).reshape(shape), np.array(targets).reshape(shape)
        samples = np.stack([np.ones(len(targets)), (predicted == true).all(-1)], -1)
        return np.concatenate([(predicted & true), predicted, true, samples], -1).astype(np.float64)

    def values_of(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """All values."""
        right, predicted, true = np.moveaxis(counts[..., :-2].reshape(*counts.shape[:-1], 3, -1), -2, 0)
        scores = LabelScores(right, predicted, true)
        return {
            "subset_accuracy": _ratio(counts[..., -1], counts[..., -2]),
            "micro_f1": LabelScores(right.sum(-1), predicted.sum(-1), true.sum(-1)).f1,
            "macro_f1": scores.f1.mean(-1),
            "weighted_f1": scores.weighted_f1,
        }


def _ratio(part: Any, whole: Any) -> Any:
    return np.divide(part, whole, out=np.zeros(np.shape(whole), dtype=np.float64), where=np.asarray(whole) > 0)
