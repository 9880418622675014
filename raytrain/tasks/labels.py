"""The state of a task with a fixed set of labels, their names in id order; and class weights."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from raytrain.config.task import check_keys
from raytrain.errors import ConfigError, DataError, times
from raytrain.tasks.base import TaskState
from raytrain.tasks.exact_weights import exact_weights

UNLABELLED = ("-1", "-100")  # numbers that data sets give to rows without a label
SELDOM = 10  # a label that occurs less often in the training data can hardly be learned
MOST_NAMED = 8  # labels in a remark
FEW_ROWS = 10  # too few to say that there are nearly as many labels as rows


def label_state(labels: list[str]) -> TaskState:
    """The state of these labels; a label's id is its position."""
    return {"labels": labels}


def labels_in(state: TaskState) -> list[str]:
    """Label names in id order."""
    return state["labels"]


def count_labels(labels: Iterable[str], split: str) -> TaskState:
    """A chunk's survey: how often each label occurs."""
    return {"split": split, "counts": dict(Counter(labels))}


def count_ids(ids: np.ndarray, labels: list[str]) -> dict[str, int]:
    """How often each label that occurs does. `ids`: label ids, shape (n,)."""
    found, counts = np.unique(ids, return_counts=True)
    return {labels[i]: count for i, count in zip(found, counts.tolist(), strict=True)}


def found_in(surveys: list[TaskState]) -> set[str]:
    """The labels of all splits: one that only validation has is a label too, though no training sample has it."""
    return {label for survey in surveys for label in survey["counts"]}


def in_order(found: Iterable[str]) -> list[str]:
    """Labels by id: `O` first, then numbers by value, or if there are others all by name."""
    names = sorted(set(found) - {"O"})
    if all(re.fullmatch("-?[0-9]+", name) for name in names):
        names.sort(key=lambda name: (int(name), name))  # "1" and "01" are two labels
    return ["O"] * ("O" in found) + names


def check_several(found: Iterable[str], option: str, column: str) -> None:
    """Raises DataError when all rows have one label, from which there is nothing to learn."""
    names = list(found)
    if len(names) == 1:
        raise DataError(
            f"{option} {column!r}: the only label in the data is {names[0]!r}, so there is nothing to learn; name "
            "another column, or declare all labels in task.labels"
        )


def suspicious(surveys: list[TaskState], option: str, column: str) -> list[str]:
    """What looks wrong about the labels that were found, a sentence each, with how often they occur."""
    counts: Counter[str] = Counter()
    for survey in surveys:
        counts.update(survey["counts"])
    remarks = [
        f"label {name!r} ({times(counts[name])}) often means that there is no label; it is trained as a class: remove "
        "such rows if it is not one"
        for name in UNLABELLED
        if name in counts
    ]
    alike: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        alike[" ".join(name.casefold().split())].append(name)
    for names in alike.values():
        if len(names) > 1:
            listed = ", ".join(f"{name!r} ({times(counts[name])})" for name in names)
            remarks.append(
                f"these labels differ only in case or blanks, and are trained as different classes: {listed}"
            )
    if counts.total() >= FEW_ROWS and 2 * len(counts) > counts.total():
        remarks.append(
            f"{option} {column!r} has {len(counts)} different labels in {counts.total()} values: is it an id or a text?"
        )
    return remarks


def seldom_seen(labels: list[str], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence on the labels that the training data has seldom, and one on those that it does not have.

    Args:
        labels: All labels; empty: those that occur.
        counts: Split -> label -> how often it occurs there; empty where targets are not labels.
    """
    if not counts.get("train"):
        return []
    names = labels or list(dict.fromkeys(name for found in counts.values() for name in found))
    train = counts["train"]
    seldom = sorted((name for name in names if 0 < train.get(name, 0) < SELDOM), key=lambda name: train[name])
    absent = [name for name in names if not train.get(name)]
    remarks = []
    if seldom:
        listed = _listed([f"{name!r} ({times(train[name])})" for name in seldom])
        remarks.append(f"labels that occur fewer than {SELDOM} times in the training data are hard to learn: {listed}")
    if absent:
        listed = _listed([f"{name!r}{_elsewhere(name, counts)}" for name in absent])
        remarks.append(f"labels that the training data does not have can't be learned: {listed}")
    return remarks


def _elsewhere(name: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Where a label occurs that the training data does not have."""
    found = [f"{times(by_label[name])} in {split}" for split, by_label in counts.items() if by_label.get(name)]
    return f" ({', '.join(found)})" if found else ""


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


def class_weights(option: str | dict[str, float], labels: list[str], counts: Mapping[str, int]) -> list[float]:
    """The weight of each label's loss, in id order.

    `auto` is scikit-learn's `balanced`: samples / (labels that occur * samples of the label), after King and Zeng
    (2001); a label without any training sample has 1.

    Args:
        counts: How often each label that occurs does in the training data.

    Raises ConfigError when the weights and the labels differ.
    """
    if isinstance(option, dict):
        try:
            check_keys("training.class_weights", "weight", option, labels)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        weights = [option[label] for label in labels]
    else:
        have = [counts.get(label, 0) for label in labels]
        occurring, total = sum(num > 0 for num in have), sum(have)
        weights = [total / (occurring * num) if num else 1.0 for num in have]
    return exact_weights(np.array(weights)).tolist()
