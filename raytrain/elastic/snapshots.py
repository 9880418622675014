"""The driver's side of snapshots: where they are kept, and which one a group continues from."""

import contextlib
import uuid
from collections.abc import Iterable

from raytrain.checkpoint.snapshot import Holders, Snapshot, write_as_checkpoint
from raytrain.checkpoint.store import CheckpointStore
from raytrain.config import RunConfig
from raytrain.elastic.worker_group import WorkerGroup
from raytrain.storage import Storage
from raytrain.training.driver_link import GroupStatus


class Snapshots:
    """Of one run."""

    def __init__(self, config: RunConfig, run: Storage):
        self._config, self._run = config.checkpoint, run
        self._holders = Holders(f"raytrain-{uuid.uuid4().hex[:12]}")
        self._saved_step = 0
        self._are_placed = self._has_own = False

    def begin(self) -> None:
        """A group begins."""
        self._are_placed = self._has_own = False

    def saved(self, step: int) -> None:
        """A checkpoint of this step is in storage: an older snapshot is of no use."""
        self._saved_step = max(self._saved_step, step)

    def look_for_checkpoint(self) -> None:
        """A group has failed: who would have told of its last checkpoint may be gone."""
        with contextlib.suppress(OSError):  # of storage, which may be why it failed
            self.saved(max(CheckpointStore(self._run.at("checkpoints")).candidates(), default=0))

    def newest(self) -> Snapshot | None:
        """The newest complete one of a later step than the last checkpoint."""
        return self._holders.newest(self._saved_step)

    def advance(self, group: WorkerGroup, status: GroupStatus) -> None:
        """Give the group the actors that keep its snapshots, once it is in its loop if some have to be started; end
        those on other nodes once there is a complete snapshot of this group, so that older ones are not needed."""
        if not self._are_placed and (status.first_step is not None or self._holders.are_on(group.nodes)):
            self._are_placed = True
            group.give_holders(self._holders.place(group.nodes))
        if not self._has_own and self._is_own_complete(status):
            self._has_own = True
            self._holders.keep_only(group.nodes)

    def _is_own_complete(self, status: GroupStatus) -> bool:
        every = self._config.snapshot_every_steps
        if every is None or status.step is None or status.first_step is None or status.step < status.first_step + every:
            return False
        return self._holders.newest(max(status.first_step, self._saved_step)) is not None

    def forget(self, node_ids: Iterable[str]) -> None:
        """These nodes are gone, with what they kept."""
        self._holders.forget(node_ids)

    def keep_only(self, node_ids: Iterable[str]) -> None:
        """All is in storage: what is kept on other nodes is needed no longer, and may not hold a node that leaves."""
        self._holders.keep_only(node_ids)

    def write_newest(self) -> int | None:
        """When no worker is left to save, the newest snapshot becomes a checkpoint. Returns its step."""
        snapshot = self.newest()
        if snapshot is None:
            return None
        write_as_checkpoint(snapshot, CheckpointStore(self._run.at("checkpoints"), self._config.keep_last))
        return snapshot.step

    def close(self) -> None:
        """End all the actors, and with them what they keep."""
        self._holders.close()
