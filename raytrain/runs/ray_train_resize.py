"""A callback for a Ray Train trainer of the user's own: save before the workers are ended for another size.

Ray Train has no public way to do something before a resize: this file uses private names of `ray.train`, which may move
with a release of Ray. `ray_train_loop.py`, which trains, needs none.
"""

import logging
import time
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from raytrain.runs.ray_train_loop import ask_to_save, has_saved

POLL_EVERY_S = 0.1
ANSWER_TIMEOUT_S = 10.0  # of a worker's actor, whose training is in another thread

logger = logging.getLogger(__name__)


class GracefulResize(ControllerCallback, WorkerGroupCallback):
    """Lets workers that run `raytrain.ray_train_loop` save before Ray Train ends them for a group of another size, so
    that no step is done twice: `ray.train.RunConfig(callbacks=[raytrain.GracefulResize()])`.

    The processes still end, and those of the next group start anew. Of workers that run something else, or that have
    failed, nothing is waited for.
    """

    def __init__(self, timeout_s: float = 60.0):
        """`timeout_s`: the longest that a resize waits for the workers to save; then it goes on without."""
        self._timeout_s = timeout_s
        self._group: Any = None  # the one that trains; in the controller's process

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Ray Train's."""
        self._group = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Ray Train's."""
        self._group = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Ray Train's. Nobody else polls the group meanwhile."""
        group = self._group
        if group is None or not group.has_started():
            return
        try:
            status = group.get_latest_poll_status()
            if status is not None and not status.errors and not status.finished:  # one that failed comes here too
                self._save(group)
        except Exception:  # a worker died just now, say; what a callback raises would end the run
            logger.warning("the workers could not save before the resize", exc_info=True)

    def _save(self, group: Any) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        if not all(_ask(group, ask_to_save)):
            return
        while time.monotonic() < deadline_s:
            # Takes in what the workers report, which they do when they have saved, and shows whether they live.
            status = group.poll_status(timeout=1.0)
            if status.errors or status.finished or all(_ask(group, has_saved)):
                return
            time.sleep(POLL_EVERY_S)
        logger.warning(
            "the workers have not saved in %g s: the steps since the last checkpoint are lost", self._timeout_s
        )


def _ask(group: Any, question: Any) -> list[bool]:
    """The answer of each worker. Raises RayError when one has died, or does not answer."""
    answers = [worker.execute_async(question) for worker in group.get_workers()]
    return ray.get(answers, timeout=ANSWER_TIMEOUT_S)
