"""The checkpoint store. A checkpoint exists once its manifest is committed, and damaged ones are never loaded.

    checkpoints/step_00001000/
        zero-00000-of-00002.safetensors   a worker's ranges of the optimizer state, in the layout of zero_state
        zero-00000.json                   that worker's sidecar: its files' sizes and SHA-256; gone after the commit
        state.json                        the run's scalars
        manifest.json                     written last: size and SHA-256 of every file, and a checksum over itself

A save takes these steps; the workers agree on them in the all-reduce of their training step. Each worker's
`CheckpointWriter.begin` writes its files and then its sidecar in a background thread. When `poll` has returned the step
on every worker, all call `commit`; rank 0 checks the sidecars and writes state.json and the manifest. All workers of an
attempt share a token, so that files of an earlier attempt are never mixed in. Nothing is unpickled here, and neither
Ray nor torch is imported.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from raytrain.checkpoint.manifest import (
    MANIFEST_NAME,
    STATE_NAME,
    Checkpoint,
    FileEntry,
    encode_manifest,
    encode_state,
    sync,
    write_hashed,
    wrong_size,
)
from raytrain.errors import CheckpointError
from raytrain.storage import Storage

# A network file system may show another node's new file with a delay of some seconds.
SIDECAR_PATIENCE_S = 30.0

logger = logging.getLogger(__name__)


def step_folder(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step_{step:08d}"


def part_name(world_rank: int, world_size: int) -> str:
    """File name of a worker's ranges."""
    return f"zero-{world_rank:05d}-of-{world_size:05d}.safetensors"


def sidecar_name(world_rank: int) -> str:
    """File name of a worker's sidecar."""
    return f"zero-{world_rank:05d}.json"


class CheckpointStore:
    """The checkpoints of a run. `candidates`, `commit` and `retain` are for rank 0, everything else for every
    worker."""

    def __init__(self, root: Storage, keep_last: int = 2):
        """Args:
        root: The run's `checkpoints/` folder. It need not exist.
        keep_last: Number of newest checkpoints to keep after a commit, at least 1.
        """
        self.root = root
        self.keep_last = keep_last

    def folder(self, step: int) -> Storage:
        """The folder of the checkpoint of a step."""
        return self.root.at(step_folder(step))

    def candidates(self) -> list[int]:
        """Steps with a committed manifest, newest first. Raises CheckpointError if the folder can't be listed."""
        try:
            return [step for step in self._steps() if self.root.exists(f"{step_folder(step)}/{MANIFEST_NAME}")]
        except OSError as error:
            raise CheckpointError(f"can't list the checkpoints in {self.root.path_of()}: {error}") from error

    def open(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises CheckpointError if its manifest, sizes or state are wrong."""
        try:
            checkpoint = Checkpoint(self.folder(step))
        except OSError as error:
            raise CheckpointError(f"it can't be read ({error})") from error
        if checkpoint.step != step:
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

        Args:
            world_rank, world_size: This worker's rank and the number of workers.
            gather: All-gather of a small JSON-serializable value: returns every worker's value in rank order. Called
                equally often on every worker.
            report: Called on every worker with each damaged checkpoint that is skipped, and the reason.

        Returns:
            None if there are no checkpoints: the run starts at step 0.

        Raises:
            CheckpointError: There are checkpoints, but all are damaged. Raised on every worker.
        """
        found = gather(self._candidates_or_error() if world_rank == 0 else None)[0]
        if isinstance(found, str):
            raise CheckpointError(found)
        damages = []
        for step in found:
            checkpoint, reason = self._check(step, world_rank, world_size)
            reasons = [reason for reason in gather(reason) if reason]
            if not reasons:
                return checkpoint
            damages.append(f"  {step_folder(step)}: {reasons[0]}")
            report(step, reasons[0])
        if damages:
            raise CheckpointError(_all_damaged(self.root.path_of(), damages))
        return None

    def commit(self, step: int, world_size: int, state: dict[str, Any], token: str) -> None:
        """Turn the files of a step into a checkpoint. Called on rank 0 once every worker has written its sidecar.

        Raises CheckpointError if a sidecar with this token is missing or a file does not have the size that it lists,
        and OSError if storage fails.
        """
        folder = self.folder(step)
        files = _files_of(folder, world_size, token)
        files.append(write_hashed(folder, STATE_NAME, [encode_state(state)]))
        folder.commit_bytes(MANIFEST_NAME, encode_manifest(step, world_size, token, files))
        sync(self.root, step_folder(step))
        sync(self.root)
        try:
            _delete_all_but(folder, {entry.name for entry in files} | {MANIFEST_NAME})
            self.retain(step)
        except (OSError, CheckpointError) as error:  # the checkpoint is safe; the next commit cleans up
            logger.warning("could not clean up %s: %s", self.root.path_of(), error)

    def retain(self, newest: int, protect: Iterable[int] = ()) -> None:
        """Of the folders up to step `newest`, keep only the `keep_last` newest committed ones and `protect`.

        Folders without a manifest are left over from saves that crashed. Newer folders are not touched: other workers
        may already be writing into one.
        """
        committed = [step for step in self.candidates() if step <= newest]
        kept = {*committed[: self.keep_last], *protect}
        for step in self._steps():
            if step < newest and step not in kept:
                self._remove(step)

    def clear_for_save(self, step: int, world_rank: int) -> None:
        """Clear the folder of a step before a worker writes into it. What it holds stops being a checkpoint.

        Every worker removes the manifest, so that none depends on another being first. Rank 0 also removes newer
        checkpoints: the run went back to an earlier step, because they were damaged or by the user's choice, and a
            later restore must not jump to them.
        """
        _delete(self.folder(step), MANIFEST_NAME)
        _delete(self.folder(step), sidecar_name(world_rank))
        if world_rank == 0:
            for newer in self._steps():
                if newer > step:
                    self._remove(newer)

    def _remove(self, step: int) -> None:
        """Remove the manifest first: a crash in between leaves a folder that is ignored, not a damaged checkpoint."""
        _delete(self.folder(step), MANIFEST_NAME)
        _delete(self.root, step_folder(step))

    def _steps(self) -> list[int]:
        """Steps that have a folder, committed or not, newest first."""
        matches = (re.fullmatch(r"step_(\d{8,})", name) for name in self.root.list_names())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def _candidates_or_error(self) -> list[int] | str:
        try:
            return self.candidates()
        except CheckpointError as error:
            return str(error)

    def _check(self, step: int, world_rank: int, world_size: int) -> tuple[Checkpoint | None, str | None]:
        """(checkpoint, None), or (None, what is wrong in this worker's share of its files)."""
        try:
            checkpoint = self.open(step)
        except CheckpointError as error:
            return None, str(error)
        return checkpoint, checkpoint.verify(world_rank, world_size)


def write_sidecar(folder: Storage, world_rank: int, token: str, files: list[FileEntry]) -> None:
    """Record that this worker's files are complete. Written after them."""
    body = {"token": token, "files": [asdict(entry) for entry in files]}
    folder.commit_bytes(sidecar_name(world_rank), json.dumps(body).encode())


def _files_of(folder: Storage, world_size: int, token: str) -> list[FileEntry]:
    """The files listed in the sidecars with this token, with checked sizes. Raises CheckpointError."""
    files = [entry for rank in range(world_size) for entry in _read_sidecar(folder, rank, token)]
    names = [entry.name for entry in files]
    assert len(set(names)) == len(names), f"two workers wrote a file of the same name: {sorted(names)}"
    for entry in files:
        if reason := wrong_size(folder, entry):
            raise CheckpointError(f"the save in {folder.path_of()} is incomplete: {reason}")
    return files


def _read_sidecar(folder: Storage, world_rank: int, token: str) -> list[FileEntry]:
    """A worker's files. Waits for a sidecar that was written on another node but is not visible here yet."""
    deadline = time.monotonic() + SIDECAR_PATIENCE_S
    while True:
        try:
            body = folder.read_json(sidecar_name(world_rank))
            if body["token"] == token:
                return [FileEntry(**entry) for entry in body["files"]]
            problem = "is from an earlier attempt"
        except FileNotFoundError:
            problem = "is missing"
        if time.monotonic() >= deadline:
            path = folder.path_of(sidecar_name(world_rank))
            raise CheckpointError(f"{path} {problem}; do all workers reach the same storage_path?")
        time.sleep(0.2)


def _delete_all_but(folder: Storage, names: set[str]) -> None:
    assert re.search(r"/step_\d+$", folder.path_of()), f"{folder.path_of()} is not the folder of a checkpoint"
    for name in folder.list_names():
        if name not in names:
            _delete(folder, name)


def _delete(folder: Storage, name: str) -> None:
    """Delete a file or folder, which another worker may be deleting at the same time."""
    with contextlib.suppress(FileNotFoundError):
        folder.delete(name)


def _all_damaged(path: str, damages: list[str]) -> str:
    listing = "\n".join(damages)
    return (
        f"none of the {len(damages)} checkpoints in {path} can be loaded:\n{listing}\n"
        "Restore the files from a backup, or start anew: give the run another name, or delete that folder."
    )
