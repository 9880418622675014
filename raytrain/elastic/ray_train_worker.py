"""A Ray Train worker that can be reused, and its reports. Private names: see `ray_train.py`."""

# mypy: disable-error-code="arg-type, attr-defined, misc, override"

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ray.train import Checkpoint
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationBarrierResetError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.training_report import _TrainingReport
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2._internal.util import invoke_context_managers

from raytrain.training.job import POINTER

FLUSH_TIMEOUT_S = 5.0
BarrierResetError = SynchronizationBarrierResetError
"""Raised in a worker that waits in a barrier of Ray Train when another worker of the group has failed."""


class ReusableWorker(RayTrainWorker):
    """A Ray Train worker that can be initialized again for the next worker group."""

    def begin(self, group: int) -> None:
        """The next call of the training function belongs to this group."""

    def abandon(self, group: int, reason: str) -> None:
        """The group is not formed, or a worker of it is gone: a worker that has not begun must not begin any more."""

    def init_train_context(self, **arguments: Any) -> None:
        """Like Ray Train's. Two defaults of its context belong to the class, so the second group of a process would get
        an upload pool that was shut down at the end of the first."""
        super().init_train_context(**arguments)
        context = get_train_context()
        context.checkpoint_upload_threadpool = ThreadPoolExecutor(1)
        context.report_order_condition = threading.Condition()

    def shutdown(self) -> None:
        """Like Ray Train's. The reports of this context are no longer taken."""
        super().shutdown()
        get_train_context().is_over = True


class DirectReporter:
    """Puts this worker's reports where the controller's next poll takes them; `ray.train.report` does so after a
    barrier. See `raytrain.training.reporting`."""

    def __init__(self) -> None:
        self._context = get_train_context()
        self._storage = self._context.get_storage()

    @property
    def is_free(self) -> bool:
        """Whether the last report has been taken."""
        return self._context.get_result_queue().empty()

    def report(self, metrics: dict[str, Any], checkpoint: str | None) -> None:
        """See `Reporter.report`."""
        context = self._context
        pointer = Checkpoint(self._path(checkpoint), self._storage.storage_filesystem) if checkpoint else None
        with (
            invoke_context_managers([callback.on_report for callback in context.get_context_callbacks()]),
            context.report_order_condition,
            suppress(queue.Full),  # the controller is gone
        ):
            context.get_result_queue().put_nowait(_TrainingReport(pointer, metrics, validation=False))
            context.report_call_index += 1
            context.current_report_index += 1
            context.checkpoint = pointer or context.checkpoint

    def write_pointer(self, name: str, content: bytes) -> None:
        """See `Reporter.write_pointer`."""
        self._storage.storage_filesystem.create_dir(self._path(name))
        with self._storage.storage_filesystem.open_output_stream(f"{self._path(name)}/{POINTER}") as file:
            file.write(content)

    def flush(self) -> None:
        """See `Reporter.flush`."""
        deadline_s = time.monotonic() + FLUSH_TIMEOUT_S
        while not self.is_free and not getattr(self._context, "is_over", False) and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def _path(self, name: str) -> str:
        return self._storage.build_checkpoint_path_from_name(name)
