"""The scaling policy of a worker group's controller: it waits until the supervisor says how many workers, then starts
that many, once.

So the controller of the next group, a process that needs seconds to come up, can stand by while the present group
trains. Only Ray imports this, in the controller's process and in `group`.
"""

from typing import Any

import ray
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)

ANSWER_TIMEOUT_S = 10.0


class Dismissed(Exception):
    """The controller is not needed any more."""


class StandbyPolicy(ScalingPolicy):
    """Asks the mailbox. The autoscaler is asked for nodes by the supervisor, once for the run: not by each group."""

    def __init__(self, scaling_config: Any, mailbox: str, group: int, resources: dict[str, float]):
        super().__init__(scaling_config)
        self._mailbox, self._group, self._resources = mailbox, group, resources
        self._is_started = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Blocks this process until there is an answer; it has nothing else to do."""
        if self._is_started:  # the group has ended; what comes next is another controller's
            raise Dismissed
        actor = ray.get_actor(self._mailbox)
        answer: Any = ray.get(actor.world_size_of.remote(self._group, ANSWER_TIMEOUT_S))
        world_size: int | None = answer
        if world_size is None:
            return NoopDecision()
        if world_size == 0:
            raise Dismissed
        self._is_started = True
        return ResizeDecision(num_workers=world_size, resources_per_worker=self._resources)

    def make_decision_for_running_worker_group(self, *_: Any, **__: Any) -> ScalingDecision:
        """A group keeps its size to its end; asked every half second."""
        if ray.get(ray.get_actor(self._mailbox).is_dismissed.remote(self._group)):
            raise Dismissed
        return NoopDecision()

    def _get_num_workers_for_resource_request(self) -> int:
        return 0

    def after_controller_start(self, train_run_context: Any) -> None:
        """No request of this group's own."""

    async def before_controller_shutdown(self) -> None:
        """Nothing to take back."""

    def before_controller_abort(self) -> None:
        """Nothing to take back."""
