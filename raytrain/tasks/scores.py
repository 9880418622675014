"""Metrics of classification as counts: a confusion matrix, or true and false positives of each label.

The numbers are scikit-learn's (with zero_division=0), which the tests compare them with; entities are in `entities`.
"""

from typing import Any

import numpy as np

from raytrain.tasks.base import Metrics, Scores


class Confusion:
    """How often each label was predicted where each label is true."""

    def __init__(self, labels: list[str]):
        self.labels = labels
        self.counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
        """Rows: true, columns: predicted; shape (num_labels, num_labels)."""

    def add(self, predicted: np.ndarray, true: np.ndarray) -> None:
        """Label ids, each of shape (n,)."""
        size = len(self.labels)
        places = true.astype(np.int64) * size + predicted
        self.counts += np.bincount(places, minlength=size * size).reshape(size, size)

    @property
    def num_samples(self) -> int:
        """Number of samples that were added."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """The share of correct predictions."""
        return float(np.trace(self.counts) / self.num_samples)

    def per_label(self) -> "LabelScores":
        """Precision, recall and F1 of each label."""
        return LabelScores(np.diag(self.counts), self.counts.sum(0), self.counts.sum(1))

    def averages(self) -> dict[str, float]:
        """Macro F1 over the labels that occur in truth or prediction, so that one which is absent does not drag it
        down, and F1 weighted by support."""
        scores = self.per_label()
        occurs = (scores.num_predicted + scores.num_true) > 0
        return {"macro_f1": float(scores.f1[occurs].mean()), "weighted_f1": scores.weighted_f1}


class LabelScores:
    """Precision, recall and F1 from counts, each of shape (num_labels,); 0 where nothing can be divided."""

    def __init__(self, num_right: np.ndarray, num_predicted: np.ndarray, num_true: np.ndarray):
        self.num_predicted, self.num_true = num_predicted, num_true
        self.precision, self.recall = _ratio(num_right, num_predicted), _ratio(num_right, num_true)
        self.f1 = _ratio(2 * num_right, num_predicted + num_true)

    @property
    def weighted_f1(self) -> float:
        """The mean of F1 weighted by how often each label is true; 0 when none is."""
        return float(_ratio(self.f1 @ self.num_true, self.num_true.sum()))

    def table(self, names: list[str], column: str = "label") -> dict[str, Any]:
        """A row for each label."""
        columns = zip(names, self.precision, self.recall, self.f1, self.num_true, strict=True)
        rows = [[name, float(p), float(r), float(f), int(support)] for name, p, r, f, support in columns]
        return {"columns": [column, "precision", "recall", "f1", "support"], "rows": rows}


class SingleLabelScores(Scores):
    """One label a sample: accuracy, macro and weighted F1, the table of labels, and the confusion matrix."""

    def __init__(self, labels: list[str]):
        self._confusion = Confusion(labels)

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Label ids, shape (1,) for each sample."""
        if targets:
            self._confusion.add(np.concatenate(predictions), np.concatenate(targets))

    def state(self) -> dict[str, np.ndarray]:
        """The confusion matrix."""
        return {"confusion": self._confusion.counts}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another confusion matrix."""
        self._confusion.counts += state["confusion"]

    def compute(self) -> Metrics:
        """All of them."""
        confusion = self._confusion
        if not confusion.num_samples:
            return Metrics({})
        tables = {
            "per_class": confusion.per_label().table(confusion.labels),
            "confusion": {"labels": confusion.labels, "counts": confusion.counts.tolist()},
        }
        return Metrics({"accuracy": confusion.accuracy, **confusion.averages()}, tables)


class MultiLabelScores(Scores):
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
        scores, total = LabelScores(*self._counts), LabelScores(*self._counts.sum(1))
        values = {
            "subset_accuracy": float(self._samples[1] / self._samples[0]),
            "micro_f1": float(total.f1),
            "macro_f1": float(scores.f1.mean()),
            "weighted_f1": scores.weighted_f1,
        }
        return Metrics(values, {"per_class": scores.table(self._labels)})


def _ratio(part: Any, whole: Any) -> Any:
    return np.divide(part, whole, out=np.zeros(np.shape(whole), dtype=np.float64), where=np.asarray(whole) > 0)
