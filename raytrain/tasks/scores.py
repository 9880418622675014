"""Metrics from scikit-learn and seqeval, as numbers and as tables. Nothing is computed here that they compute."""

import warnings
from typing import Any

import numpy as np

from raytrain.tasks.base import Metrics


def single_label_scores(predicted: np.ndarray, true: np.ndarray, labels: list[str]) -> Metrics:
    """Scores of one label a sample. `predicted` and `true`: label ids, shape (num_samples,)."""
    from sklearn.metrics import accuracy_score, confusion_matrix

    if not len(true):
        return Metrics({})
    values = {"accuracy": float(accuracy_score(true, predicted)), **averages(predicted, true, labels)}
    counts = confusion_matrix(true, predicted, labels=range(len(labels)))
    tables = {
        "per_class": class_table(predicted, true, labels),
        "confusion": {"labels": labels, "counts": counts.tolist()},
    }
    return Metrics(values, tables)


def multi_label_scores(predicted: np.ndarray, true: np.ndarray, labels: list[str]) -> Metrics:
    """Scores of several labels a sample. `predicted` and `true`: 0 or 1, shape (num_samples, num_labels)."""
    from sklearn.metrics import accuracy_score, f1_score

    if not len(true):
        return Metrics({})
    if len(labels) == 1:  # one column looks to scikit-learn like two classes; an empty second one tells it otherwise
        predicted, true = np.pad(predicted, ((0, 0), (0, 1))), np.pad(true, ((0, 0), (0, 1)))
    values = {
        "subset_accuracy": float(accuracy_score(true, predicted)),
        "micro_f1": float(f1_score(true, predicted, average="micro", zero_division=0)),
        **averages(predicted, true, labels),
    }
    return Metrics(values, {"per_class": class_table(predicted, true, labels)})


def averages(predicted: np.ndarray, true: np.ndarray, labels: list[str]) -> dict[str, float]:
    """Macro F1 and F1 weighted by support. With one label a sample the mean is over the labels that occur in truth or
    prediction, with several over all labels, as scikit-learn has it."""
    from sklearn.metrics import f1_score

    # Without `labels` scikit-learn averages over those that occur, so a label that is absent does not drag it down.
    options: dict[str, Any] = {"zero_division": 0, "labels": range(len(labels)) if true.ndim == 2 else None}
    return {
        f"{average}_f1": float(f1_score(true, predicted, average=average, **options))
        for average in ("macro", "weighted")
    }


def class_table(predicted: np.ndarray, true: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support of each label."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(true, predicted, labels=range(len(labels)), zero_division=0)
    rows = [[label, *(float(column[i]) for column in scores[:3]), int(scores[3][i])] for i, label in enumerate(labels)]
    return {"columns": ["label", "precision", "recall", "f1", "support"], "rows": rows}


def entity_scores(predicted: list[list[str]], true: list[list[str]]) -> Metrics:
    """Entity-level scores of IOB2 tags, counted as conlleval counts: an entity is right when its type and both its
    ends are. One list of tags a sentence.

    seqeval is old (2020) but is what `evaluate` and the papers use; its default mode equals conlleval.
    """
    from seqeval.metrics import classification_report

    with warnings.catch_warnings():  # numpy's of a mean over no entity at all
        warnings.simplefilter("ignore", RuntimeWarning)
        report = classification_report(true, predicted, output_dict=True, zero_division=0)
    overall = report.get("micro avg", {})
    values = {
        f"entity_{name}": float(overall.get(key, 0.0))
        for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"))
    }
    columns = ["entity", "precision", "recall", "f1", "support"]
    rows = [
        [name, *(float(row[key]) for key in ("precision", "recall", "f1-score")), int(row["support"])]
        for name, row in report.items()
        if name not in ("micro avg", "macro avg", "weighted avg")
    ]
    return Metrics(values, {"entities": {"columns": columns, "rows": rows}})
