"""Saving while the training continues: checkpoints for this run, and the best model for use elsewhere.

The loop is blocked only while the state is copied to memory. In the all-reduce of a step the workers agree that all
parts of a checkpoint are written; rank 0 then commits it.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from raytrain.checkpoint.folder import replace_folder
from raytrain.checkpoint.manifest import FileEntry
from raytrain.checkpoint.ranges import encode_ranges, write_ranges
from raytrain.checkpoint.snapshot import SnapshotKeeper
from raytrain.checkpoint.store import CheckpointStore, part_name
from raytrain.checkpoint.writer import CheckpointWriter, wait_patiently
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import copy_state, owned_ranges, scaler_state
from raytrain.errors import CheckpointError, TakenOverError
from raytrain.models.adapter import has_adapter
from raytrain.models.card import BEST
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.training.agreement import Control, StepSums
from raytrain.training.progress import Progress
from raytrain.training.run_log import RunLog
from raytrain.training.snapshot_schedule import SnapshotSchedule


@dataclass(frozen=True)
class SavePlan:
    """What is saved, and how many checkpoints are kept."""

    keep_last: int
    """Checkpoints."""
    snapshot_every_steps: int | None
    token: str
    """The same on all workers of this attempt, different in every attempt."""
    fencing_token: int
    """Of this worker group; see `raytrain.checkpoint.fence`."""
    resumed_step: int
    """The step from which this group has resumed; 0 at the beginning of the run."""
    identity: Callable[[int], dict[str, Any]]
    """Maps a step to the part of its state.json that must match when it is resumed from; see `identity.py`."""


@dataclass(frozen=True)
class SaveCallbacks:
    """Functions that are called when something is saved."""

    saved: Callable[[int], None]
    """Called on rank 0 with the step of each committed checkpoint."""
    committed: Callable[[int], None]
    """The same, but called in the thread that writes."""
    waiting: Callable[[], None]
    """Called at intervals while the saver waits for a write, so that the wait does not look like a hang."""


class Saver:
    """One worker's saving. All workers call `save`, `advance`, `finish` and `save_best` in the same step."""

    def __init__(
        self,
        run: Storage,
        engine: Engine,
        control: Control,
        log: RunLog,
        plan: SavePlan,
        export: Callable[[dict[str, torch.Tensor], int, str], None],
        keeper: SnapshotKeeper | None,
        callbacks: SaveCallbacks,
    ):
        """Args:
        export: Writes a model with the given weights, of the given step, with its tokenizer to a local folder.
        keeper: Takes snapshots; None: no snapshots are taken.
        """
        self._run, self._engine, self._world, self._control, self._log = run, engine, control.world, control, log
        self._plan, self._export, self._keeper, self._callbacks = plan, export, keeper, callbacks
        store = CheckpointStore(run.at("checkpoints"), plan.keep_last, plan.fencing_token, plan.resumed_step)
        self._writer = CheckpointWriter(store, control.world, plan.token, callbacks.committed, log.sync)
        self._snapshots = SnapshotSchedule(plan.snapshot_every_steps if keeper is not None else None)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="best-model")
        self._best: Future[None] | None = None
        self._is_closed = threading.Event()
        self._state: dict[str, Any] = {}
        self._error: CheckpointError | None = None
        self._reported_step: int | None = None
        self._written_step = 0  # of the newest checkpoint whose parts are all written; the same on all workers

    def save(self, progress: Progress) -> None:
        """Take a checkpoint of the current state. Waits first for one that is still being written."""
        if self._writer.is_busy:
            self._complete()
        ranges = owned_ranges(self._engine)
        name = part_name(self._world.world_rank, self._world.world_size)
        self._state = self._state_of(progress)

        def write(folder: Storage) -> list[FileEntry]:
            return [write_ranges(folder, name, ranges)]

        self._writer.begin(progress.step, write)

    @property
    def is_busy(self) -> bool:
        """Whether this worker should not take a snapshot now: the last one is still being sent, or a best model that
        the state names is not written yet. Workers agree on it, since a snapshot needs the parts of all."""
        is_best_pending = self._best is not None and not self._best.done()
        return is_best_pending or (self._keeper is not None and self._keeper.is_busy)

    def snapshot(self, progress: Progress, *, is_possible: bool) -> None:
        """Send the current state to the peers' memory if a snapshot is due or overdue. All workers do so, or none.

        Args:
            is_possible: No worker is busy, and no checkpoint was taken of this state.
        """
        is_due = self._snapshots.is_due(progress.step, saved_step=self._written_step, is_possible=is_possible)
        if is_due and self._keeper is not None:
            copy = copy_state(self._engine)
            self._keeper.begin(progress.step, self._state_of(progress), encode_ranges(copy.ranges), copy.wait)
        if (since := self._snapshots.late_since(progress.step, time.monotonic())) is not None:
            self._log.event("late_snapshot", step=progress.step, since=since)

    def poll(self) -> tuple[float, float]:
        """(1.0 if this worker's part of the pending checkpoint is written, 1.0 if writing failed).

        A best model that is still being written belongs to the part: the checkpoint names the best value, so it must
        not exist before `best/` does.
        """
        self._tell_of_commits()
        try:
            is_best_written = self._best is None or self._best.done()
            if is_best_written:
                self._wait_for_best()
            return float(self._writer.poll() is not None and is_best_written), 0.0
        except CheckpointError as error:
            self._error = error
            return 0.0, 1.0

    def advance(self, sums: StepSums) -> None:
        """Commit the pending checkpoint once all workers have written their parts. Raises CheckpointError."""
        if sums.failed:
            raise self._first_error()
        if sums.saved == self._world.world_size:
            self._commit()

    def finish(self) -> None:
        """Complete everything that is being written. Raises CheckpointError."""
        if self._writer.is_busy:
            self._complete()
        self._wait_for_all()
        self._tell_of_commits()

    def close(self) -> None:
        """End the threads; what is not committed by now is dropped."""
        self._is_closed.set()
        self._writer.close()
        self._thread.shutdown(wait=True)
        if self._keeper is not None:
            self._keeper.close()

    def save_best(self, step: int) -> None:
        """Keep the current model, after `step` steps, in `best/`; only gathering the weights blocks."""
        weights = self._engine.full_state_dict(only_trained=has_adapter(self._engine.module))
        if weights is None:
            return
        try:
            self._wait_for_best()
        except CheckpointError:
            return  # `poll` tells the other workers; raising here would leave them waiting
        self._best = self._thread.submit(self._write_best, weights, step)

    def _write_best(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """Export to a local folder, then replace the last best model with it."""
        local = tempfile.mkdtemp(prefix="raytrain-best-")
        try:
            self._export(weights, step, local)
            retrying(lambda: replace_folder(self._run, BEST, local), f"writing {BEST}/", self._is_closed)
        except TakenOverError:
            raise
        except Exception as error:  # any error: raised on this worker only, it reaches the others as text
            raise CheckpointError(f"can't write {self._run.path_of(BEST)}: {error}") from error
        finally:
            shutil.rmtree(local, ignore_errors=True)

    def _wait_for_best(self) -> None:
        if self._best is not None:
            wait_patiently([self._best], self._callbacks.waiting)
            self._best.result()

    def _state_of(self, progress: Progress) -> dict[str, Any]:
        """The contents of state.json."""
        return {
            **progress.to_dict(),
            "loss_scaler": scaler_state(self._engine),
            "world_size": self._world.world_size,
            **self._plan.identity(progress.step),
        }

    def _complete(self) -> None:
        """Wait until the pending checkpoint is written on all workers, and commit it."""
        self._wait_for_all()
        self._commit()

    def _wait_for_all(self) -> None:
        """Wait for this worker's writes, and tell the others whether they succeeded. Raises CheckpointError on all
        workers."""
        failed = 0.0
        try:
            self._writer.wait(self._callbacks.waiting)
            self._wait_for_best()
        except CheckpointError as error:
            self._error, failed = error, 1.0
        if self._control.sum(StepSums(failed=failed)).failed:
            raise self._first_error()

    def _commit(self) -> None:
        self._written_step = self._state["step"]
        self._writer.commit(self._state)

    def _tell_of_commits(self) -> None:
        """Called on rank 0. Only a committed checkpoint counts as saved; until then a crash falls back to a
        snapshot."""
        step = self._writer.committed_step
        if step is not None and step != self._reported_step:
            self._reported_step = step
            self._log.event("checkpoint", step=step)
            self._callbacks.saved(step)

    def _first_error(self) -> CheckpointError:
        """The error of the first worker that has one. Collective."""
        messages = self._control.gather(str(self._error) if self._error else None)
        return CheckpointError(next(message for message in messages if message))
