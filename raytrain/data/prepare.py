"""PREPARE: source files -> the prepared store, with Ray Data, once.

    1. read      (ReadTask)       -> chunks of at most 4096 rows, bad rows apart      data/readers/
    2. split     (chunk)          -> training and validation rows, by a hash of text  data/stages/held_out.py
    3. clean     (rows)           -> changed rows, dropped rows apart                 data/stages/clean.py
    4. dedup     (rows)           -> without leaks and duplicates                     data/stages/duplicates.py
    5. encode    (rows)           -> samples: token ids and the task's columns        data/encode.py, tasks/
    6. write     (samples)        -> a Parquet part with small row groups, its index  data/parts.py
    7. commit    (all parts)      -> lengths, removed rows, and finally the manifest  data/commit.py
    8. reference (samples)        -> where a loss has one: a column in a second store data/reference.py

What each read task has done is kept and recorded (data/work_folder.py): a command that is interrupted is continued by
the next one.

Duplicates take passes of their own before that (data/stages/duplicate_passes.py), and labels that are not declared a
survey: both read the rows by the same steps.

One read task writes its own parts, named after its position, and a task of Ray Data works on several read tasks, one
after the other (data/cutting.py, data/passes.py): the store is the same however many of these there are, and in
whatever order they finish.
"""

import contextlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, NoReturn

from raytrain.config import RunConfig
from raytrain.data import work_folder
from raytrain.data.bad_rows import Tally
from raytrain.data.commit import (
    Written,
    WrittenPart,
    check_counts,
    check_written,
    commit,
    join_rows,
    publish,
    sum_of,
    tell,
)
from raytrain.data.encode import NUM_READ, ROWS_SO_FAR, Encoder, RowFunction, Surveyor, cannot_prepare
from raytrain.data.fingerprint import fingerprint
from raytrain.data.parts import Index, rows_in_group
from raytrain.data.passes import in_parallel, run_pass
from raytrain.data.prepared import MANIFEST_NAME, Part, PreparedStore
from raytrain.data.readers.base import SourceFile
from raytrain.data.reference import Progress, find_with_reference, with_reference
from raytrain.data.rows_so_far import RowsSoFar
from raytrain.data.sources import check_sources, read_tasks
from raytrain.data.stages.counts import LimitError
from raytrain.data.stages.duplicate_passes import find_held_out, find_sides, find_within
from raytrain.data.stages.duplicates import WORK, Duplicates, Found
from raytrain.data.store_folder import put_in_place, verified, verified_or_removed
from raytrain.data.unchanged import refuse_changed
from raytrain.data.work_folder import Records
from raytrain.errors import DataError, FailureCode, times
from raytrain.models.tokenizer import load_tokenizer, tokenizer_identity
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import TaskState

logger = logging.getLogger(__name__)

# The folder of a commit that is older than this was left behind by a crash.
STALE_S = 24 * 3600.0
# Where other commands remove what this one has done, it begins as often as this.
MOST_ATTEMPTS = 3
# The cache may be in one of the user's folders: raytrain removes nothing in it that has another name.
ATTEMPT_NAME = re.compile(r"[0-9a-f]{20}\.[0-9a-f]{8}\.tmp")


def prepare(
    config: RunConfig,
    progress: Progress | None = None,
    only: str | None = None,
    check_first: Callable[[], object] | None = None,
    phase: Callable[[str], None] | None = None,
) -> PreparedStore:
    """The prepared store of a config: taken from the cache, or created.

    If two commands need the same store at once, both create it, and the first to finish puts its own in place.

    Args:
        only: The only split to prepare, in a store of its own, which needs declared labels; None: all splits.
        check_first: Called before anything is prepared, and not when the store is there already.
        phase: Called with what is done next.

    Raises:
        DataError: A row can't be used and data.on_error is `fail`, a label is not declared, more rows are dropped or
        quarantined than is allowed, or nothing is left to train on. Or storage fails for two minutes, or the disk is
        full.
    """
    files, rows_per_group, cache, name = _place_of(config, only)
    told = progress or (lambda *_: None), phase or (lambda _: None)
    if (store := verified_or_removed(cache, name)) is not None:
        check_counts(config, store.manifest.row_counts, Tally())
        return with_reference(config, store, cache, *told)
    if check_first is not None:
        check_first()
    tokenizer = load_tokenizer(config.model)
    pad_token_id = 0 if tokenizer is None else tokenizer.pad_token_id
    try:
        _Preparation(config, files, name, cache, rows_per_group, pad_token_id, *told).run()
    except OSError as error:
        raise cannot_prepare(f"can't write the prepared data to {cache.path_of()}", error) from error
    store = PreparedStore(cache.at(name).root)
    check_counts(config, store.manifest.row_counts, Tally())  # another command may have made it, with other limits
    return with_reference(config, store, cache, *told)


def find_prepared(config: RunConfig) -> PreparedStore | None:
    """The prepared store of a config if it already exists undamaged; needs no Ray. Raises DataError."""
    _, _, cache, name = _place_of(config)
    if (store := verified(cache, name)) is not None:
        check_counts(config, store.manifest.row_counts, Tally())
    return None if store is None else find_with_reference(config, store, cache)


def _place_of(config: RunConfig, only: str | None = None) -> tuple[dict[str, list[SourceFile]], int, Storage, str]:
    """The source files of each split, rows per row group, the cache, and the name of this config's store in the
    cache."""
    files = check_sources(config.data, make_task(config.task, config.data.max_length), only)
    rows_per_group = rows_in_group(sum(file.num_bytes for fs in files.values() for file in fs))
    name = fingerprint(config, files, tokenizer_identity(config.model), rows_per_group)
    return files, rows_per_group, Storage(config.data.prepared_path or f"{config.storage_path}/_prepared"), name


class _Preparation:
    """One command that creates a prepared store, or completes what an earlier one has begun."""

    def __init__(
        self,
        config: RunConfig,
        files: dict[str, list[SourceFile]],
        name: str,
        cache: Storage,
        rows_per_group: int,
        pad_token_id: int,
        progress: Progress,
        phase: Callable[[str], None],
    ):
        self.config, self.name, self.cache, self.progress, self.phase = config, name, cache, progress, phase
        self.files = files
        self.tasks = read_tasks(files, lambda work, items: in_parallel(work, items, run_pass))
        self.rows_per_group, self.pad_token_id = rows_per_group, pad_token_id
        places = {(split, i): None for split, of_split in files.items() for i in range(len(of_split))}
        numbers = {place: number for number, place in enumerate(places)}
        self.file_numbers = [numbers[task.split, task.file_of_split] for task in self.tasks]
        self.folder = cache.at(f"{name}{work_folder.ENDING}")
        self.records_id = ""

    def run(self) -> None:
        """Create the store and commit it. From the start, where another command has removed what was done."""
        self._remove_stale()
        for attempt in range(MOST_ATTEMPTS):
            try:
                written = self._create()
            except (OSError, DataError) as error:
                if isinstance(error, DataError) and error.code not in (FailureCode.STORAGE, FailureCode.RAY):
                    self._refuse(error)
                if self._is_committed():  # by another command, which has removed the work
                    work_folder.remove(self.folder)
                    return
                if self._is_removed():
                    told = f"{self.folder.path_of()} was removed while this command worked in it"
                    if attempt + 1 < MOST_ATTEMPTS:
                        logger.warning("%s: the data is prepared again", told)
                        continue
                    told = f"{told}, {times(MOST_ATTEMPTS)}"
                    raise DataError(f"{told}: let one command alone prepare this data", FailureCode.STORAGE) from error
                logger.warning("what is done so far is kept in %s: the same command continues", self.folder.path_of())
                raise
            break
        work_folder.remove(self.folder)
        tell(self.cache, self.name, written)

    def _create(self) -> Written:
        """All passes over the source files, and the commit."""
        task, self.records_id = make_task(self.config.task, self.config.data.max_length), ""
        self.records_id = work_folder.begin(self.folder)
        duplicates = self._find_duplicates()
        state = task.declared_state()
        if state is None:
            surveys, duplicates = self._survey(duplicates)
            state = task.state_from(surveys)
            for remark in task.remarks(surveys):
                logger.warning("%s", remark)
        written = self._write(state, duplicates)
        refuse_changed(self.files)  # nothing is read from them any more
        self._commit(written, state)
        return written

    def _refuse(self, error: DataError) -> NoReturn:
        """Raise why the data can't be used: that a file has changed meanwhile, which explains any other error, or
        `error`."""
        try:
            refuse_changed(self.files)
        except DataError as changed:
            if changed.code != FailureCode.STORAGE:
                work_folder.remove(self.folder)
                raise changed from None
        if isinstance(error, LimitError):
            where = self.folder.path_of()
            logger.warning("what is done so far is kept in %s: a command with another limit continues", where)
        else:
            work_folder.remove(self.folder)  # nobody will need it: other data has another fingerprint
        raise error

    def _is_committed(self) -> bool:
        """Whether the store is there; False when storage does not say."""
        with contextlib.suppress(OSError):
            return self.cache.exists(f"{self.name}/{MANIFEST_NAME}")
        return False

    def _is_removed(self) -> bool:
        """Whether another command has removed the folder of this one; False when storage does not say."""
        with contextlib.suppress(OSError):
            return self.records_id != "" and not work_folder.holds(self.folder, self.records_id)
        return False

    def _commit(self, written: Written, state: TaskState) -> None:
        """Make a store of what is in the folder. The first command to come here makes it."""
        paths = [file.path for files in self.files.values() for file in files]
        attempt = uuid.uuid4().hex[:8]
        is_local = self.cache.local_path() is not None
        if is_local:
            target, prefix = self.cache.at(f"{self.name}.{attempt}.tmp"), ""
        else:  # object stores can't rename: files have names of their own, since someone may read those of another one
            target, prefix = self.cache.at(self.name), f"{attempt}-"
        try:
            check_written(self.config, written)
            removed = join_rows(self.folder, written)
            publish(self.folder, target, written, prefix)
            commit(self.config, self.name, target, written, removed, state, self.pad_token_id, paths)
            if is_local:
                place = self.cache.path_of(self.name)
                retrying(lambda: put_in_place(self.cache, target.place()[1], self.name), f"writing {place}")
        except BaseException:
            with contextlib.suppress(OSError):  # why it has failed must not be lost
                if is_local:
                    target.delete("")
            raise

    def _run(self, rows: list[dict[str, Any]], function: RowFunction) -> Iterator[dict[str, Any]]:
        """One pass over read tasks, or over what earlier passes have left: the reports of those that are done already,
        then those of the others, in any order. How far it is goes to the display."""
        if function.phase:
            self.phase(function.phase)
        begun = RowsSoFar({row["ordinal"]: row["num_bytes"] for row in rows if "num_bytes" in row})
        for report in self._reports(rows, function):
            if ROWS_SO_FAR in report or NUM_READ in report or "counts" in report:
                self.progress(*begun.with_report(report))
            if ROWS_SO_FAR not in report:
                yield report

    def _reports(self, rows: list[dict[str, Any]], function: RowFunction) -> Iterator[dict[str, Any]]:
        records = Records(self.folder.root, self.records_id, function.pass_name)
        done = records.read()
        if done and "num_bytes" in rows[0]:
            what = f"{len(done):,} of {len(rows):,} parts of the source files are done already"
            logger.warning("continuing in %s: %s: %s", self.folder.path_of(), function.phase, what)
        yield from ({**done[row["ordinal"]], "was_done": True} for row in rows if row["ordinal"] in done)
        function.records = records
        if left := [row for row in rows if row["ordinal"] not in done]:
            yield from run_pass(left, function)

    def _rows(self) -> list[dict[str, Any]]:
        """The read tasks as rows of Ray Data."""
        return [
            {"ordinal": i, "task": json.dumps(asdict(task)), "num_bytes": task.num_bytes}
            for i, task in enumerate(self.tasks)
        ]

    def _find_duplicates(self) -> Duplicates:
        """The passes that duplicates need before any row is encoded."""
        duplicates = Duplicates(self.config.data.dedup.leakage, self.folder.root)
        duplicates = find_sides(self.config, duplicates, self._rows(), self.tasks, self._run)
        duplicates = find_held_out(self.config, duplicates, self._rows(), self.tasks, self._run)
        return find_within(self.config, duplicates, self._rows(), self.tasks, self._run)

    def _survey(self, duplicates: Duplicates) -> tuple[list[TaskState], Duplicates]:
        """What the chunks of all splits contribute to the task's state, in the order of the sources; and which of their
        rows are duplicates, as far as that was not known. Raises DataError when the rules of data.clean drop too much,
        which would be told as labels that are missing."""
        surveyor = Surveyor(self.config.model_dump(mode="json", exclude_unset=True), duplicates)
        reports = {report["ordinal"]: report for report in self._run(self._rows(), surveyor)}
        check_counts(self.config, sum_of(report["counts"] for report in reports.values()), Tally())
        surveys = [survey for ordinal in sorted(reports) for survey in reports[ordinal]["surveys"]]
        if duplicates.finds_leaks:
            found = {ordinal: Found(**report["found"]) for ordinal, report in reports.items()}
            duplicates = replace(duplicates, decided=found)
        return surveys, duplicates

    def _write(self, state: TaskState, duplicates: Duplicates) -> Written:
        """Write all parts."""
        encoder = Encoder(
            self.config.model_dump(mode="json", exclude_unset=True),
            state,
            self.folder.root,
            self.rows_per_group,
            duplicates,
            is_evaluation="train" not in self.files,
        )
        written = Written()
        for report in self._run(self._rows(), encoder):
            self._add(report, written)
        return written

    def _add(self, report: dict[str, Any], written: Written) -> None:
        """Add a read task's report to those of the others."""
        ordinal = report["ordinal"]
        written.counts[ordinal], written.quarantined[ordinal] = report["counts"], report["quarantined"]
        written.found[ordinal] = Found(**report["found"])
        written.files += [name for name, _, _ in report["files"] if not name.startswith(f"{WORK}/")]
        written.classes[ordinal] = report["classes"]
        written.source_of[ordinal] = self.tasks[ordinal].file.source
        written.seen.add(report["seen"], ordinal)
        if report["removed"]:
            written.cleaned[ordinal] = report["removed"]
        index, begin = Index.from_bytes(report), 0
        for item in report["written"]:
            part = Part(**{**item.pop("part"), "file": self.file_numbers[ordinal]})
            end = begin + sum(part.row_group_rows)
            place, source = tuple(item.pop("place")), self.tasks[ordinal].file.source
            written.parts.append(WrittenPart(part=part, place=place, index=index[begin:end], source=source, **item))
            begin = end

    def _remove_stale(self) -> None:
        """Remove what crashed commands left behind, and nobody has continued."""
        try:
            for name in self.cache.list_names():
                path = self.cache.local_path(name)
                if path is not None and ATTEMPT_NAME.fullmatch(name) and _age_s(path) > STALE_S:
                    self.cache.delete(name)
            work_folder.remove_stale(self.cache, but=self.folder)
        except OSError as error:  # the next preparation does it
            logger.warning("could not clean up %s: %s", self.cache.path_of(), error)


def _age_s(path: str) -> float:
    """Seconds since a folder was modified; 0 when another command has just removed it."""
    try:
        return time.time() - os.path.getmtime(path)
    except OSError:
        return 0.0
