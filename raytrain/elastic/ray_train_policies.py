"""Ray Train's two policies, which follow the supervisor's orders. Private names: see `ray_train.py`."""

# mypy: disable-error-code="arg-type"

from typing import Any

from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingPolicy
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from raytrain.elastic.orders import Orders


class OrderedScaling(ScalingPolicy):
    """Starts the group that was ordered. The supervisor asks the autoscaler for nodes, so this does not."""

    def __init__(self, scaling_config: ScalingConfig, orders: Orders):
        super().__init__(scaling_config)
        self._orders = orders

    def _get_num_workers_for_resource_request(self) -> int:
        return 0

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray Train's."""

    async def before_controller_shutdown(self) -> None:
        """Ray Train's."""

    def before_controller_abort(self) -> None:
        """Ray Train's."""

    def make_decision_for_non_running_worker_group(self) -> Any:
        """The group that was ordered, if it has not been started."""
        if not self._orders.is_group_due:
            return NoopDecision()
        return ResizeDecision(len(self._orders.actors), self.scaling_config._resources_per_worker_not_none)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """The same as when no group is running: the running one has left by then."""
        return self.make_decision_for_non_running_worker_group()


class OrderedFailures(FailurePolicy):
    """The supervisor has the fault budget. An error in the controller itself, such as an exception in a user's
    callback, ends the run."""

    def __init__(self, failure_config: FailureConfig, orders: Orders):
        super().__init__(failure_config)
        self._orders = orders

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Retry, which waits for the supervisor's order, unless the supervisor has ended the run."""
        is_controllers = isinstance(training_failed_error, ControllerError) and not isinstance(
            training_failed_error.controller_failure, WorkerGroupStartupFailedError
        )
        return FailureDecision.RAISE if self._orders.is_over or is_controllers else FailureDecision.RETRY
