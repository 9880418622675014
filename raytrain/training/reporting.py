"""What a run reports to Ray Train, for its callbacks, its `Result` and its dashboards.

Ray Train pairs the n-th report of each worker, so all workers report in the same step. They agree on it in the
all-reduce that ends each step anyway: each worker says whether its last report has been taken, and rank 0 whether one
is due. Calling `ray.train.report` would instead be a barrier through an actor.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from raytrain.checkpoint.manifest import MANIFEST_NAME
from raytrain.checkpoint.store import Saved
from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.training.agreement import StepSums

REPORT_EVERY_S = 1.0  # metrics.jsonl has every step; a checkpoint is reported at once

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Delivers reports to Ray Train."""

    @property
    def is_free(self) -> bool:
        """Whether a report would be taken without waiting."""

    def report(self, metrics: dict[str, Any], checkpoint: str | None) -> None:
        """Report on this worker; all workers do so, in the same order.

        `checkpoint`: name of the pointer's folder that `write_pointer` has written; None on all workers but rank 0.
        """

    def write_pointer(self, name: str, content: bytes) -> None:
        """Write the file of a pointer, on rank 0."""

    def flush(self) -> None:
        """Wait until the reports have been taken, for some seconds at most."""


class Reporting:
    """One worker's part in the reporting."""

    def __init__(self, reporter: Reporter | None, world: World, run: Storage, fencing_token: int = 0):
        """Args:
        reporter: The same on all workers; None: nothing is reported.
        fencing_token: Of this worker group; its checkpoints have it in their names.
        """
        self._fencing_token = fencing_token
        self._reporter, self._world, self._run = reporter, world, run
        self._token = uuid.uuid4().hex[:6]
        self._lock = threading.Lock()
        self._committed: int | None = None  # step of the newest checkpoint
        self._pending: int | None = None  # step of a checkpoint with a pointer that has not been reported
        self._reported: int | None = None
        self._newest: dict[str, Any] = {}
        self._next_s = 0.0

    def committed(self, step: int) -> None:
        """A checkpoint of this step is in storage. Called on rank 0, in the thread that writes. While one waits to be
        reported, only the newest of those that follow is remembered."""
        with self._lock:
            self._committed = step
            if self._reporter is not None and self._pending is None:
                self._pending = self._write_pointer(self._reporter, step)

    def _write_pointer(self, reporter: Reporter, step: int) -> int | None:
        pointer = {
            "step": step,
            "manifest": self._run.path_of(f"checkpoints/{Saved(self._fencing_token, step).folder}/{MANIFEST_NAME}"),
            "run": self._run.path_of(),
        }
        try:
            reporter.write_pointer(pointer_name(step, self._token), json.dumps(pointer, indent=1).encode())
        except Exception:  # any storage error, of any library: the checkpoint itself exists
            logger.warning("the checkpoint of step %d can't be reported to Ray Train", step, exc_info=True)
            return None
        return step

    def offer(self) -> dict[str, float]:
        """This worker's contribution to the agreement: fields of StepSums."""
        if self._reporter is None or not self._reporter.is_free:
            return {}
        if self._world.world_rank > 0:
            return {"may_report": 1.0}
        is_due = self._pending is not None or time.monotonic() >= self._next_s
        return {"may_report": float(is_due), "committed": float(self._pending or 0)}

    def advance(self, sums: StepSums, row: dict[str, Any]) -> None:
        """Report a step if the workers have agreed to. `row`: its line of metrics.jsonl."""
        self._newest |= row
        if sums.may_report == self._world.world_size:
            self._report(int(sums.committed))

    def evaluated(self, split: str, values: dict[str, float]) -> None:
        """Record metrics of an evaluation, which all later reports contain."""
        self._newest |= {f"{split}/{name}": value for name, value in values.items()}

    def finish(self, agree: Callable[[StepSums], StepSums]) -> None:
        """Report what is left, on all workers. `agree`: sums StepSums over them."""
        if self._reporter is None:
            return
        self._report_rest(agree, self._reporter)
        if agree(StepSums(committed=float(self._unreported() or 0))).committed:
            # The report above was of a checkpoint that had waited since before the last one.
            self._report_rest(agree, self._reporter)

    def _unreported(self) -> int | None:
        """Step of the newest checkpoint, if it has not been reported."""
        return self._committed if self._committed != self._reported else None

    def _report_rest(self, agree: Callable[[StepSums], StepSums], reporter: Reporter) -> None:
        """Report the newest metrics, with the checkpoint that waits, or else the newest one."""
        reporter.flush()
        step = self._unreported()
        if step is not None and self._pending is None:
            self._pending = self._write_pointer(reporter, step)
        sums = agree(StepSums(may_report=float(reporter.is_free), committed=float(self._pending or 0)))
        if sums.may_report == self._world.world_size:  # otherwise the controller is gone
            self._report(int(sums.committed))
        reporter.flush()

    def _report(self, committed: int) -> None:
        assert self._reporter is not None
        is_first = self._world.world_rank == 0
        self._next_s = time.monotonic() + REPORT_EVERY_S
        if is_first and committed:
            self._reported, self._pending = committed, None
        self._reporter.report(
            dict(self._newest), pointer_name(committed, self._token) if is_first and committed else None
        )


def pointer_name(step: int, token: str) -> str:
    """The folder that Ray Train is given for a checkpoint. `token`: another group may save the same step again."""
    return f"checkpoint_step_{step:08d}_{token}"
