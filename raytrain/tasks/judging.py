"""Answers beside the true labels: which are right, and the loss of each row, computed from the logits.

The losses are those of `Task.loss_sum`, in float64.
"""

import numpy as np
import pyarrow as pa

from raytrain.tasks.base import IGNORED, TaskState
from raytrain.tasks.exact_weights import exact_weights
from raytrain.tasks.labels import labels_in
from raytrain.tasks.predicting import DEFAULT_THRESHOLD, Decoding, Judged, sigmoid
from raytrain.tasks.sentences import of_sentences


def above(logits: np.ndarray, decoding: Decoding) -> np.ndarray:
    """Which labels are given: their probability is above the threshold. `logits`: shape (num_rows, num_labels)."""
    threshold = np.array(DEFAULT_THRESHOLD if decoding.threshold is None else decoding.threshold)
    return np.asarray(logits > np.log(threshold / (1 - threshold)))


def judge_one(logits: np.ndarray, labels: pa.ChunkedArray, state: TaskState, decoding: Decoding) -> Judged:
    """One label per row: cross-entropy.

    Args:
        logits: Shape (num_rows, num_labels), float32.
        labels: The id of each row's label.
    """
    true, names = labels.to_numpy().astype(np.int64), labels_in(state)
    weights = np.ones(len(true))
    if (by_class := state.get("class_weights")) is not None:
        weights = exact_weights(np.array(by_class))[true].astype(np.float64)
    predicted = logits.argmax(-1).reshape(-1, 1).astype(np.int32)
    losses = _cross_entropy(logits, true) * weights
    told = pa.table({"true_label": pa.array([names[i] for i in true], pa.string())})
    return Judged(list(predicted), list(true[:, None].astype(np.int32)), losses, weights, told)


def judge_several(logits: np.ndarray, labels: pa.ChunkedArray, state: TaskState, decoding: Decoding) -> Judged:
    """Any number of labels per row: binary cross-entropy, averaged over the labels.

    Args:
        logits: Shape (num_rows, num_labels), float32.
        labels: For each row 0 or 1 for each label.
    """
    names = labels_in(state)
    true = np.array(labels.to_pylist(), np.float64).reshape(logits.shape)
    wide = logits.astype(np.float64)
    losses = (np.maximum(wide, 0) - wide * true + np.log1p(np.exp(-np.abs(wide)))).mean(-1)
    told = [[names[i] for i in np.flatnonzero(row)] for row in true]
    return Judged(
        list(above(logits, decoding).astype(np.int32)),
        list(true.astype(np.int32)),
        losses,
        np.ones(len(true)),
        pa.table({"true_labels": pa.array(told, pa.list_(pa.string()))}),
        sigmoid(logits),
    )


def judge_tags(outputs: list[np.ndarray], samples: pa.Table, state: TaskState) -> Judged:
    """A tag per word: cross-entropy over the words of a sentence. A sentence of which no word fits has no target.

    Args:
        outputs: For each sample the logits of its words, shape (num_words, num_labels).
    """
    names, lengths = labels_in(state), samples["sentence_lengths"]
    logits = of_sentences(outputs, lengths)
    ids = [np.array(row, np.int64) for row in samples["labels"].to_pylist()]
    true = of_sentences([row[row != IGNORED] for row in ids], lengths)
    losses = [float(_cross_entropy(row, tags).sum()) for row, tags in zip(logits, true, strict=True)]
    told = pa.array([[names[i] for i in tags] for tags in true], pa.list_(pa.string()))
    return Judged(
        [row.reshape(len(row), len(names)).argmax(-1).astype(np.int32) for row in logits],
        [tags.astype(np.int32) for tags in true],
        np.array(losses, np.float64),
        np.array([len(tags) for tags in true], np.float64),
        pa.table({"true_tags": told}),
    )


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """That of each row of logits of shape (n, num_labels); float64, shape (n,)."""
    if not len(labels):
        return np.zeros(0)
    wide = logits.astype(np.float64)
    top = wide.max(-1)
    return np.asarray(top + np.log(np.exp(wide - top[:, None]).sum(-1)) - wide[np.arange(len(wide)), labels])
