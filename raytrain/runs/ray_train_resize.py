"""A callback for a Ray Train trainer of the user's own: save before the workers are ended for a resize.

Ray Train has no public hook before a resize, so this file uses private names of `ray.train`, which may change with a
release of Ray. The training itself, `ray_train_loop.py`, does not need any.
"""

import logging
import time
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from raytrain.runs.ray_train_loop import ask_to_save, has_saved

POLL_EVERY_S = 0.1
ANSWER_TIMEOUT_S = 10.0  # for a worker's actor, whose training runs in another thread

logger = logging.getLogger(__name__)


class GracefulResize(ControllerCallback, WorkerGroupCallback):
    """Lets workers that run `raytrain.ray_train_loop` save before Ray Train ends them for a group of another size, so
    that no step is repeated: `ray.train.RunConfig(callbacks=[raytrain.GracefulResize()])`.

    The processes still end, and the next group starts in new ones. The resize does not wait for workers that run
    something else or have failed.
    """

    def __init__(self, timeout_s: float = 60.0):
        """`timeout_s`: the longest that a resize waits for the workers to save; after that it proceeds without."""
        self._timeout_s = timeout_s
        self._group: Any = None  # the group that is training; in the controller's process

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Ray Train's."""
        self._group = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Ray Train's."""
        self._group = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Called by Ray Train. Nothing else polls the group meanwhile."""
        group = self._group
        if group is None or not group.has_started():
            return
        try:
            status = group.get_latest_poll_status()
            if status is not None and not status.errors and not status.finished:  # a failed group also gets here
                self._save(group)
        except Exception:  # for example, a worker died just now; an exception from a callback would end the run
            logger.warning("the workers could not save before the resize", exc_info=True)

    def _save(self, group: Any) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        if not all(_ask(group, ask_to_save)):
            return
        while time.monotonic() < deadline_s:
            # Also takes in the workers' reports, which they send once they have saved, and shows whether they are
            # alive.
            status = group.poll_status(timeout=1.0)
            if status.errors or status.finished or all(_ask(group, has_saved)):
                return
            time.sleep(POLL_EVERY_S)
        logger.warning(
            "the workers have not saved in %g s: the steps since the last checkpoint are lost", self._timeout_s
        )


def _ask(group: Any, question: Any) -> list[bool]:
    """The answer of each worker. Raises RayError when a worker has died or does not answer."""
    answers = [worker.execute_async(question) for worker in group.get_workers()]
    return ray.get(answers, timeout=ANSWER_TIMEOUT_S)
