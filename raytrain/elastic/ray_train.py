"""Drives Ray Train's own runtime. Only files of this name (`ray_train*.py`) use private names of `ray.train`.

A run is a run of Ray Train's `TrainController`, which forms the worker groups, initializes their contexts, polls them,
and keeps state, metrics, logs, reports and callbacks. The differences from a plain run:

workers           are processes that outlive their worker group: a group is formed from existing actors
scaling policy    a group starts when the supervisor orders it, see `supervisor.py`
failure policy    the supervisor decides what a failure is, who caused it and whether the run continues
barrier           the controller itself is the SynchronizationActor, which saves one process per group

tests/ray/test_ray_train_seams.py checks what this relies on; read it at each upgrade of Ray.
"""

# mypy: disable-error-code="arg-type, assignment, attr-defined, misc, override, union-attr"
# Ray's annotations of these classes describe its first version of Train, or are missing.

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.ray_constants import env_float
from ray.exceptions import RayError
from ray.train import BackendConfig, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal import constants as variables
from ray.train.v2._internal.callbacks import DatasetsCallback, WorkingDirectorySetupCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.checkpoint.sync_actor import (
    SynchronizationActor,
    SynchronizationBarrierResetError,
)
from ray.train.v2._internal.execution.context import DistributedContext
from ray.train.v2._internal.execution.controller import TrainController, controller
from ray.train.v2._internal.execution.controller.controller import TrainControllerLoopIterationResult
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    FinishedState,
    RunningState,
    SchedulingState,
    ShuttingDownState,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import PlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState
from ray.train.v2._internal.execution.worker_group.worker import Worker
from ray.train.v2._internal.util import (
    ObjectRefWrapper,
    TrainingFramework,
    invoke_context_managers,
    time_monotonic,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from raytrain.elastic.orders import Orders
from raytrain.elastic.ray_train_checkpoints import MirroredCheckpoints
from raytrain.elastic.ray_train_policies import OrderedFailures, OrderedScaling
from raytrain.ray_core.actors import start_actor

POLL_EVERY_S = 0.25  # between two polls of a group; RAY_TRAIN_HEALTH_CHECK_INTERVAL_S takes precedence
POLL_TIMEOUT_S = 0.1  # a worker that does not answer in time is asked again at the next poll
IDLE_S = 1.0  # the longest that the controller sleeps while it has no group

# Callbacks of Ray Train that are left out: there is no placement group to clean up, data sets are not Ray Train's, and
# user code keeps the working directory that it was started in.
LEFT_OUT = (PlacementGroupCleanerCallback, DatasetsCallback, WorkingDirectorySetupCallback)

_Synchronizer: type = SynchronizationActor.__ray_metadata__.modified_class


def _new_synchronizer() -> Any:
    """Created like Ray Train's own."""
    return _Synchronizer(
        timeout_s=env_float(variables.COLLECTIVE_TIMEOUT_S_ENV_VAR, variables.DEFAULT_COLLECTIVE_TIMEOUT_S),
        warn_interval_s=env_float(
            variables.COLLECTIVE_WARN_INTERVAL_S_ENV_VAR, variables.DEFAULT_COLLECTIVE_WARN_INTERVAL_S
        ),
    )


class _NoPlacementGroup(PlacementGroupHandle):
    """The actors hold their resources themselves, since a placement group can't be resized."""

    placement_group = ready = None

    def wait(self, timeout_seconds: float = 30) -> bool:
        return True

    def shutdown(self) -> None:
        pass


class _LeasedWorkerGroup(WorkerGroup):
    """A group of existing actors, which it leaves alive when it ends."""

    orders: Orders

    def _start(self) -> None:
        self.orders.started, self.orders.failures = self.orders.number, None
        try:
            self._start_impl(None)
        except RayError as error:
            for actor in self.orders.actors:  # survivors leave the group that was not formed
                actor.abandon.remote(self.orders.started, f"the worker group was not formed: {error}")
            self._clear_state()
            for callback in self._callbacks:
                callback.before_worker_group_abort(self._worker_group_context)
            raise WorkerGroupStartupFailedError("a worker died while its group started") from error

    def _start_impl(self, _: Any) -> None:
        """Like Ray Train's, but without the placement group and without starting processes."""
        context = self._worker_group_context
        with invoke_context_managers([callback.on_worker_group_start for callback in self._callbacks]):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            actors = self.orders.actors
            metadata = ray.get([actor.get_metadata.remote() for actor in actors])
            workers = [Worker(*pair, context.resources_per_worker) for pair in zip(actors, metadata, strict=True)]
            _rank(workers)
            sync_actor = ray.get_runtime_context().current_actor
            self._replica_groups = [ReplicaGroup([worker], context.resources_per_worker, []) for worker in workers]
            self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(workers))}
            self._worker_group_state = WorkerGroupState(time_monotonic(), _NoPlacementGroup(), workers, sync_actor)
            self._init_train_context(workers, sync_actor)
            for callback in self._callbacks:
                callback.after_worker_group_start(self)
        for worker in workers:
            worker.actor.begin.remote(self.orders.started)
        ray.get([worker.actor.run_train_fn.remote(context.train_fn_ref) for worker in workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    def poll_status(self, timeout: float | None = None) -> WorkerGroupPollStatus:
        """Like Ray Train's, but the supervisor decides who failed and whether the group has ended."""
        orders, world_size = self.orders, len(self.get_workers())
        if orders.has_group_left:  # its processes may be in a group of another run by now
            polled = [WorkerStatus(running=False)] * world_size
        elif orders.is_group_due:
            polled = [WorkerStatus(running=True)] * world_size
        else:
            polled = self._poll_workers_and_collect_errors(timeout)
        status = WorkerGroupPollStatus(
            {rank: self._judged(rank, worker) for rank, worker in enumerate(polled)},
            self._worker_rank_to_replica_group_rank,
        )
        for callback in self._callbacks:
            callback.after_worker_group_poll_status(status)
        self._latest_poll_status = status
        return status

    def _judged(self, rank: int, polled: WorkerStatus) -> WorkerStatus:
        orders = self.orders
        error = None
        if orders.failures and rank in orders.failures:  # its process may have been killed since
            error = RuntimeError(orders.failures[rank])
        has_ended = not polled.running or polled.error is not None
        return WorkerStatus(
            running=not (orders.is_over and has_ended),
            error=error,
            training_report=polled.training_report,
            return_value=polled.return_value,
            preemption_info=None,  # the supervisor has the group leave before the deadline
        )

    def shutdown(self) -> None:
        """Like Ray Train's, but no process ends."""
        self._assert_active()
        with invoke_context_managers([callback.on_worker_group_shutdown for callback in self._callbacks]):
            for callback in self._callbacks:
                callback.before_worker_group_shutdown(self)
            self._let_go()
            for callback in self._callbacks:
                callback.after_worker_group_shutdown(self._worker_group_context)

    def abort(self) -> None:
        """Like Ray Train's, but no process ends."""
        self._assert_active()
        for callback in self._callbacks:
            callback.before_worker_group_abort(self._worker_group_context)
        self._let_go()
        for callback in self._callbacks:
            callback.after_worker_group_abort(self._worker_group_context)

    def end_workers(self) -> None:
        """Call the callbacks in the workers for the group's end."""
        for worker in self.get_workers():
            worker.actor.shutdown.remote()

    def _let_go(self) -> None:
        if not self.orders.has_group_left:
            self.end_workers()
        self._clear_state()


def _rank(workers: Sequence[Worker]) -> None:
    """Assign world ranks in the given order, which keeps the workers of a node together."""
    nodes = [worker.metadata.node_id for worker in workers]
    for rank, (worker, node) in enumerate(zip(workers, nodes, strict=True)):
        worker.distributed_context = DistributedContext(
            world_rank=rank,
            world_size=len(workers),
            local_rank=nodes[:rank].count(node),
            local_world_size=nodes.count(node),
            node_rank=list(dict.fromkeys(nodes)).index(node),
        )


class DrivenController(TrainController):
    """Ray Train's controller; the supervisor tells it when a group begins or has failed, and when the run is over."""

    def __init__(self, train_fn_ref: Any, train_run_context: Any, callbacks: list[Any]):
        if variables.HEALTH_CHECK_INTERVAL_S_ENV_VAR not in os.environ:
            os.environ[variables.HEALTH_CHECK_INTERVAL_S_ENV_VAR] = str(POLL_EVERY_S)
        os.environ[variables.ENABLE_PREEMPTION_WATCHER_ENV_VAR] = "0"  # see `WorkerGroup.tell_notice`
        self._orders = orders = Orders()
        self._synchronizer = _new_synchronizer()
        controller.CheckpointManager = MirroredCheckpoints  # the base class creates its own
        self._is_released = False
        self.worker_group_cls = type("LeasedWorkerGroup", (_LeasedWorkerGroup,), {"orders": orders})
        super().__init__(
            train_fn_ref,
            train_run_context,
            OrderedScaling(train_run_context.scaling_config, orders),
            OrderedFailures(train_run_context.run_config.failure_config, orders),
            callbacks,
        )

    async def start_group(self, number: int, actors: list[Any]) -> None:
        """Order a group. `number`: larger than any before; `actors`: its workers in rank order."""
        await self._synchronizer.reset()  # workers of the last group that wait in it are gone
        self._synchronizer = _new_synchronizer()
        self._is_released = False
        self._orders.number, self._orders.actors = number, actors
        self._orders.changed.set()

    async def release(self, number: int) -> None:
        """Release the workers that wait in a barrier, or will: another worker of the group has failed."""
        if number == self._orders.number:
            self._is_released = True
            await self._synchronizer.reset()

    async def fail_group(self, number: int, failures: dict[int, str]) -> None:
        """Report that a group has failed. `failures`: the message of each rank that caused it."""
        if number == self._orders.started:
            self._orders.failures = failures
            self._orders.changed.set()

    async def end_group(self, number: int) -> None:
        """Report that a group has left as it was asked to: its workers are no longer polled."""
        group = self._worker_group
        if number == self._orders.started and group is not None and group.has_started():
            group.end_workers()
            self._orders.ended = number

    async def conclude(self, error: str | None) -> None:
        """End the run: finished, or failed with this error."""
        self._orders.is_over, self._orders.error = True, error
        if error is not None and self._orders.failures is None:
            self._orders.failures = {0: error}
        self._orders.changed.set()

    async def broadcast_from_rank_zero(self, **arguments: Any) -> Any:
        """Implements the SynchronizationActor."""
        if self._is_released:
            raise SynchronizationBarrierResetError("another worker of the group has failed")
        return await self._synchronizer.broadcast_from_rank_zero(**arguments)

    async def _poll_workers(self) -> WorkerGroupPollStatus:
        """Like Ray Train's, but an order is carried out at once."""
        await self._orders.wait(self._health_check_interval_s)
        self._exit_if_aborted()
        return self._worker_group.poll_status(timeout=POLL_TIMEOUT_S)

    async def _step(self) -> TrainControllerLoopIterationResult:
        state, orders = self.get_state(), self._orders
        if isinstance(state, RunningState | SchedulingState | ShuttingDownState):
            return await super()._step()
        if orders.is_over:  # there is no group whose end could end the run
            error = WorkerGroupError(orders.error, {}) if orders.error is not None else None
            end = FinishedState() if error is None else ErroredState(training_failed_error=error)
            return TrainControllerLoopIterationResult(
                self._get_run_attempt_id(), state, ShuttingDownState(next_state=end), error
            )
        if not orders.is_group_due:
            await orders.wait(IDLE_S)
            self._exit_if_aborted()
        return await super()._step()

    def _exit_if_aborted(self) -> None:
        """Exit if the run was aborted during the wait. Another step would mark it as failed."""
        if self.get_state().is_terminal():
            ray.actor.exit_actor()


class _Backend(BackendConfig):
    """torch, as far as Ray Train's state is concerned; the workers form their process group themselves."""

    framework = TrainingFramework.TORCH


class _NoDatasetShards(WorkerGroupCallback):
    """Explains why there are none, see docs/architecture.md."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [self] * len(workers)}

    def get_dataset_shard(self, dataset_info: Any) -> Any:
        raise RuntimeError(
            "ray.train.get_dataset_shard has no data sets in a raytrain run: each worker reads its part of the "
            "prepared data in an order that does not depend on the number of workers"
        )


def start_controller(
    train_fn: Any,
    name: str,
    storage_path: str,
    workers: tuple[int, int],
    resources: dict[str, float],
    keep_last: int,
    callbacks: Sequence[Any],
) -> Any:
    """Start the controller of a new Ray Train run on this node; returns its handle at once.

    Args:
        train_fn: The function that each worker runs, in each group.
        name: The run's name in Ray Train's state and metrics.
        storage_path: Where Ray Train keeps the list of reported checkpoints.
        workers: Fewest and most workers.
        resources, keep_last, callbacks: Of each worker; number of reported checkpoints; as for `ray.train.RunConfig`.
    """
    trainer = DataParallelTrainer(
        train_fn,
        backend_config=_Backend(),
        scaling_config=ScalingConfig(
            num_workers=workers if workers[0] < workers[1] else workers[1],
            resources_per_worker=resources,
            use_gpu="GPU" in resources,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=keep_last),
            callbacks=list(callbacks),
        ),
    )
    of_the_run = [callback for callback in trainer._create_default_callbacks() if not isinstance(callback, LEFT_OUT)]
    return start_actor(
        DrivenController,
        ObjectRefWrapper(trainer._get_train_func()),
        trainer.train_run_context,
        [*of_the_run, _NoDatasetShards()],
        max_concurrency=1000 + 2 * workers[1],  # each worker may wait in a barrier while others, and the driver, call
        **({"runtime_env": {"env_vars": env_vars}} if (env_vars := variables.get_env_vars_to_propagate()) else {}),
    )
