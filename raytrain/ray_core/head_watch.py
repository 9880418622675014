"""Notices that the head of the cluster is gone, before Ray ends this process for it.

Ray's core retries for a minute, in calls that do not return meanwhile, and then aborts the process from C++. So this is
a thread, which tells the user what happened and what to do while there is time.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from raytrain.errors import FailureCode, TrainingError
from raytrain.ray_core.nodes import knock

KNOCK_EVERY_S = 2.0
KNOCK_TIMEOUT_S = 2.0
# A head that is restarted with its state in Redis is back sooner.
GONE_AFTER_S = 20.0


class HeadWatch:
    """Context manager that watches the head to which this process is connected."""

    def __init__(self, say: Callable[[str], None], resume: str):
        """Args:
        say: Tells the user; called in a thread.
        resume: The command that continues later.
        """
        import ray

        self._address = ray.get_runtime_context().gcs_address
        self._say, self._resume = say, resume
        self._is_over, self._is_gone = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="head")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()

    def check(self) -> None:
        """Raises TrainingError when the head is gone."""
        if self._is_gone:
            raise TrainingError(self._message, FailureCode.RAY)

    @property
    def _message(self) -> str:
        return (
            f"the head of the Ray cluster at {self._address} does not answer any more, so this command ends. When the "
            f"cluster is up again: {self._resume}"
        )

    def _watch(self) -> None:
        unanswered = 0
        while not self._is_over.wait(KNOCK_EVERY_S):
            try:
                knock(self._address, KNOCK_TIMEOUT_S)
                unanswered = 0
            except OSError:
                unanswered += 1
            if unanswered * KNOCK_EVERY_S >= GONE_AFTER_S:
                self._is_gone = True
                self._say(self._message)
                return
