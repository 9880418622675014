"""How often the samples of a run's training split come in an epoch, from its config and its store. No Ray, no torch."""

from collections.abc import Sequence

import numpy as np

from raytrain.config import BalanceConfig, RunConfig
from raytrain.data.class_weights import class_weights_of
from raytrain.data.prepared import Manifest, PreparedStore, SourceInfo, SplitInfo
from raytrain.errors import ConfigError, DataError, counted
from raytrain.steps.copies import MOST_COPIES, Cells, Copies, Groups, count_cells, whole_counts
from raytrain.tasks.labels import labels_in

MOST_NAMED = 8  # labels in a note


class SourceGroups:
    """The group of each sample: its source, and in each source its label, where labels are balanced."""

    def __init__(self, source_starts: np.ndarray, labels: Groups | None, num_labels: int):
        """Args:
        source_starts: First sample id of each source. Shape (num_sources,).
        labels: The label of each sample; None: a source is one group, and `num_labels` is 1.
        """
        self._starts, self._labels, self._num_labels = source_starts, labels, num_labels

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """source * number of labels + label. `ids`: shape (n,); the result too."""
        source = np.searchsorted(self._starts, ids, side="right") - 1
        return source * self._num_labels + (0 if self._labels is None else self._labels[ids])


def make_copies(config: RunConfig, store: PreparedStore) -> Copies | None:
    """How often each sample comes in an epoch; None: once.

    Raises:
        ConfigError: data.balance does not fit the labels of the training data.
        DataError: The store was prepared without data.balance.
    """
    if not config.data.has_copies:
        return None
    by_source = copies_per_epoch(config, store.manifest)
    labels = None if config.data.balance is None else store.labels("train")
    if labels is None and config.data.balance is not None:
        raise DataError(
            f"the prepared data at {store.root} has no index of labels, which data.balance needs: delete the folder, "
            "and it will be prepared again"
        )
    sizes = [source.num_samples for source in _sources(config, store.manifest.splits["train"])]
    source_starts = np.cumsum([0, *sizes[:-1]])
    groups = SourceGroups(source_starts, labels, len(by_source[0]))
    per_epoch = [count for of_source in by_source for count in of_source.values()]
    starts = store.row_group_starts("train")
    if labels is None:  # a row group has one source: nothing has to be read
        num_rows = np.diff(starts)
        cells = Cells(np.arange(len(num_rows)), groups[starts[:-1]], num_rows)
    else:
        cells = count_cells(starts, groups, len(per_epoch))
    return Copies(starts, groups, cells, per_epoch, config.seed)


def copies_per_epoch(config: RunConfig, manifest: Manifest) -> list[dict[str, int]]:
    """For each source the samples of each label in an epoch, copies counted; without data.balance under "" those of all
    labels. Without weights all training data is one source.

    Raises ConfigError when data.balance or the weights do not fit the training data.
    """
    train, balance = manifest.splits["train"], config.data.balance
    sources, weights = _sources(config, train), config.data.train.weights
    total = config.data.samples_per_epoch(train.num_samples)
    found = []
    for place, (source, size) in enumerate(zip(sources, whole_counts(weights or [1.0], total), strict=True)):
        if weights is not None and not source.num_samples:
            raise ConfigError(
                f"data.train.sources.{place} has weight {weights[place]:g} and no usable row: leave it out, or see why "
                f"its rows can't be used: {(config.data.train.sources or [])[place].path}"
            )
        if balance is None:
            found.append({"": _checked("a sample", size, source.num_samples)})
            continue
        labels = _classes(balance, manifest)
        have = [_counts(balance, source).get(label, 0) for label in labels]
        wanted = zip(labels, _wanted(balance, labels, have, size), have, strict=True)
        found.append({label: _checked(f"a sample of {label!r}", count, num) for label, count, num in wanted})
    return found


def _sources(config: RunConfig, train: SplitInfo) -> list[SourceInfo]:
    """The sources that have weights; else all training data as one."""
    whole = SourceInfo(train.num_samples, train.label_counts, class_counts=train.class_counts)
    return train.sources if config.data.train.weights else [whole]


def _classes(balance: BalanceConfig, manifest: Manifest) -> list[str]:
    """What is balanced: the labels, or the values of a column."""
    return labels_in(manifest.task_state) if balance.column is None else list(manifest.splits["train"].class_counts)


def _counts(balance: BalanceConfig, source: SourceInfo) -> dict[str, int]:
    return source.label_counts if balance.column is None else source.class_counts


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


def describe_epoch(config: RunConfig, manifest: Manifest) -> list[str]:
    """Sentences on what an epoch has where it is not each sample once, and on the weights of labels.

    Raises ConfigError like `copies_per_epoch`, and when the weights and the labels differ.
    """
    return _of_copies(config, manifest) + _of_weights(config, manifest)


def _of_weights(config: RunConfig, manifest: Manifest) -> list[str]:
    weights = class_weights_of(config, manifest)
    if weights is None:
        return []
    return [f"training.class_weights: {_listed([f'{label!r} {weight:.4g}' for label, weight in weights.items()])}"]


def _listed(named: list[str]) -> str:
    more = [f"and {len(named) - MOST_NAMED:,} more labels"] if len(named) > MOST_NAMED else []
    return ", ".join([*named[:MOST_NAMED], *more])


def _of_copies(config: RunConfig, manifest: Manifest) -> list[str]:
    if not config.data.has_copies:
        return []
    train, by_source, weights = manifest.splits["train"], copies_per_epoch(config, manifest), config.data.train.weights
    size = sum(count for of_source in by_source for count in of_source.values())
    found = [f"an epoch has {counted(size, 'sample')} of the {train.num_samples:,} of the training data"]
    for place, (source, counts) in enumerate(zip(_sources(config, train), by_source, strict=True)):
        what = (
            "" if weights is None else f"data.train.sources.{place} {_times(sum(counts.values()), source.num_samples)}"
        )
        if (balance := config.data.balance) is not None:
            have = _counts(balance, source)
            named = [f"{label!r} {_times(count, have.get(label, 0))}" for label, count in counts.items()]
            of_labels = _listed(named)
            what = f"{what}, of which {of_labels}" if what else f"data.balance: {of_labels}"
        found += [what] if what else []
    return found


def _times(count: int, num: int) -> str:
    """A number of samples in an epoch, and how often each of these comes."""
    often = "once" if count == num else f"{count / max(1, num):.3g} times"
    return f"{count:,} (each of {num:,} comes {often})" if num else f"{count:,}"
