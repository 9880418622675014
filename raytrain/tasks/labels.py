"""The state of a task with a fixed set of labels: their names, in id order, and with class weights those."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from raytrain.errors import ConfigError
from raytrain.tasks.base import TaskState, exact_weights


def label_state(labels: list[str]) -> TaskState:
    """The state of these labels; a label's id is its position."""
    return {"labels": labels}


def labels_in(state: TaskState) -> list[str]:
    """Label names in id order."""
    return state["labels"]


def count_labels(labels: Iterable[str], split: str) -> TaskState:
    """A chunk's survey: how often each label occurs."""
    return {"split": split, "counts": dict(Counter(labels))}


def found_in(surveys: list[TaskState]) -> set[str]:
    """The labels of all splits: one that only validation has is a label too, though no training sample has it."""
    return {label for survey in surveys for label in survey["counts"]}


def training_counts(surveys: list[TaskState]) -> Counter[str]:
    """How often each label occurs in the training split."""
    total: Counter[str] = Counter()
    for survey in surveys:
        if survey["split"] == "train":
            total.update(survey["counts"])
    return total


def class_weights(option: str | dict[str, float], labels: list[str], counts: Counter[str]) -> list[float]:
    """The weight of each label's loss, in id order.

    `balanced` is scikit-learn's: samples / (labels that occur * samples of the label), after King and Zeng (2001);
    a label without any training sample has 1.

    Raises ConfigError when the weights and the labels differ.
    """
    if isinstance(option, dict):
        missing, unknown = ([n for n in one if n not in other] for one, other in ((labels, option), (option, labels)))
        if missing or unknown:
            what = f"has no weight for {missing[0]!r}" if missing else f"names {unknown[0]!r}, which is not a label"
            raise ConfigError(f"task.class_weights {what}; give one for each of: {', '.join(labels)}")
        weights = [option[label] for label in labels]
    else:
        occurring = sum(counts[label] > 0 for label in labels)
        total = sum(counts[label] for label in labels)
        weights = [total / (occurring * counts[label]) if counts[label] else 1.0 for label in labels]
    return exact_weights(np.array(weights)).tolist()
