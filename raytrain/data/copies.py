"""How often the samples of a run's training split come in an epoch, from its config and its store. No Ray, no torch."""

from collections.abc import Sequence

import numpy as np

from raytrain.config import BalanceConfig, RunConfig
from raytrain.data.prepared import PreparedStore, SplitInfo
from raytrain.errors import ConfigError, DataError, counted
from raytrain.steps.copies import MOST_COPIES, Copies, count_cells, whole_counts
from raytrain.tasks.base import TaskState
from raytrain.tasks.labels import labels_in

MOST_NAMED = 8  # labels in a note


class OneGroup:
    """All samples are of one group."""

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Zeros. `ids`: shape (n,); the result too."""
        return np.zeros(len(ids), np.int64)


def make_copies(config: RunConfig, store: PreparedStore) -> Copies | None:
    """How often each sample comes in an epoch; None: once.

    Raises:
        ConfigError: data.balance does not fit the labels of the training data.
        DataError: The store was prepared without data.balance.
    """
    if not config.data.has_copies:
        return None
    starts = store.row_group_starts("train")
    per_epoch = list(copies_per_epoch(config, store.manifest.splits["train"], store.manifest.task_state).values())
    groups = OneGroup() if config.data.balance is None else store.labels("train")
    if groups is None:
        raise DataError(
            f"the prepared data at {store.root} has no index of labels, which data.balance needs: delete the folder, "
            "and it will be prepared again"
        )
    return Copies(starts, groups, count_cells(starts, groups, len(per_epoch)), per_epoch, config.seed)


def copies_per_epoch(config: RunConfig, train: SplitInfo, state: TaskState) -> dict[str, int]:
    """Samples of each label in an epoch, copies counted; without data.balance under "" those of all samples.

    Raises ConfigError when data.balance does not fit the labels of the training data.
    """
    total, balance = config.data.samples_per_epoch(train.num_samples), config.data.balance
    if balance is None:
        return {"": _checked("a sample", total, train.num_samples)}
    labels = labels_in(state)
    have = [train.label_counts.get(label, 0) for label in labels]
    wanted = _wanted(balance, labels, have, total)
    return {
        label: _checked(f"a sample of {label!r}", count, num)
        for label, count, num in zip(labels, wanted, have, strict=True)
    }


def _wanted(balance: BalanceConfig, labels: list[str], have: Sequence[int], total: int) -> list[int]:
    """Samples of each label in an epoch. `have`: its samples in the training data."""
    match balance.to:
        case dict() as counts:
            try:
                balance.check_labels(labels)
            except ValueError as error:
                raise ConfigError(str(error)) from None
            for label, num in zip(labels, have, strict=True):
                if counts[label] and not num:
                    raise ConfigError(
                        f"data.balance.to asks for {counted(counts[label], 'sample')} of {label!r} in an epoch, and "
                        "the training data has none: set it to 0"
                    )
            return [counts[label] for label in labels]
        case "uniform":
            return whole_counts([float(num > 0) for num in have], total)
        case float() as temperature:
            return whole_counts(_tempered(have, temperature), total)


def _tempered(have: Sequence[int], temperature: float) -> list[float]:
    """n^(1/T), divided by that of the most frequent label: T near 0 would be too large for a number."""
    most = max(have)
    return [(num / most) ** (1.0 / temperature) if num else 0.0 for num in have]


def _checked(what: str, count: int, num: int) -> int:
    """The count. Raises ConfigError when a sample would have too many copies."""
    if count > num * (MOST_COPIES - 1):
        raise ConfigError(
            f"{what} would come more than {MOST_COPIES - 1:,} times in an epoch: lower data.epoch_samples, or the "
            "counts of data.balance.to"
        )
    return count


def describe_epoch(config: RunConfig, train: SplitInfo, state: TaskState) -> list[str]:
    """A sentence on what an epoch has, where it is not each sample once. Raises ConfigError like `copies_per_epoch`."""
    if not config.data.has_copies:
        return []
    found = copies_per_epoch(config, train, state)
    size = f"an epoch has {counted(sum(found.values()), 'sample')} of the {train.num_samples:,} of the training data"
    if config.data.balance is None:
        return [f"{size} (data.epoch_samples)"]
    named = [
        f"{label!r} {count:,} ({_times(count, train.label_counts.get(label, 0))})" for label, count in found.items()
    ]
    more = f", and {len(named) - MOST_NAMED:,} more labels" if len(named) > MOST_NAMED else ""
    return [f"{size} (data.balance): {', '.join(named[:MOST_NAMED])}{more}"]


def _times(count: int, num: int) -> str:
    """How often a label's samples come, in words."""
    often = "once" if count == num else f"{count / num:.3g} times"
    return f"each of {num:,} comes {often}" if num else "there are none"
