"""Saves checkpoints in the background: one thread per worker writes files while training continues. No Ray, no
torch."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from raytrain.checkpoint.manifest import FileEntry, encode_state
from raytrain.checkpoint.store import CheckpointStore, write_sidecar
from raytrain.errors import CheckpointError
from raytrain.retries import advice_for, retrying
from raytrain.steps.batches import World
from raytrain.storage import Storage

# Interval of heartbeats while a worker waits for its files.
WAIT_S = 5.0


class CheckpointWriter:
    """Saves one worker's part of a checkpoint.

    A save is *in flight* on a worker from `begin` until `commit`. All workers call both in the same step, so `begin` is
    refused on all of them or on none. In between, `poll` reports when this worker's files are written. Storage failures
    are retried for two minutes, then raised by the next `poll` or `wait`.
    """

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        token: str,
        on_committed: Callable[[int], None] = lambda step: None,
        sync_logs: Callable[[], None] = lambda: None,
    ):
        """Args:
        store: The run's checkpoints.
        world: The rank of this worker.
        token: The same on all workers of an attempt, and different in every attempt.
        on_committed: Called with each step that this writer has committed, in its thread.
        sync_logs: Called there before this worker's files are written, and before a commit: a checkpoint must not exist
            before the lines of its steps do. An OSError is retried.
        """
        self._on_committed, self._sync_logs = on_committed, sync_logs
        self._store = store
        self._world = world
        self._token = token
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._is_closed = threading.Event()
        self._step: int | None = None
        self._write: Future[None] | None = None
        self._commits: list[Future[None]] = []
        self.committed_step: int | None = None
        """Newest step that this writer has committed. Always None on workers other than rank 0."""

    @property
    def is_busy(self) -> bool:
        """Whether a save is in flight. The same on all workers."""
        return self._step is not None

    def begin(self, step: int, write: Callable[[Storage], Sequence[FileEntry]]) -> bool:
        """Start to save a step in the background.

        Args:
            step: The step that the state belongs to. An existing checkpoint of this step is discarded.
            write: Writes this worker's files into the given folder and returns them (`write_ranges` does both). It may
                be called again after an OSError. It must write copies of the state, because training continues.

        Returns:
            False if a save is in flight. Nothing was started then, and the caller may try again at a later step.
        """
        if self.is_busy:
            return False
        self._step = step
        self._write = self._thread.submit(self._try, step, lambda: self._write_part(step, write))
        return True

    def poll(self) -> int | None:
        """The step in flight, once this worker's files are written; else None. Does not block.

        Raises CheckpointError if a save or a commit has failed permanently.
        """
        self._raise_failed_commit()
        if self._write is None or not self._write.done():
            return None
        self._write.result()
        return self._step

    def wait(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Block until this worker has nothing left to write or commit. Raises CheckpointError like `poll`.

        `on_wait`: called from time to time meanwhile.
        """
        wait_patiently([*self._commits, *([self._write] if self._write else [])], on_wait)
        self.poll()

    def commit(self, state: dict[str, Any]) -> None:
        """Finish the save in flight. Called by all workers, after they have agreed that all have written their files.

        On rank 0 the manifest is then written, also in the background. `state` becomes state.json: the scalars as they
        were at the step of `begin`. Raises ValueError or TypeError if JSON can't represent them.
        """
        assert self._step is not None and self._write is not None and self._write.done(), "poll has not answered yet"
        step, self._step, self._write = self._step, None, None
        if self._world.world_rank == 0:
            encode_state(state)  # raises here rather than in the background
            self._commits.append(self._thread.submit(self._try, step, lambda: self._commit(step, state)))

    def close(self) -> None:
        """Discard what has not been written, and end the thread. Call `wait` first to keep it."""
        self._is_closed.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _write_part(self, step: int, write: Callable[[Storage], Sequence[FileEntry]]) -> None:
        self._sync_logs()
        self._store.clear_for_save(step, self._world.world_rank)
        folder = self._store.folder(step)
        write_sidecar(folder, self._world.world_rank, self._token, write(folder))

    def _commit(self, step: int, state: dict[str, Any]) -> None:
        self._sync_logs()
        self._store.commit(step, self._world.world_size, state, self._token)
        self._store.tidy_up(step)
        self.committed_step = step
        self._on_committed(step)

    def _try(self, step: int, work: Callable[[], None]) -> None:
        """Run `work`, with retries after storage errors. Raises CheckpointError when the last one fails."""
        try:
            retrying(work, f"saving step {step}", self._is_closed)
        except OSError as error:
            self._store.discard(step)
            raise CheckpointError(_cannot_save(step, self._store.folder(step).path_of(), error)) from error

    def _raise_failed_commit(self) -> None:
        for future in [future for future in self._commits if future.done()]:
            self._commits.remove(future)
            future.result()


def wait_patiently(futures: Iterable[Future[None]], on_wait: Callable[[], None]) -> None:
    """Wait until all futures are done, whatever their results. `on_wait` is called from time to time."""
    pending = set(futures)
    while pending:
        pending = wait(pending, timeout=WAIT_S).not_done
        on_wait()


def _cannot_save(step: int, path: str, error: OSError) -> str:
    """A message that says what failed where, and what to do."""
    return f"can't save step {step} to {path}: {error}. {advice_for(error)}, then resume the run."
