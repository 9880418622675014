"""The end of PREPARE: what the tasks have written becomes a store, whose manifest is written last. No Ray, no torch."""

import contextlib
import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raytrain.config import SPLITS, RunConfig
from raytrain.data.bad_rows import Tally
from raytrain.data.lengths import encode_index, index_name, label_index_name
from raytrain.data.parallel import in_threads
from raytrain.data.parts import Index
from raytrain.data.prepared import MANIFEST_NAME, Manifest, Part, SourceInfo, SplitInfo
from raytrain.data.stages.classes import check_number
from raytrain.data.stages.counts import RowCounts, check_shares
from raytrain.data.stages.duplicates import LEAKAGE, MIN_CHARACTERS, STAGE, Found
from raytrain.data.stages.examples import Example, Observed
from raytrain.data.stages.quarantine import FOLDER as QUARANTINE
from raytrain.data.stages.removed import LEAKS_NAME, REMOVED_NAME, join_removed
from raytrain.data.storing import put
from raytrain.errors import DataError, counted
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks.base import TaskState
from raytrain.tasks.labels import in_order

LEAKAGE_RULE = f"{STAGE}.{LEAKAGE}"

logger = logging.getLogger(__name__)
removed_logger = logging.getLogger(f"{__name__}.removed")
"""Of rows that are removed or leak. `raytrain data` turns it off, since it prints these counts itself."""


@dataclass(frozen=True)
class WrittenPart:
    """A read task's report on a part that it has written."""

    split: str
    part: Part
    place: tuple[int, int]
    """(index of the read task, index of the part's first chunk in it): the order of the prepared data."""
    index: Index
    """Of its samples."""
    label_counts: dict[str, int]
    source: int
    """Index in data.train.sources."""
    num_truncated: int


@dataclass
class Written:
    """What all read tasks have written, and what became of the rows that are in no sample."""

    parts: list[WrittenPart] = field(default_factory=list)
    counts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By read task, since these finish in any order: what became of its rows, by split, see `RowCounts.to_json`."""
    quarantined: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """By read task: see `Tally.report`."""
    cleaned: dict[int, str] = field(default_factory=dict)
    """By read task: the file of the rows that the rules of data.clean have dropped."""
    found: dict[int, Found] = field(default_factory=dict)
    """By read task: duplicates among its training rows."""
    files: list[str] = field(default_factory=list)
    """Names of the parts, their indexes, and the files of quarantined rows."""
    source_of: dict[int, int] = field(default_factory=dict)
    """By read task: which of data.train.sources its file is of."""
    seen: Observed = field(default_factory=Observed)
    classes: dict[int, list[str]] = field(default_factory=dict)
    """By read task: the values of the column of data.balance.by, in the order of the ids in its reports."""

    def row_counts(self) -> dict[str, RowCounts]:
        """What became of the source rows of each split."""
        return sum_of(self.counts[i] for i in sorted(self.counts))

    def tally(self) -> Tally:
        """What is told of the quarantined rows."""
        tally = Tally()
        for ordinal in sorted(self.quarantined):
            tally.merge(self.quarantined[ordinal])
        return tally


def check_written(config: RunConfig, written: Written) -> None:
    """Raises DataError when a split that the config asks for has no rows, or more rows are dropped or quarantined than
    is allowed."""
    tally = written.tally()
    check_counts(config, written.row_counts(), tally)
    for split in _splits_of(config, written):
        if not any(item.split == split for item in written.parts):
            raise DataError(_no_row(config, split, written, tally))


def _splits_of(config: RunConfig, written: Written) -> list[str]:
    """The splits of the store: those that the config asks for, or the one that is evaluated."""
    counts = written.row_counts()
    given = [split for split in SPLITS if getattr(config.data, split) is not None]
    return given if "train" in counts else [split for split in given if split in counts]


def publish(work: Storage, folder: Storage, written: Written, prefix: str) -> None:
    """Give the files that read tasks have written their names in the store.

    Args:
        work: The folder of the preparation, in which they stay too.
        folder: That of the store.
        prefix: First in the names of files in the store.

    Raises OSError; FileNotFoundError when another command has removed the folder.
    """

    def renamed(name: str) -> str:
        at, _, last = name.rpartition("/")
        return f"{at}/{prefix}{last}"

    def link(name: str) -> None:
        try:
            work.link(name, folder, renamed(name))
        except FileNotFoundError:  # for good, so it is not tried again
            raise
        except OSError:
            retrying(lambda: work.link(name, folder, renamed(name)), f"writing {folder.path_of(renamed(name))}")

    try:
        in_threads(link, written.files)
    except BaseException:
        if prefix:
            with contextlib.suppress(OSError):  # why it has failed must not be lost
                in_threads(lambda name: folder.delete(renamed(name)), written.files)
        raise
    written.parts = [replace(one, part=replace(one.part, name=renamed(one.part.name))) for one in written.parts]


def join_rows(work: Storage, written: Written) -> dict[str, memoryview]:
    """The files of the rows that are in no sample, by name: those of all read tasks together."""
    found = written.found
    removed = [name for i in sorted(found) for name in (written.cleaned.get(i), *found[i].removed) if name]
    leaks = [name for i in sorted(found) for name in found[i].leaks]
    return {REMOVED_NAME: join_removed(work, removed), LEAKS_NAME: join_removed(work, leaks)}


def commit(
    config: RunConfig,
    name: str,
    folder: Storage,
    written: Written,
    removed: dict[str, memoryview],
    state: TaskState,
    pad_token_id: int,
    paths: list[str],
) -> None:
    """Write the indexes, the lists of rows that are in no sample, and the manifest.

    Args:
        name: Fingerprint of the store.
        folder: Where the parts are.
        removed: What `join_rows` gives.
        paths: The source files of all splits.
    """
    counts = written.row_counts()
    written.parts.sort(key=lambda item: item.place)
    for file_name, data in removed.items():
        put(folder, file_name, data)
    for i, one in written.found.items():
        written.seen.examples.add((Example(**example) for example in one.examples), i)
    written.seen.write(folder)
    classes = _unite_classes(config, written)
    splits = {}
    for split in _splits_of(config, written):
        splits[split] = _split_info(folder, split, written, counts[split], classes if split == "train" else [])
        if split == "train":
            splits[split] = replace(splits[split], sources=_sources_of(config, written, classes))
    manifest = Manifest(name, state, pad_token_id, splits, _content_of(state, written.parts), paths).to_json()
    path = folder.path_of(MANIFEST_NAME)
    retrying(lambda: folder.commit_bytes(MANIFEST_NAME, manifest), f"writing {path}")


def tell(cache: Storage, name: str, written: Written) -> None:
    """Log what is missing from the samples, and where it is listed."""
    tally, found = written.tally(), written.found.values()
    if num_quarantined := tally.count():
        prefix = written.parts[0].part.prefix
        where = cache.path_of(f"{name}/{QUARANTINE}{f'/{prefix}*' if prefix else ''}")
        logger.warning(
            "%s", "\n  ".join([f"{counted(num_quarantined, 'row')} quarantined; see {where}", *tally.summary()])
        )
    counts = sum((Counter(one.counts) for one in found), Counter())
    num_removed, num_kept = counts.pop(LEAKAGE_RULE, 0), sum(one.num_leaks for one in found)
    num_short = sum(one.num_short for one in found)
    if num_removed or num_kept:
        done = f"{num_removed:,} removed (data.dedup.leakage)"
        if num_kept:
            done = f"{num_kept:,} kept, since data.dedup.leakage is report"
        short = f", and {num_short:,} of fewer than {MIN_CHARACTERS} characters kept" if num_short else ""
        where = cache.path_of(f"{name}/{LEAKS_NAME if num_kept else REMOVED_NAME}")
        removed_logger.warning(
            "training rows that nearly equal a validation or test row: %s%s; see %s", done, short, where
        )
    if counts:
        rules = ", ".join(f"{count:,} x {rule}" for rule, count in sorted(counts.items()))
        removed_logger.warning("training rows removed: %s; see %s", rules, cache.path_of(f"{name}/{REMOVED_NAME}"))


def _no_row(config: RunConfig, split: str, written: Written, tally: Tally) -> str:
    """The message for a split that the config asks for and that is empty."""
    reasons = tally.summary(split)
    quarantined = f". Quarantined were {reasons[0]}" if reasons else ""
    validation = config.data.validation
    if split == "validation" and validation is not None and validation.fraction is not None:
        return (
            f"data.validation.fraction {validation.fraction} holds out none of the training rows: raise it, or "
            f"give data.validation.path{quarantined}"
        )
    num_removed = sum(sum(one.counts.values()) for one in written.found.values()) if split == "train" else 0
    if num_removed:
        return (
            f"{_source_of(config, split)}: no row is left, as {counted(num_removed, 'row')} nearly "
            "equal a validation or test row or one another: give other files, or set data.dedup.leakage=report to "
            f"keep them{quarantined}"
        )
    return f"{_source_of(config, split)}: no usable row in it{quarantined}"


def _source_of(config: RunConfig, split: str) -> str:
    source = getattr(config.data, split)
    if source.path is None:
        return f"data.{split}.sources {', '.join(source.paths)}"
    return f"data.{split}.path {source.path!r}"


def _unite_classes(config: RunConfig, written: Written) -> list[str]:
    """The values of the column of data.balance.by in all read tasks, sorted. Their positions become the ids that parts
    have; empty where no column is balanced. Raises DataError when there are too many."""
    column = config.data.balance.column if config.data.balance is not None else None
    if column is None:
        return []
    names = in_order({name for of_task in written.classes.values() for name in of_task})
    check_number(column, len(names))
    for i, item in enumerate(written.parts):
        if item.split == "train":
            ids = np.array([names.index(name) for name in written.classes[item.place[0]]], dtype="<i4")
            written.parts[i] = replace(item, index=replace(item.index, labels=ids[item.index.labels]))
    return names


def _class_counts(parts: list[WrittenPart], classes: list[str]) -> dict[str, int]:
    labels = Index.joined([item.index for item in parts]).labels
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True)) if classes else {}


def _split_info(folder: Storage, split: str, written: Written, counts: RowCounts, classes: list[str]) -> SplitInfo:
    """The manifest's entry for a split; writes its index of lengths, and with data.balance that of labels."""
    parts = [item for item in written.parts if item.split == split]
    index = Index.joined([item.index for item in parts])
    lengths, labels_sha256 = index.lengths, ""
    data, sha256 = encode_index(lengths)
    put(folder, index_name(split), data)
    if len(index.labels):
        data, labels_sha256 = encode_index(index.labels)
        put(folder, label_index_name(split), data)
    found = list(written.found.values()) if split == "train" else []
    return SplitInfo(
        num_samples=len(lengths),
        num_tokens=int(lengths.sum(dtype=np.int64)),
        num_truncated=sum(item.num_truncated for item in parts),
        num_quarantined=counts.quarantined,
        parts=[item.part for item in parts],
        label_counts=_label_counts(parts),
        index_sha256=sha256,
        labels_sha256=labels_sha256,
        num_removed=dict(sorted(sum((Counter(one.counts) for one in found), Counter()).items())),
        num_leaks=sum(one.num_leaks for one in found),
        num_short_leaks=sum(one.num_short for one in found),
        rows=counts.to_json(),
        class_counts=_class_counts(parts, classes),
    )


def _sources_of(config: RunConfig, written: Written, classes: list[str]) -> list[SourceInfo]:
    """What the training split has of each of data.train.sources."""
    found = []
    for place in range(len(config.data.train.sources or [])):
        of_source = [item for item in written.parts if item.split == "train" and item.source == place]
        counts = sum_of(written.counts[i] for i, source in sorted(written.source_of.items()) if source == place)
        num_samples = sum(len(item.index.lengths) for item in of_source)
        found.append(
            SourceInfo(
                num_samples, _label_counts(of_source), counts["train"].to_json(), _class_counts(of_source, classes)
            )
        )
    return found


def _label_counts(parts: list[WrittenPart]) -> dict[str, int]:
    """How often each label occurs in these parts, by name."""
    counts: Counter[str] = Counter()
    for item in parts:
        counts.update(item.label_counts)
    return dict(sorted(counts.items()))


def _content_of(state: TaskState, written: list[WrittenPart]) -> str:
    """Hash of the task's state, and of the bytes of all parts in their order."""
    parts = [[item.split, item.part.row_group_rows, item.part.sha256] for item in written]
    return hashlib.sha256(json.dumps([state, parts], sort_keys=True).encode()).hexdigest()[:20]


def sum_of(reports: Iterable[dict[str, Any]]) -> defaultdict[str, RowCounts]:
    """What became of the rows of each split, of what read tasks report on theirs."""
    total: defaultdict[str, RowCounts] = defaultdict(RowCounts)
    for report in reports:
        for split, counts in report.items():
            total[split].add(RowCounts.from_json(counts))
    return total


def check_counts(config: RunConfig, counts: Mapping[str, RowCounts], tally: Tally) -> None:
    """Raises DataError where more of a source was dropped or quarantined than the config allows. Rows that were held
    out of the training files are of the same source. `tally`: what is told of the quarantined rows."""
    validation = config.data.validation
    is_of_train = validation is not None and validation.fraction is not None
    most_dropped = 1.0 if config.data.clean is None else config.data.clean.max_dropped
    for source in SPLITS:
        splits = [source, "validation"] if source == "train" and is_of_train else [source]
        if source == "validation" and is_of_train:
            continue
        of_source = [counts[split] for split in splits if split in counts]
        reasons = [line for split in splits for line in tally.summary(split)]
        check_shares(f"data.{source}", of_source, most_dropped, config.data.max_quarantined, reasons)
