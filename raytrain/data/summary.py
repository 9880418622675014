"""What a prepared store says about the data: rows by stage, source and label, lengths, padding, examples. JSON-able, so
that a run keeps it for its report. No Ray, no torch."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytrain.config import RunConfig
from raytrain.data.damaged import DamagedError
from raytrain.data.lengths import BLOCK_SAMPLES
from raytrain.data.prepared import PreparedStore, SplitInfo
from raytrain.data.stages.counts import LOST, RowCounts, stages_of
from raytrain.data.stages.examples import Observed
from raytrain.data.stages.removed import REMOVED_NAME
from raytrain.data.step_reader import make_order
from raytrain.steps.copies import ids_of

SUMMARY_NAME = "data_summary.json"
"""Of a run: the summary of its data, for its report."""
# Lengths of at most this many blocks of a split are read, evenly spaced: 16 MiB.
MOST_BLOCKS = 1024
PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
MOST_BARS = 32
STEPS_LOOKED_AT = 16  # of the first epoch, for the share of padding
MOST_LABELS = 50


@dataclass(frozen=True)
class RowsOf:
    """What became of the source rows of a split, or of one source of it."""

    split: str
    source: str
    """What data.train.sources names, such as `data.train.sources.0 (news/*.parquet)`; "" for the whole split."""
    read: int
    kept: int
    quarantined: int
    dropped: int
    duplicates: int

    @property
    def adds_up(self) -> bool:
        """Whether each row is counted once."""
        return self.read == self.kept + self.quarantined + self.dropped + self.duplicates


@dataclass(frozen=True)
class LengthsOf:
    """The lengths of a split's samples."""

    split: str
    num_samples: int
    num_seen: int
    """Samples whose lengths these numbers are of; of a large split, some."""
    num_truncated: int
    mean: float
    percentiles: list[int]
    """At PERCENTILES."""
    edges: list[int]
    """Lengths at which the bars of the histogram begin, then where the last one ends."""
    counts: list[int]
    """Samples of each bar."""


@dataclass
class DataSummary:
    """See the module. `asdict` of it is JSON-able, and `from_json` is the inverse."""

    rows: list[RowsOf]
    """Of each split, with the sources of the training split after it."""
    num_listed: int
    """Rows that removed.parquet lists: as many as were dropped or are duplicates."""
    stages: list[dict[str, Any]]
    """In order: split, name, rows_in, changed, dropped, quarantined, rows_out, and seconds, null where not known."""
    labels: list[dict[str, Any]]
    """By label, the most frequent first: label, and for each split read, kept, and each of LOST."""
    num_labels: int
    lengths: list[LengthsOf]
    padding: float | None
    """Share of the computed tokens, of some steps of the first epoch; None where samples have one size."""
    batch: str
    """The configured batch, in words."""
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def adds_up(self) -> bool:
        """Whether every row is accounted for, in the counts and in the list."""
        splits = [one for one in self.rows if not one.source]
        lost = sum(one.dropped + one.duplicates for one in splits)
        return all(one.adds_up for one in self.rows) and lost == self.num_listed and all(map(self._chains, splits))

    def _chains(self, rows: RowsOf) -> bool:
        """Whether what leaves a stage enters the next one, and the last one leaves the rows that are kept."""
        stages = [stage for stage in self.stages if stage["split"] == rows.split]
        ins = [*(stage["rows_in"] for stage in stages[1:]), rows.kept]
        return [stage["rows_out"] for stage in stages] == ins

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "DataSummary":
        """What `to_json` gave. Raises TypeError or KeyError when it is of another version."""
        rows, lengths = [RowsOf(**one) for one in raw["rows"]], [LengthsOf(**one) for one in raw["lengths"]]
        return cls(**{**raw, "rows": rows, "lengths": lengths})


def summarize(config: RunConfig, store: PreparedStore) -> DataSummary:
    """Look at a store. Raises DataError when it is damaged, OSError when storage fails, and ConfigError when the
    config does not fit the data."""
    splits, observed = store.manifest.splits, Observed.read(store.storage)
    counts = {split: RowCounts.from_json(info.rows) for split, info in splits.items()}
    stages = list(_stages(splits, observed))
    order = {(stage["split"], stage["name"]): number for number, stage in enumerate(stages)}
    examples = sorted(observed.examples, key=lambda one: order.get((one.split, one.stage), 0))
    read: Counter[str] = Counter()
    for one in counts.values():
        read.update({label: found["read"] for label, found in one.labels.items()})
    labels = sorted(read, key=lambda label: (-read[label], label))
    return DataSummary(
        rows=list(_rows_of(config, splits)),
        num_listed=_num_listed(store),
        stages=stages,
        labels=[{"label": label, "splits": _of_label(label, counts)} for label in labels[:MOST_LABELS]],
        num_labels=len(labels),
        lengths=[_lengths_of(store, split, info) for split, info in splits.items() if info.num_samples],
        padding=_padding(config, store) if store.has_split("train") else None,
        batch=_batch(config),
        examples=[asdict(one) for one in examples],
    )


def _rows_of(config: RunConfig, splits: dict[str, SplitInfo]) -> Iterable[RowsOf]:
    for split, info in splits.items():
        names = [f"data.{split}.sources.{i} ({one.path})" for i, one in enumerate(config.data.train.sources or [])]
        parts = [("", info.rows), *zip(names, (source.rows for source in info.sources), strict=False)]
        for name, raw in parts:
            yield RowsOf(split, name, *(raw[what] for what in ("read", "kept", *LOST)))


def _num_listed(store: PreparedStore) -> int:
    try:
        with store.storage.open_input(REMOVED_NAME) as opened:
            return pq.read_metadata(opened).num_rows
    except (FileNotFoundError, pa.ArrowInvalid):
        raise DamagedError(store.root, REMOVED_NAME) from None


def _stages(splits: dict[str, SplitInfo], observed: Observed) -> Iterable[dict[str, Any]]:
    """The time of a stage is that of all splits, and is told with the first of them."""
    seconds = dict(observed.seconds)
    for split, info in splits.items():
        for stage in stages_of(RowCounts.from_json(info.rows), info.num_removed):
            took = seconds.pop(stage.name, None)
            yield {**asdict(stage), "split": split, "rows_out": stage.rows_out, "seconds": took}


def _of_label(label: str, counts: dict[str, RowCounts]) -> dict[str, dict[str, int]]:
    found = {}
    for split, one in counts.items():
        of_label = one.labels.get(label, Counter())
        numbers = {what: of_label[what] for what in ("read", *LOST)}
        found[split] = {**numbers, "kept": numbers["read"] - sum(numbers[what] for what in LOST)}
    return found


def _lengths_of(store: PreparedStore, split: str, info: SplitInfo) -> LengthsOf:
    blocks = np.arange(-(-info.num_samples // BLOCK_SAMPLES))
    if len(blocks) > MOST_BLOCKS:
        blocks = np.linspace(0, len(blocks) - 1, MOST_BLOCKS).astype(np.int64)
    ids = (blocks[:, None] * BLOCK_SAMPLES + np.arange(BLOCK_SAMPLES)).ravel()
    lengths = store.lengths(split)[ids[ids < info.num_samples]]
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // MOST_BARS)
    edges = np.arange(low, high + width + 1, width)
    return LengthsOf(
        split=split,
        num_samples=info.num_samples,
        num_seen=len(lengths),
        num_truncated=info.num_truncated,
        mean=float(lengths.mean()),
        percentiles=np.percentile(lengths, PERCENTILES, method="nearest").astype(int).tolist(),
        edges=edges.tolist(),
        counts=np.histogram(lengths, edges)[0].tolist(),
    )


def _padding(config: RunConfig, store: PreparedStore) -> float | None:
    """As training computes it, without the padding of its data to other sizes: each micro-batch is as wide as its
    longest sample."""
    order, num = make_order(config, store), config.training.num_micro_batches
    if not order.steps_per_epoch:
        return None
    steps = np.unique(np.linspace(0, order.steps_per_epoch - 1, STEPS_LOOKED_AT).astype(np.int64))
    num_tokens = num_computed = 0
    sizes: set[int] = set()
    for step in steps.tolist():
        for entries in order.micro_batches(0, step, num, range(num)):
            if len(entries):
                lengths = order.lengths[ids_of(entries)]
                num_tokens += int(lengths.sum())
                num_computed += int(lengths.max()) * len(lengths)
                sizes |= {int(lengths.min()), int(lengths.max())}
    return None if len(sizes) < 2 else 1.0 - num_tokens / num_computed


def _batch(config: RunConfig) -> str:
    training = config.training
    grouped = "samples of similar length together" if config.data.group_by_length else "in random order"
    return (
        f"{training.num_micro_batches:,} micro-batches of {training.samples_per_micro_batch:,} in a step of "
        f"{training.global_batch_size:,} samples, {grouped}"
    )
