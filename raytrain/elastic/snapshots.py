"""The driver's side of snapshots: where they are kept, and from which one a group resumes."""

import contextlib
import uuid
from collections.abc import Iterable

from raytrain.checkpoint.snapshot import Holders, Snapshot
from raytrain.checkpoint.snapshot_files import write_as_checkpoint
from raytrain.checkpoint.store import CheckpointStore
from raytrain.config import RunConfig
from raytrain.elastic.worker_group import WorkerGroup
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.training.driver_link import GroupStatus

# While a group trains, the driver has other things to look at: a lost node must not keep it longer at each look.
LOOK_TIMEOUT_S = 0.5


class Snapshots:
    """The snapshots of one run."""

    def __init__(self, config: RunConfig, run: Storage):
        self._config, self._run = config.checkpoint, run
        self._holders = Holders(f"raytrain-{uuid.uuid4().hex[:12]}")
        self._saved_step = 0
        self._are_placed = self._has_own = False

    def begin(self) -> None:
        """A group begins."""
        self._are_placed = self._has_own = False

    def saved(self, step: int) -> None:
        """A checkpoint of this step is in storage, so older snapshots are of no use."""
        self._saved_step = max(self._saved_step, step)

    def look_for_checkpoint(self, fencing_token: int | None) -> None:
        """The group with this token has failed: the worker that would have reported its last checkpoint may be gone."""
        with contextlib.suppress(OSError):  # storage may be the reason why the group failed
            newest = next(iter(CheckpointStore(self._run.at("checkpoints")).candidates()), None)
            if newest is not None and newest.token == fencing_token:  # it would know of an earlier group's
                self.saved(newest.step)

    def newest(self) -> Snapshot | None:
        """The newest complete snapshot of a later step than the last checkpoint; None if there is none."""
        return self._holders.newest(self._saved_step)

    def advance(self, group: WorkerGroup, status: GroupStatus) -> None:
        """Give the group the actors that keep its snapshots; if some have to be started, once it is in its loop. End
        those on other nodes once this group has a complete snapshot, so that older ones are not needed."""
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
        after_step = max(status.first_step, self._saved_step)
        return self._holders.newest(after_step, timeout_s=LOOK_TIMEOUT_S) is not None

    def forget(self, node_ids: Iterable[str]) -> None:
        """These nodes are gone, with everything they kept."""
        self._holders.forget(node_ids)

    def keep_only(self, node_ids: Iterable[str]) -> None:
        """Everything is in storage: snapshots on other nodes are no longer needed, and must not hold a draining
        node."""
        self._holders.keep_only(node_ids)

    def write(self, snapshot: Snapshot, fencing_token: int) -> None:
        """Turn a snapshot into a checkpoint: no worker is left to save."""
        store = CheckpointStore(self._run.at("checkpoints"), token=fencing_token)
        retrying(lambda: write_as_checkpoint(snapshot, store), f"saving the snapshot of step {snapshot.step}")

    def close(self) -> None:
        """End all the actors, and with them the snapshots that they keep."""
        self._holders.close()
