"""The checkpoint store. A checkpoint exists once its manifest is committed, and damaged ones are never loaded.

    checkpoints/step_00001000-0003/           the step, and the fencing token of the worker group that saved it
        zero-00000-of-00002.safetensors   a worker's ranges of the optimizer state, in the layout of zero_state
        zero-00000.json                   that worker's sidecar: sizes, SHA-256, ranges; gone after the commit
        state.json                        the run's scalars
        manifest.json                     written last: size and SHA-256 of every file, which ranges are in which file,
                                      and a checksum over itself

A save takes these steps; the workers agree on them in the all-reduce of their training step. Each worker's
`CheckpointWriter.begin` writes its files and then its sidecar in a background thread. When `poll` has returned the step
on every worker, all call `commit`; rank 0 checks the sidecars and writes state.json and the manifest. All workers of an
attempt share a token, so that files of an earlier attempt are never mixed in. Nothing is unpickled here, and neither
Ray nor torch is imported.

The newest checkpoint is the one of the highest fencing token, then of the highest step: a group that resumed from an
earlier step than the newest, because later checkpoints were damaged, continues from its own checkpoints. A group writes
to its own folders only, and removes only those of earlier groups.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from raytrain.checkpoint.manifest import (
    MANIFEST_NAME,
    STATE_NAME,
    Checkpoint,
    FileEntry,
    PartEntry,
    encode_manifest,
    encode_state,
    read_sidecar,
    sync,
    write_hashed,
    wrong_size,
)
from raytrain.data.parallel import in_threads
from raytrain.errors import CheckpointError
from raytrain.retries import retrying
from raytrain.storage import Storage

# A network file system may show another node's new file with a delay of some seconds.
SIDECAR_PATIENCE_S = 30.0
# A checkpoint that was passed over as damaged is removed when this many newer ones exist.
COMMITS_UNTIL_REMOVAL = 2

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """Identifies a checkpoint. Later ones compare greater."""

    token: int
    """The fencing token of the group that saved it; see `raytrain.checkpoint.fence`."""
    step: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"step_{self.step:08d}-{self.token:04d}"

    @classmethod
    def parse(cls, folder: str) -> "Saved | None":
        """The checkpoint with this folder; None for any other name."""
        match = re.fullmatch(r"step_(\d{8,})-(\d{4,})", folder)
        return cls(int(match[2]), int(match[1])) if match else None


def part_name(world_rank: int, world_size: int) -> str:
    """File name of a worker's ranges."""
    return f"zero-{world_rank:05d}-of-{world_size:05d}.safetensors"


def sidecar_name(world_rank: int) -> str:
    """File name of a worker's sidecar."""
    return f"zero-{world_rank:05d}.json"


class CheckpointStore:
    """The checkpoints of a run. `candidates`, `commit` and `tidy_up` are for rank 0, everything else for every
    worker."""

    def __init__(self, root: Storage, keep_last: int = 2, token: int = 0, resumed_step: int | None = None):
        """Args:
        root: The run's `checkpoints/` folder. It need not exist.
        keep_last: Number of newest checkpoints to keep after a commit, at least 1.
        token: The fencing token of the group that saves.
        resumed_step: The step from which it has resumed. Later checkpoints of earlier groups were passed over, as
            damaged. None: not known.
        """
        self.root = root
        self.keep_last = keep_last
        self._token, self._resumed_step = token, resumed_step
        self._num_commits = 0

    def folder(self, step: int) -> Storage:
        """The folder into which this group saves a step."""
        return self.root.at(self._own(step).folder)

    def candidates(self) -> list[Saved]:
        """Checkpoints with a committed manifest, newest first. Raises OSError."""
        return [saved for saved in self._found() if self.root.exists(f"{saved.folder}/{MANIFEST_NAME}")]

    def open(self, saved: Saved) -> Checkpoint:
        """A checkpoint. Raises CheckpointError if its manifest or state is wrong, and OSError if storage fails."""
        checkpoint = Checkpoint(self.root.at(saved.folder))
        if checkpoint.step != saved.step:
            raise CheckpointError(f"it is a copy of step {checkpoint.step} under another name")
        return checkpoint

    def newest_good(
        self,
        world_rank: int = 0,
        world_size: int = 1,
        gather: Callable[[Any], list[Any]] = lambda value: [value],
        report: Callable[[int, str], None] = lambda step, reason: None,
    ) -> Checkpoint | None:
        """The newest intact checkpoint. All workers search together, and each byte is read once.

        Failures of storage are retried for two minutes: a checkpoint that can't be read is not known to be damaged.

        Args:
            world_rank, world_size: This worker's rank and the number of workers.
            gather: All-gather of a small JSON-serializable value: returns every worker's value in rank order. Called
                equally often on every worker.
            report: Called on every worker with each damaged checkpoint that is skipped, and the reason.

        Returns:
            None if there are no checkpoints: the run starts at step 0.

        Raises:
            CheckpointError: There are checkpoints, but all are damaged; or storage can't be read. Raised on every
            worker.
        """
        found, unreadable = gather(self._list() if world_rank == 0 else None)[0]
        if unreadable is not None:
            raise CheckpointError(unreadable)
        damages = []
        for saved in (Saved(*pair) for pair in found):
            checkpoint, *problems = self._check(saved, world_rank, world_size)
            all_damages, all_unreadable = zip(*gather(problems), strict=True)
            if (reason := next(filter(None, all_damages), None)) is not None:
                damages.append(f"  {saved.folder}: {reason}")
                report(saved.step, reason)
            elif (reason := next(filter(None, all_unreadable), None)) is not None:
                raise CheckpointError(reason)
            else:
                return checkpoint
        if damages:
            raise CheckpointError(_all_damaged(self.root.path_of(), damages))
        return None

    def commit(self, step: int, world_size: int, state: dict[str, Any], token: str) -> None:
        """Turn the files of a step into a checkpoint. Called on rank 0 once every worker has written its sidecar.

        Raises CheckpointError if a sidecar with this token is missing or a file does not have the size that it lists,
        and OSError if storage fails.
        """
        folder = self.folder(step)
        parts = _files_of(folder, world_size, token)
        files = [*parts, write_hashed(folder, STATE_NAME, [encode_state(state)])]
        folder.commit_bytes(MANIFEST_NAME, encode_manifest(step, world_size, token, files))
        sync(self.root, self._own(step).folder)
        sync(self.root)
        self._num_commits += 1

    def tidy_up(self, newest: int) -> None:
        """After a commit of step `newest`: remove what it made superfluous. A failure is logged only, since the next
        commit tidies up as well."""
        try:
            entries = self.open(self._own(newest)).files
            _delete_all_but(self.folder(newest), {entry.name for entry in entries} | {MANIFEST_NAME})
            self.retain(newest)
        except (OSError, CheckpointError) as error:
            logger.warning("could not clean up %s: %s", self.root.path_of(), error)

    def retain(self, newest: int) -> None:
        """Of the checkpoints up to this group's step `newest`, keep only the `keep_last` newest ones.

        Folders without a manifest are left over from saves that crashed. Neither this group's later folders are
        touched, since other workers may already be writing into one, nor those of a later group. Checkpoints that this
        group has passed over as damaged do not count, and stay until its second commit: what proves the damage is one
        reading of them.
        """
        committed = [saved for saved in self.candidates() if saved <= self._own(newest)]
        passed_over = {saved for saved in committed if self._was_passed_over(saved)}
        kept = {*[saved for saved in committed if saved not in passed_over][: self.keep_last]}
        if self._num_commits < COMMITS_UNTIL_REMOVAL:
            kept |= passed_over
        for saved in self._found():
            if saved < self._own(newest) and saved not in kept:
                self._remove(saved)

    def clear_for_save(self, step: int, world_rank: int) -> None:
        """Clear the folder of a step before a worker writes into it. What it holds stops being a checkpoint.

        Every worker removes the manifest, so that none depends on another being first.
        """
        _delete(self.folder(step), MANIFEST_NAME)
        _delete(self.folder(step), sidecar_name(world_rank))

    def discard(self, step: int) -> None:
        """Remove what a failed save has left, which may be what fills the disk. A committed checkpoint stays."""
        with contextlib.suppress(OSError):
            if not self.root.exists(f"{self._own(step).folder}/{MANIFEST_NAME}"):
                _delete(self.root, self._own(step).folder)

    def _own(self, step: int) -> Saved:
        return Saved(self._token, step)

    def _was_passed_over(self, saved: Saved) -> bool:
        return self._resumed_step is not None and saved.token < self._token and saved.step > self._resumed_step

    def _remove(self, saved: Saved) -> None:
        """Remove the manifest first: a crash in between leaves a folder that is ignored, not a damaged checkpoint."""
        _delete(self.root.at(saved.folder), MANIFEST_NAME)
        _delete(self.root, saved.folder)

    def _found(self) -> list[Saved]:
        """Checkpoints that have a folder, committed or not, newest first."""
        found = (Saved.parse(name) for name in self.root.list_names())
        return sorted((saved for saved in found if saved is not None), reverse=True)

    def _list(self) -> tuple[list[Saved], str | None]:
        """(candidates, None), or ([], why they can't be listed)."""
        try:
            return retrying(self.candidates, f"listing {self.root.path_of()}"), None
        except OSError as error:
            return [], f"can't list the checkpoints in {self.root.path_of()}: {error}"

    def _check(
        self, saved: Saved, world_rank: int, world_size: int
    ) -> tuple[Checkpoint | None, str | None, str | None]:
        """The checkpoint, what is damaged in this worker's share of its files, and why they can't be read."""

        def check() -> tuple[Checkpoint | None, str | None]:
            try:
                checkpoint = self.open(saved)
            except (CheckpointError, FileNotFoundError) as error:
                return None, str(error)
            return checkpoint, checkpoint.verify(world_rank, world_size)

        path = self.root.path_of(saved.folder)
        try:
            return *retrying(check, f"reading {path}"), None
        except OSError as error:
            return None, None, _unreadable(path, error)


def write_sidecar(folder: Storage, world_rank: int, token: str, files: Sequence[FileEntry]) -> None:
    """Record that this worker's files are complete. Written after them."""
    body = {"token": token, "files": [asdict(entry) for entry in files]}
    folder.commit_bytes(sidecar_name(world_rank), json.dumps(body).encode())


def _files_of(folder: Storage, world_size: int, token: str) -> list[PartEntry]:
    """The files listed in the sidecars with this token, with checked sizes. Raises CheckpointError.

    Of several workers at once: each takes two requests, and a commit of 512 workers would take half a minute on an
    object store.
    """

    def files_of(world_rank: int) -> list[PartEntry]:
        there = folder.at()  # with a connection of this thread
        found = _read_sidecar(there, world_rank, token)
        for entry in found:
            if reason := wrong_size(there, entry):
                raise CheckpointError(f"the save in {folder.path_of()} is incomplete: {reason}")
        return found

    files = [entry for found in in_threads(files_of, range(world_size)) for entry in found]
    names = [entry.name for entry in files]
    assert len(set(names)) == len(names), f"two workers wrote a file of the same name: {sorted(names)}"
    return files


def _read_sidecar(folder: Storage, world_rank: int, token: str) -> list[PartEntry]:
    """A worker's files. Waits for a sidecar that was written on another node but is not visible here yet."""
    deadline = time.monotonic() + SIDECAR_PATIENCE_S
    while True:
        try:
            sidecar = read_sidecar(folder.read_bytes(sidecar_name(world_rank)))
            if sidecar.token == token:
                return sidecar.files
            problem = "is from an earlier attempt"
        except FileNotFoundError:
            problem = "is missing"
        if time.monotonic() >= deadline:
            path = folder.path_of(sidecar_name(world_rank))
            raise CheckpointError(f"{path} {problem}; do all workers reach the same storage_path?")
        time.sleep(0.2)


def _delete_all_but(folder: Storage, names: set[str]) -> None:
    assert re.search(r"/step_\d+-\d+$", folder.path_of()), f"{folder.path_of()} is not the folder of a checkpoint"
    for name in folder.list_names():
        if name not in names:
            _delete(folder, name)


def _delete(folder: Storage, name: str) -> None:
    """Delete a file or folder, which another worker may be deleting at the same time."""
    with contextlib.suppress(FileNotFoundError):
        folder.delete(name)


def _unreadable(path: str, error: OSError) -> str:
    return (
        f"the checkpoint {path} can't be read: {error}. It is not known to be damaged, so no older one is used. Check "
        "that every worker reaches the storage, then resume the run."
    )


def _all_damaged(path: str, damages: list[str]) -> str:
    listing = "\n".join(damages)
    return (
        f"none of the {len(damages)} checkpoints in {path} can be loaded:\n{listing}\n"
        "Restore the files from a backup, or start anew: give the run another name, or delete that folder."
    )
