"""The parts of a snapshot as files: what a worker group loads, or the driver turns into a checkpoint."""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from raytrain.checkpoint.index import RangeIndex
from raytrain.checkpoint.manifest import PartEntry, write_hashed
from raytrain.checkpoint.ranges import READ_BYTES
from raytrain.checkpoint.snapshot import ANSWER_TIMEOUT_S, PartReport, Snapshot
from raytrain.checkpoint.store import CheckpointStore, part_name, write_sidecar
from raytrain.errors import CheckpointError
from raytrain.steps.batches import World


class MemoryFiles:
    """The parts of a snapshot as files, for the reader of checkpoints."""

    def __init__(self, snapshot: Snapshot):
        """Fetches nothing."""
        self._holders = {key: name for name, key, _ in snapshot.parts}
        self._actors: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """One name per part, in rank order."""
        return list(self._holders)

    def check(self, world: World) -> dict[str, PartReport]:
        """Have the parts in this worker's share checked by their holders. Raises Ray's errors if one is lost.

        Returns the reports by name: those of all workers together have the index of the snapshot.
        """
        import ray

        mine = self.names[world.world_rank :: world.world_size]
        reports = [self._holder(name).check.remote(name) for name in mine]
        return dict(zip(mine, ray.get(reports, timeout=ANSWER_TIMEOUT_S), strict=True))

    def open_input(self, name: str) -> "_OpenPart":
        """Like Storage.open_input. Raises RayActorError if the part is lost: that is the loss of a node, not a failure
        of storage."""
        return _OpenPart(name, self._holder(name))

    def chunks(self, name: str, num_bytes: int) -> Iterator[memoryview]:
        """The bytes of a part, so that only some of them are here at a time. Raises Ray's errors if it is lost."""
        part = self.open_input(name)
        for offset in range(0, num_bytes, READ_BYTES):
            yield part.read_at(min(READ_BYTES, num_bytes - offset), offset).data

    def path_of(self, name: str) -> str:
        """The name of a part for messages."""
        return f"snapshot part {name}"

    def _holder(self, name: str) -> Any:
        """The actor that keeps a part. Raises RayActorError if it is gone."""
        import ray

        holder = self._holders[name]
        if holder not in self._actors:
            try:
                self._actors[holder] = ray.get_actor(holder)
            except ValueError as error:
                raise ray.exceptions.RayActorError(error_msg=f"{self.path_of(name)} is lost: {error}") from error
        return self._actors[holder]


class _OpenPart:
    """A part of a snapshot, as a file that is open for reading."""

    def __init__(self, name: str, holder: Any):
        self._name, self._holder = name, holder

    def read_at(self, num_bytes: int, offset: int) -> np.ndarray:
        """Raises Ray's errors if the part is lost."""
        import ray

        return ray.get(self._holder.read.remote(self._name, num_bytes, offset), timeout=ANSWER_TIMEOUT_S)

    def close(self) -> None:
        """Nothing is open."""


def index_of(reports: Mapping[str, PartReport]) -> RangeIndex:
    """The index of a snapshot, from the reports on all of its parts. Raises CheckpointError if they contradict each
    other."""
    return RangeIndex.of_files({name: report.ranges for name, report in reports.items()})


def damaged(reports: Mapping[str, PartReport]) -> list[str]:
    """Names of the parts whose hash is wrong."""
    return [name for name, report in reports.items() if not report.is_intact]


def write_as_checkpoint(snapshot: Snapshot, store: CheckpointStore) -> None:
    """Write a snapshot to storage as an ordinary checkpoint, when no worker is left to save. The next group's commits
    remove what it makes superfluous. Raises CheckpointError, OSError, or Ray's errors if a part is lost."""
    files, token = MemoryFiles(snapshot), uuid.uuid4().hex[:12]
    reports = files.check(World(0, 1))
    if bad := damaged(reports):
        raise CheckpointError(f"parts of the snapshot of step {snapshot.step} are damaged: {', '.join(bad)}")
    folder, hashes = store.folder(snapshot.step), {key: sha256 for _, key, sha256 in snapshot.parts}
    for world_rank, (name, report) in enumerate(reports.items()):
        store.clear_for_save(snapshot.step, world_rank)
        entry = write_hashed(folder, part_name(world_rank, len(reports)), files.chunks(name, report.num_bytes))
        if entry.sha256 != hashes[name]:
            raise CheckpointError(f"{files.path_of(name)} was changed on its way to {folder.path_of()}")
        part = PartEntry(entry.name, entry.num_bytes, entry.sha256, report.ranges)
        write_sidecar(folder, world_rank, token, [part])
    store.commit(snapshot.step, len(reports), snapshot.state, token)
