"""PREPARE: source files -> the prepared store, with Ray Data, once.

    1. read      (ReadTask)       -> chunks of at most 4096 rows, bad rows apart      data/readers/
        2. split     (chunk, fraction)-> training and validation rows, by a hash of the row's position
    3. encode    (rows)           -> samples: token ids and the task's columns        data/encode.py, tasks/
    4. write     (samples)        -> a Parquet part with small row groups             data/encode.py
        5. commit    (all parts)      -> index of lengths, rejected rows, and finally the manifest

One read task is one row of Ray Data, and writes its own parts, named after its position: the store is the same however
many tasks run concurrently, and in whatever order they finish.
"""

import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raytrain.config import SPLITS, RunConfig
from raytrain.data.bad_rows import Rejected, summary
from raytrain.data.encode import Encoder, RowFunction, Surveyor, report_of
from raytrain.data.fingerprint import fingerprint
from raytrain.data.lengths import encode_index, index_name, label_index_name
from raytrain.data.parts import Index
from raytrain.data.prepared import MANIFEST_NAME, Manifest, Part, PreparedStore, SourceInfo, SplitInfo
from raytrain.data.quiet import quiet_ray_data
from raytrain.data.readers.base import SourceFile
from raytrain.data.sources import check_sources, read_tasks
from raytrain.data.store_folder import put_in_place, verified, verified_or_removed
from raytrain.errors import DataError, FailureCode, counted
from raytrain.models.tokenizer import load_tokenizer, tokenizer_identity
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import TaskState

logger = logging.getLogger(__name__)

REJECTED_NAME = "rejected.jsonl"
# The folder of an attempt that is older than this was left behind by a crash.
STALE_S = 24 * 3600.0
# The cache may be in one of the user's folders: raytrain removes nothing in it that has another name.
ATTEMPT_NAME = re.compile(r"[0-9a-f]{20}\.[0-9a-f]{8}\.tmp")

Progress = Callable[[int, int | None, float], None]
"""Called with (rows so far, estimated rows in total, rows per second)."""


@dataclass(frozen=True)
class _Written:
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


def prepare(
    config: RunConfig,
    progress: Progress | None = None,
    only: str | None = None,
    check_first: Callable[[], object] | None = None,
) -> PreparedStore:
    """The prepared store of a config: taken from the cache, or created.

    If two commands need the same store at once, both create it, and the first to finish puts its own in place.

    Args:
        only: The only split to prepare, in a store of its own, which needs declared labels; None: all splits.
        check_first: Called before anything is prepared, and not when the store is there already.

    Raises:
        DataError: A row can't be used and data.bad_rows is `refuse`, a label is not declared, or nothing is left to
        train on.
    """
    files, rows_per_group, cache, name = _place_of(config, only)
    if (store := verified_or_removed(cache, name)) is not None:
        return store
    if check_first is not None:
        check_first()
    progress = progress or (lambda *_: None)
    tokenizer = load_tokenizer(config.model)
    pad_token_id = 0 if tokenizer is None else tokenizer.pad_token_id
    _Preparation(config, files, name, cache, rows_per_group, pad_token_id, progress).run()
    return PreparedStore(cache.at(name).root)


def find_prepared(config: RunConfig) -> PreparedStore | None:
    """The prepared store of a config if it already exists undamaged; needs no Ray. Raises DataError."""
    _, _, cache, name = _place_of(config)
    return verified(cache, name)


def _place_of(config: RunConfig, only: str | None = None) -> tuple[dict[str, list[SourceFile]], int, Storage, str]:
    """The source files of each split, rows per row group, the cache, and the name of this config's store in the
    cache."""
    files = check_sources(config.data, make_task(config.task, config.data.max_length), only)
    rows_per_group = _rows_per_group(sum(file.num_bytes for fs in files.values() for file in fs))
    name = fingerprint(config, files, tokenizer_identity(config.model), rows_per_group)
    return files, rows_per_group, Storage(config.data.prepared_path or f"{config.storage_path}/_prepared"), name


class _Preparation:
    """One attempt to create a prepared store."""

    def __init__(
        self,
        config: RunConfig,
        files: dict[str, list[SourceFile]],
        name: str,
        cache: Storage,
        rows_per_group: int,
        pad_token_id: int,
        progress: Progress,
    ):
        self.config, self.name, self.cache, self.progress = config, name, cache, progress
        self.files, self.tasks = files, read_tasks(files)
        self.rows_per_group, self.pad_token_id = rows_per_group, pad_token_id
        self.attempt = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
        # Object stores can't rename: there, an attempt writes its parts into the final folder under names of its own.
        self.is_local = cache.local_path() is not None
        self.folder = cache.at(self.attempt if self.is_local else name)

    def run(self) -> None:
        """Create the store and commit it."""
        self._remove_stale()
        task = make_task(self.config.task, self.config.data.max_length)
        try:
            state = task.declared_state()
            if state is None:
                surveys = self._survey()
                state = task.state_from(surveys)
                for remark in task.remarks(surveys):
                    logger.warning("%s", remark)
            self._commit(state, *self._write(state))
        except BaseException:
            if self.is_local:
                self.folder.delete("")
            raise

    def _rows(self) -> list[dict[str, Any]]:
        """The read tasks as rows of Ray Data."""
        return [{"ordinal": i, "task": json.dumps(asdict(task))} for i, task in enumerate(self.tasks)]

    def _survey(self) -> list[TaskState]:
        """What the chunks of all splits contribute to the task's state, in the order of the sources."""
        surveyor = Surveyor(self.config.model_dump(mode="json", exclude_unset=True))
        surveys = {report["ordinal"]: report["surveys"] for report in _run(self._rows(), surveyor)}
        return [survey for ordinal in sorted(surveys) for survey in surveys[ordinal]]

    def _write(self, state: TaskState) -> tuple[list[_Written], list[Rejected]]:
        """Write all parts. Returns what was written and what was set aside, each in the order of the sources."""
        encoder = Encoder(
            self.config.model_dump(mode="json", exclude_unset=True),
            state,
            self.folder.root,
            self.rows_per_group,
            "" if self.is_local else self.attempt,
            is_evaluation="train" not in self.files,
        )
        written: list[_Written] = []
        rejected: dict[int, list[Rejected]] = {}  # by read task, since these finish in any order
        started_at_s, num_rows = time.monotonic(), 0
        for report in _run(self._rows(), encoder):
            rejected[report["ordinal"]] = [Rejected(**bad) for bad in report["rejected"]]
            index, begin = Index.from_bytes(report), 0
            for item in report["written"]:
                part = Part(**item.pop("part"))
                end = begin + sum(part.row_group_rows)
                place, source = tuple(item.pop("place")), self.tasks[report["ordinal"]].file.source
                written.append(_Written(part=part, place=place, index=index[begin:end], source=source, **item))
                begin = end
            num_rows += len(index.lengths)
            total = round(num_rows / self._share_of(rejected))
            self.progress(num_rows, total, num_rows / max(1e-9, time.monotonic() - started_at_s))
        return sorted(written, key=lambda item: item.place), [bad for i in sorted(rejected) for bad in rejected[i]]

    def _share_of(self, ordinals: Collection[int]) -> float:
        """The share of the source bytes that these read tasks cover, above 0 and at most 1."""
        paths = Counter(task.file.path for task in self.tasks)
        num_bytes = [task.file.num_bytes / paths[task.file.path] for task in self.tasks]
        return sum(num_bytes[i] for i in ordinals) / sum(num_bytes)

    def _commit(self, state: TaskState, written: list[_Written], rejected: list[Rejected]) -> None:
        splits = {}
        for split in self._wanted_splits():
            parts = [item for item in written if item.split == split]
            if not parts:
                reasons = [
                    f". Set aside were {reason}" for reason in summary(bad for bad in rejected if bad.split == split)
                ]
                raise DataError(f"{self._no_row(split)}{reasons[0] if reasons else ''}")
            num_set_aside = sum(bad.split == split for bad in rejected)
            splits[split] = self._commit_split(split, parts, num_set_aside)
        lines = [json.dumps(asdict(bad)) for bad in rejected]
        self.folder.write_bytes(REJECTED_NAME, "".join(f"{line}\n" for line in lines).encode())
        content = _content_of(state, written)
        self.folder.commit_bytes(
            MANIFEST_NAME, Manifest(self.name, state, self.pad_token_id, splits, content).to_json()
        )
        if self.is_local:
            put_in_place(self.cache, self.attempt, self.name)
        if rejected:
            where = self.cache.path_of(f"{self.name}/{REJECTED_NAME}")
            logger.warning(
                "%s", "\n  ".join([f"{counted(len(rejected), 'row')} set aside; see {where}", *summary(rejected)])
            )

    def _wanted_splits(self) -> list[str]:
        given = [split for split in SPLITS if getattr(self.config.data, split) is not None]
        return given if "train" in self.files else [split for split in given if split in self.files]

    def _no_row(self, split: str) -> str:
        """The message for a split that the config asks for and that is empty."""
        validation = self.config.data.validation
        if split == "validation" and validation is not None and validation.fraction is not None:
            return (
                f"data.validation.fraction {validation.fraction} holds out none of the training rows: raise it, or "
                "give data.validation.path"
            )
        source = getattr(self.config.data, split)
        if source.path is None:
            return f"data.{split}.sources: no usable row in {', '.join(source.paths)}"
        return f"data.{split}.path {source.path!r}: no usable row in it"

    def _commit_split(self, split: str, written: list[_Written], num_set_aside: int) -> SplitInfo:
        index = Index.joined([item.index for item in written])
        lengths = index.lengths
        data, sha256 = encode_index(lengths)
        self.folder.write_bytes(index_name(split), data)
        labels_sha256 = ""
        if self.config.data.balance is not None:
            data, labels_sha256 = encode_index(index.labels)
            self.folder.write_bytes(label_index_name(split), data)
        return SplitInfo(
            num_samples=len(lengths),
            num_tokens=int(lengths.sum(dtype=np.int64)),
            num_truncated=sum(item.num_truncated for item in written),
            num_set_aside=num_set_aside,
            parts=[item.part for item in written],
            label_counts=_label_counts(written),
            sources=self._sources_of(written) if split == "train" else [],
            index_sha256=sha256,
            labels_sha256=labels_sha256,
        )

    def _sources_of(self, written: list[_Written]) -> list[SourceInfo]:
        """What the training split has of each of data.train.sources."""
        found = []
        for place in range(len(self.config.data.train.sources or [])):
            of_source = [item for item in written if item.source == place]
            found.append(SourceInfo(sum(len(item.index.lengths) for item in of_source), _label_counts(of_source)))
        return found

    def _remove_stale(self) -> None:
        """Remove what crashed attempts left behind a day or more ago."""
        if not self.is_local:
            return
        for name in self.cache.list_names():
            path = self.cache.local_path(name) or ""
            if ATTEMPT_NAME.fullmatch(name) and _age_s(path) > STALE_S:
                self.cache.delete(name)


def _label_counts(written: list[_Written]) -> dict[str, int]:
    """How often each label occurs in these parts, by name."""
    counts: Counter[str] = Counter()
    for item in written:
        counts.update(item.label_counts)
    return dict(sorted(counts.items()))


def _age_s(path: str) -> float:
    """Seconds since a folder was modified; 0 when another command has just removed it."""
    try:
        return time.time() - os.path.getmtime(path)
    except OSError:
        return 0.0


def _content_of(state: TaskState, written: list[_Written]) -> str:
    """Hash of the task's state, and of the bytes of all parts in their order."""
    parts = [[item.split, item.part.row_group_rows, item.part.sha256] for item in written]
    return hashlib.sha256(json.dumps([state, parts], sort_keys=True).encode()).hexdigest()[:20]


def _rows_per_group(num_bytes: int) -> int:
    """Rows per row group: a power of two from 16 to 256, which gives about 4096 row groups if a row has 1 KiB.

    A row group on the border between two lanes is read twice, so there must be far more row groups than
    lanes (P5); and small groups let the samples of a small data set mix well.
    """
    return 1 << max(4, min(8, (num_bytes >> 22).bit_length() - 1))


def _run(rows: list[dict[str, Any]], function: RowFunction) -> Iterator[dict[str, Any]]:
    """Apply a function to each row with Ray Data, one task per row; yields the reports in any order.

    Raises the DataError that the function reports for the first of the rows, as soon as those before it are done: which
    one is told does not depend on which task was faster.
    """
    import ray.data

    quiet_ray_data()
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(function)
    waiting = {row["ordinal"] for row in rows}
    failed: dict[int, DataError] = {}
    for row in dataset.iter_rows():
        report = report_of(row)
        waiting.discard(report["ordinal"])
        if "error" in report:
            failed[report["ordinal"]] = DataError(report["error"], FailureCode(report["code"]))
        if failed and min(failed) < min(waiting, default=len(rows)):
            raise failed[min(failed)]
        if not failed:
            yield report
