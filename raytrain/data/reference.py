"""The reference of a preference loss: what the model that training starts from says of each sample, once.

    rows of the prepared store  -> the same rows with one more column, in a store of its own

That store belongs to the rows and to the model, by their hashes, and to nothing else: not to the loss and its options,
to a precision or to the size of a cluster. So a sweep, each resume and each run with the same model and rows share it,
and training reads it as any other, without a second model. What it shares with the first store is linked.

A slice of some hundred rows is computed at a time, in batches that depend on the slice alone, and recorded when it is
done (data/work_folder.py): a command that is interrupted is continued by the next one.
"""

import contextlib
import functools
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.data import work_folder
from raytrain.data.commit import Written, WrittenPart, publish
from raytrain.data.encode import RowFunction, cannot_prepare
from raytrain.data.parts import PART_ROWS, Index, Parts
from raytrain.data.passes import run_pass
from raytrain.data.prepared import MANIFEST_NAME, Manifest, Part, PreparedStore
from raytrain.data.quiet import AWAY_FROM_GPUS
from raytrain.data.store_folder import put_in_place, verified, verified_or_removed
from raytrain.data.work_folder import Records
from raytrain.errors import DataError
from raytrain.models.reference import load_reference, reference_identity
from raytrain.models.tokenizer import load_tokenizer
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import BatchContext, Encoded, Task
from raytrain.tasks.referenced import Referenced

logger = logging.getLogger(__name__)

VERSION = 1
"""Of what is computed and how; part of the fingerprint."""
SLICE_ROWS = 512
"""Rows of a slice, but for what its last row group has more."""
TOKENS_PER_BATCH = 4096
"""With padding; a CPU is not faster with more, and a GPU is busy."""
MEMORY_SHARE = 0.5
"""Of the cluster's memory, which copies of the model may take on CPUs."""
_WEIGHT_BYTES = 5
"""Of memory for a parameter: fp32, and what a forward pass adds."""

Progress = Callable[[int, int | None, float], None]
"""Called with (rows so far, estimated rows in total, rows per second)."""


def find_with_reference(config: RunConfig, base: PreparedStore, cache: Storage) -> PreparedStore | None:
    """The store with the reference, if it is there and undamaged; the given one for a loss without a reference."""
    task = _referenced(config)
    return base if task is None else verified(cache, _name_of(config, task, base))


def with_reference(
    config: RunConfig, base: PreparedStore, cache: Storage, progress: Progress, phase: Callable[[str], None]
) -> PreparedStore:
    """The store with the reference, taken from the cache or created; the given one for a loss without a reference.

    Raises DataError when storage fails for two minutes, and ConfigError when the model can't be loaded.
    """
    if (task := _referenced(config)) is None:
        return base
    name = _name_of(config, task, base)
    if (store := verified_or_removed(cache, name)) is not None:
        return store
    phase("computing the log-probabilities of the reference")
    folder = cache.at(f"{name}{work_folder.ENDING}")
    try:
        _commit(base, _computed(config, base, folder, progress), cache, name, folder)
    except (OSError, DataError) as error:
        if not cache.exists(f"{name}/{MANIFEST_NAME}"):  # or another command has made it meanwhile
            logger.warning("what is done so far is kept in %s: the same command continues", folder.path_of())
            if isinstance(error, DataError):
                raise
            raise cannot_prepare(f"can't write the prepared data to {cache.path_of()}", error) from error
    work_folder.remove(folder)
    return PreparedStore(cache.at(name).root)


def _referenced(config: RunConfig) -> Referenced | None:
    task = make_task(config.task, config.data.max_length)
    return task if isinstance(task, Referenced) and task.has_reference else None


def identity_of_reference(config: RunConfig) -> str:
    """Identifies the weights that the loss compares with; empty for a loss that needs none. Raises ConfigError."""
    return "" if _referenced(config) is None else reference_identity(config.model)


def _name_of(config: RunConfig, task: Referenced, base: PreparedStore) -> str:
    """The name of the store in the cache: a hash of the rows and the model."""
    parts = [VERSION, task.reference_column, base.manifest.fingerprint, base.manifest.content]
    return hashlib.sha256(json.dumps([*parts, reference_identity(config.model)]).encode()).hexdigest()[:20]


def slices(base: PreparedStore) -> list[dict[str, Any]]:
    """The work: for each slice its split, the row groups [first, stop) that it has, counted over the split, and its
    part."""
    found: list[dict[str, Any]] = []
    for split, info in base.manifest.splits.items():
        first = 0
        for number, part in enumerate(info.parts):
            begin, rows = 0, 0
            for place, of_group in enumerate(part.row_group_rows):
                rows += of_group
                if rows >= SLICE_ROWS or place + 1 == len(part.row_group_rows):
                    groups = {"first": first + begin, "stop": first + place + 1}
                    found.append({"ordinal": len(found), "split": split, "part": number, "rows": rows, **groups})
                    begin, rows = place + 1, 0
            first += len(part.row_group_rows)
    return found


class ReferencePass(RowFunction):
    """Computes the reference's column for a slice, and writes its rows with it."""

    def __init__(self, config: dict[str, Any], base: str, folder: str, column: str, identity: str):
        """
        Args:
            base: Root of the prepared store.
            folder: Of the preparation.
            column: The name of the column.
            identity: Of the model: a process may still hold another one that was in its place.
        """
        self._config, self._base, self._folder, self._column = config, base, folder, column
        self._identity = identity

    def report(self, row: dict[str, Any]) -> dict[str, Any]:
        """What was written."""
        base, split = PreparedStore(self._base), row["split"]
        model = _loaded(json.dumps(self._config, sort_keys=True), base.root, self._identity)
        parts = Parts(Storage(self._folder), row["ordinal"], PART_ROWS)
        part = base.manifest.splits[split].parts[row["part"]]
        starts = base.row_group_starts(split)
        first_of_part = int(starts[sum(len(one.row_group_rows) for one in self._before(base, row))])
        index = base.read_index(part)
        ids = np.arange(starts[row["first"]], starts[row["stop"]])
        tables = [base.read_row_group(split, group) for group in range(row["first"], row["stop"])]
        values = model.of(pa.concat_tables(tables), split, ids)
        for number, table in enumerate(tables):  # row groups stay what they are, and with them the order of samples
            begin = int(starts[row["first"] + number])
            at = begin - int(ids[0])
            column = pa.array(values[at : at + len(table)].tolist(), pa.list_(pa.float32()))
            lines = index.slice(begin - first_of_part, len(table))
            parts.add(split, number, Encoded(table.append_column(self._column, column), 0, []), lines, {})
        written, lengths = parts.close()
        return {"ordinal": row["ordinal"], "written": written, "num_read": len(ids), **lengths.to_bytes()}

    def _before(self, base: PreparedStore, row: dict[str, Any]) -> list[Part]:
        return base.manifest.splits[row["split"]].parts[: row["part"]]


class _Model:
    """The reference in a process that computes."""

    def __init__(self, config: RunConfig, manifest: Manifest):
        import torch

        self._seed, self._manifest = config.seed, manifest
        self._task: Any = make_task(config.task, config.data.max_length)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(max(1, int(config.workers.cpus)))
        load_tokenizer(config.model)  # its message is the better one where the folder is none
        self._model = load_reference(config, self._task, manifest.task_state).to(self._device)

    def of(self, samples: pa.Table, split: str, ids: np.ndarray) -> np.ndarray:
        """What it says of each sample, fp32, of shape (num_samples, ...)."""
        import torch

        found: list[Any] = [None] * len(samples)
        for places in _batches(self._task, samples):
            zeros = np.zeros(len(places), np.int64)
            about = self._manifest.task_state, split, ids[places], 0, zeros, self._seed, self._manifest.pad_token_id
            arrays = self._task.collate(samples.take(pa.array(places)), BatchContext(*about))
            batch = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
            with torch.inference_mode():
                values = self._task.refer(self._model, batch)
            for place, value in zip(places.tolist(), values, strict=True):
                found[place] = value
        return np.array(found, np.float32)


@functools.lru_cache(maxsize=1)
def _loaded(config: str, root: str, identity: str) -> _Model:
    """Loaded once in a process, which Ray uses for one slice after the other."""
    return _Model(RunConfig.model_validate_json(config), PreparedStore(root).manifest)


def _batches(task: Task, samples: pa.Table) -> Iterator[np.ndarray]:
    """Places of samples of like length."""
    sizes = task.sizes(samples)
    batch: list[int] = []
    for place in np.argsort(-sizes, kind="stable").tolist():  # the longest first: what does not fit, fails at once
        if batch and int(sizes[batch[0]]) * (len(batch) + 1) > TOKENS_PER_BATCH:
            yield np.array(batch)
            batch = []
        batch.append(place)
    if batch:
        yield np.array(batch)


def _computed(config: RunConfig, base: PreparedStore, folder: Storage, progress: Progress) -> Written:
    """All slices: those of an earlier command, and the others."""
    task = _referenced(config)
    assert task is not None
    records_id = work_folder.begin(folder)
    raw, identity = config.model_dump(mode="json", exclude_unset=True), reference_identity(config.model)
    function = ReferencePass(raw, base.root, folder.root, task.reference_column, identity)
    function.records = Records(folder.root, records_id, function.pass_name)
    rows, done = slices(base), function.records.read()
    if done:
        logger.warning("continuing in %s: %d of %d slices are done", folder.path_of(), len(done), len(rows))
    so_far, written = _Counted(rows, done, progress), Written()
    for report in done.values():
        _add(report, rows[report["ordinal"]], base, written)
    if left := [row for row in rows if row["ordinal"] not in done]:
        for report in run_pass(left, function, _options(config)):
            so_far.add(report)
            _add(report, rows[report["ordinal"]], base, written)
    return written


class _Counted:
    """Tells how far it is."""

    def __init__(self, rows: list[dict[str, Any]], done: dict[int, Any], progress: Progress):
        self._rows = {row["ordinal"]: row["rows"] for row in rows}
        self._progress, self._began_s = progress, time.monotonic()
        self._total = sum(self._rows.values())
        self._before = self._so_far = sum(self._rows[ordinal] for ordinal in done)

    def add(self, report: dict[str, Any]) -> None:
        """A slice is done."""
        self._so_far += self._rows[report["ordinal"]]
        rate = (self._so_far - self._before) / max(1e-3, time.monotonic() - self._began_s)
        self._progress(self._so_far, self._total, rate)


def _options(config: RunConfig) -> dict[str, Any]:
    """What Ray gives a slice: a GPU where there are some, else the CPUs of a worker, for no more slices at a time than
    have room for the model in memory."""
    import ray

    from raytrain.models.files import count_parameters

    has = ray.cluster_resources()
    if config.workers.gpu is not False and has.get("GPU", 0) >= 1:
        return {"num_gpus": 1}
    needed = _WEIGHT_BYTES * (count_parameters(config.model) or 0)
    cpus = max(1, int(config.workers.cpus))
    by_cpus, by_memory = int(has.get("CPU", 1)) // cpus, int(has.get("memory", 0) * MEMORY_SHARE // max(1, needed))
    return {"num_cpus": cpus, "concurrency": max(1, min(by_cpus, by_memory)), **AWAY_FROM_GPUS}


def _add(report: dict[str, Any], row: dict[str, Any], base: PreparedStore, written: Written) -> None:
    """Add a slice's report."""
    written.files += [name for name, _, _ in report["files"]]
    of_base = base.manifest.splits[row["split"]].parts[row["part"]]
    index = Index.from_bytes(report)
    for item in report["written"]:
        part = Part(**{**item["part"], "file": of_base.file})
        place = (row["ordinal"], item["place"][1])
        written.parts.append(WrittenPart(row["split"], part, place, index, {}, 0, 0))


def _commit(base: PreparedStore, written: Written, cache: Storage, name: str, work: Storage) -> None:
    """Make a store of the slices, and of what the first one has beside its parts. The manifest comes last."""
    attempt, is_local = uuid.uuid4().hex[:8], cache.local_path() is not None
    target, prefix = (cache.at(f"{name}.{attempt}.tmp"), "") if is_local else (cache.at(name), f"{attempt}-")
    try:
        publish(work, target, written, prefix)
        _link_others(base, target, prefix)
        written.parts.sort(key=lambda item: item.place)
        splits = {
            split: replace(info, parts=[item.part for item in written.parts if item.split == split])
            for split, info in base.manifest.splits.items()
        }
        # Not the hash of its bytes: computed anew elsewhere, the last digits of the column may be others.
        content = hashlib.sha256(json.dumps([name, base.manifest.content]).encode()).hexdigest()[:20]
        data = replace(base.manifest, fingerprint=name, splits=splits, content=content).to_json()
        retrying(lambda: target.commit_bytes(MANIFEST_NAME, data), f"writing {target.path_of(MANIFEST_NAME)}")
        if is_local:
            retrying(lambda: put_in_place(cache, target.place()[1], name), f"writing {cache.path_of(name)}")
    except BaseException:
        with contextlib.suppress(OSError):  # why it has failed must not be lost
            if is_local:
                target.delete("")
        raise


def _link_others(base: PreparedStore, target: Storage, prefix: str) -> None:
    """Give the files of a store that are neither parts nor the manifest a name in another one."""
    source, old = base.storage, base.manifest.prefix
    own = {*base.manifest.splits, "index", *retrying(lambda: source.list_sizes(""), f"reading {source.path_of()}")}
    for folder in ("", *(name for name in source.list_names() if name not in own)):
        for file in retrying(functools.partial(source.list_sizes, folder), f"reading {source.path_of(folder)}"):
            if folder == "" and file == MANIFEST_NAME:
                continue
            if folder and not file.startswith(old):
                continue  # of another command, which did not come to its end
            new = f"{prefix}{file.removeprefix(old)}" if folder else file
            at = f"{folder}/" if folder else ""
            work = functools.partial(source.link, f"{at}{file}", target, f"{at}{new}")
            retrying(work, f"writing {target.path_of(f'{at}{new}')}")
