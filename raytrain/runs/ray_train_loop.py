"""A raytrain run inside a Ray Train trainer of the user's own: `raytrain.ray_train_loop`.

The user's trainer decides how many workers there are, when they start and how often they are retried. Each worker runs
the loop that is made here, which uses only Ray Train's public API. The samples of each step, the checkpoints, and how a
run resumes at another world size are the same as in `raytrain train`.
"""

import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.collective

from raytrain.config import RunConfig
from raytrain.config.io import dump_config
from raytrain.engine.rendezvous import address_of, listen
from raytrain.errors import ConfigError, RaytrainError
from raytrain.ray_core.nodes import most_in
from raytrain.retries import retrying
from raytrain.runs.beginning import lease_of
from raytrain.runs.lease import Lease
from raytrain.runs.preflight import check
from raytrain.runs.provenance import observe_command, record_command
from raytrain.runs.resume import begin_or_resume
from raytrain.runs.same_data import check_same_data, record_data, record_summary
from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.training.driver_link import DriverLink
from raytrain.training.job import POINTER, Job
from raytrain.training.outcome import Finished, RunStatus, Stopped

if TYPE_CHECKING:
    from raytrain.data.prepared import PreparedStore

FLUSH_TIMEOUT_S = 30.0  # a report waits for the slowest worker, then for the controller's next poll

logger = logging.getLogger(__name__)


def prepare_loop(config: RunConfig) -> "RayTrainLoop":
    """Check a config, prepare its data, set up its folder, and return the function that each worker runs.

    Ray is needed only if the data is not prepared yet: either the Ray that this process is connected to, or the one
    that `trainer.fit()` would use, which is left running for it.

    Raises:
        ConfigError: The config is wrong, the folder holds another run, or another command trains it; nothing was
        started.
        DataError: The data can't be used.
    """
    found = check(config, on_this_machine=False).config
    run = Storage(found.storage_path).at(found.name)
    command = observe_command()
    with lease_of(run, logger.info, owner := uuid.uuid4().hex) as lease:
        run = run.guarded(lease.check_now)
        writing = f"writing {run.path_of()}"
        retrying(lambda: begin_or_resume(run, found, overwrite=False), writing)
        retrying(lambda: check_same_data(run, found), writing)
        store = _prepared(found)
        retrying(lambda: record_data(run, found, store), writing)
        record_summary(run, found, store)
        retrying(lambda: run.commit_bytes("config.yaml", dump_config(found).encode()), writing)
        record_command(run, store.manifest.splits, command)
    return RayTrainLoop(found.model_dump(mode="json", exclude_unset=True), run.path_of(), store.root, owner)


def _prepared(config: RunConfig) -> "PreparedStore":
    from raytrain.data.prepare import find_prepared, prepare

    store = find_prepared(config)
    if store is not None:
        return store
    if not ray.is_initialized():
        ray.init(address=config.ray.address)
    return prepare(config)


@dataclass(frozen=True)
class RayTrainLoop:
    """A `train_loop_per_worker`: called without arguments in each worker of each worker group."""

    config: dict[str, Any]
    """Plain JSON of the RunConfig, with absolute paths."""
    run_root: str
    prepared_root: str
    owner: str
    """Of the run's lease: this trainer's worker groups take it from each other without waiting."""

    def __call__(self) -> dict[str, Any]:
        """Train from the newest checkpoint to the end of the run.

        Returns:
            status (finished or stopped_early), step, and final_metrics: those of the best model on the test split.

        Raises:
            RaytrainError: An error that the user can act on, such as a diverged loss; raised on all workers. The
            trainer's FailureConfig decides how often Ray Train retries after it, as after any other error.
        """
        from raytrain.config.shipped import worker_variables

        context = ray.train.get_context()
        world = World(context.get_world_rank(), context.get_world_size())
        job = self._job()
        config = RunConfig.model_validate(job.config)
        os.environ.update(worker_variables(config.training))
        with self._lease(world) as token, _process_group(config, world, use_gpu=job.use_gpu):
            outcome = _train(replace(job, fencing_token=token), world)
        if isinstance(outcome, Stopped):  # requested by GracefulResize: returning from the function would end the run
            _has_saved.set()
            threading.Event().wait()  # until Ray Train ends this process
        assert isinstance(outcome, Finished)
        status, step = outcome.status.value, outcome.progress.step
        return {"status": status, "step": step, "final_metrics": outcome.final_metrics}

    @contextmanager
    def _lease(self, world: World) -> Iterator[int]:
        """Hold the run's lease on rank 0. Yields the group's fencing token. Raises ConfigError, on all workers, when
        another command trains the run."""
        problem, token = None, 0
        with ExitStack() as stack:
            if world.world_rank == 0:
                try:
                    token = stack.enter_context(Lease(Storage(self.run_root), logger.info, self.owner)).token
                except ConfigError as error:
                    problem = str(error)
            problem, token = ray.train.collective.broadcast_from_rank_zero((problem, token))
            if problem is not None:
                raise ConfigError(problem)
            yield token

    def _job(self) -> Job:
        """The config for this worker: as many threads as it has CPUs, and no snapshots, since nothing keeps them
        here."""
        raw = {**self.config}
        cpus = max(1, int(_assigned("CPU")))
        raw["workers"] = {**raw.get("workers", {}), "cpus": cpus}
        raw["checkpoint"] = {**raw.get("checkpoint", {}), "snapshot_every_steps": None}
        return Job(raw, self.run_root, self.prepared_root, _choose_device())


class Reports:
    """This worker's reports; see `raytrain.training.reporting`.

    `ray.train.report` waits for the other workers and for the controller's next poll. It is called in a separate thread
    so that no step waits.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._newest: Future[None] | None = None
        self._folders: dict[str, str] = {}

    @property
    def is_free(self) -> bool:
        """Whether the last report has been delivered. Raises what `ray.train.report` has raised."""
        if self._newest is None or not self._newest.done():
            return self._newest is None
        self._newest.result()
        return True

    def report(self, metrics: dict[str, Any], checkpoint: str | None) -> None:
        """See `Reporter.report`."""
        pointer = ray.train.Checkpoint.from_directory(self._folders.pop(checkpoint)) if checkpoint else None
        self._newest = self._thread.submit(
            ray.train.report, metrics, checkpoint=pointer, delete_local_checkpoint_after_upload=pointer is not None
        )

    def write_pointer(self, name: str, content: bytes) -> None:
        """See `Reporter.write_pointer`. Writes into a local folder, which Ray Train uploads."""
        self._folders[name] = tempfile.mkdtemp(prefix="raytrain-")
        Path(self._folders[name], POINTER).write_bytes(content)

    def flush(self) -> None:
        """See `Reporter.flush`."""
        if self._newest is not None:
            wait([self._newest], timeout=FLUSH_TIMEOUT_S)

    def finish(self) -> None:
        """Wait until the last report has been delivered. Raises what `ray.train.report` has raised."""
        if self._newest is not None:
            self._newest.result()


def _train(job: Job, world: World) -> Finished | Stopped:
    """Train, once the process group is initialized."""
    global _link
    from raytrain.training.worker import WorkerRun

    link = _link = DriverLink(ray.get_runtime_context().get_node_id())
    worker, status, reports = None, RunStatus.STOPPED, Reports()  # after a crash another group continues
    try:
        worker = WorkerRun(job, Storage(job.run_root), world, link, link.now(), reports)
        outcome = worker.train()
        reports.finish()
        status = outcome.status
        return outcome
    except RaytrainError as error:
        status = RunStatus.FAILED
        if worker is not None:
            worker.log.event("failure", cause=str(error), code=error.code)
        raise
    except Exception as error:
        _keep_traceback(worker.run if worker is not None else Storage(job.run_root), world, error)
        raise
    finally:
        if worker is not None:
            worker.log.close(status)


def _keep_traceback(run: Storage, world: World, error: Exception) -> None:
    """Write the traceback to the run's folder, as the driver of `raytrain train` does. What tells whether it is the
    cause needs names that Ray does not document: without them the error is raised all the same."""
    try:
        from raytrain.elastic.error_files import keep_traceback

        keep_traceback(run, world.world_rank, error)
    except Exception:
        logger.exception("the traceback of worker %d can't be written to %s", world.world_rank, run.path_of())


@contextmanager
def _process_group(config: RunConfig, world: World, *, use_gpu: bool) -> Iterator[None]:
    """The process group that Ray Train's TorchConfig has initialized; otherwise one of our own.

    Raises ConfigError, on all workers, when the cluster has no CPU left for Ray Data.
    """
    import torch.distributed as dist

    from raytrain.engine.process_group import connect, process_group
    from raytrain.training.device import backend_of

    problem, address, listener = None, None, None
    if world.world_rank == 0:
        problem = _too_many(config, world.world_size) or _no_room_for_data(config, world.world_size)
        if not dist.is_initialized():
            listener = listen(ray.util.get_node_ip_address())
            address = address_of(listener)
    problem, address = ray.train.collective.broadcast_from_rank_zero((problem, address))
    if problem is not None:
        raise ConfigError(problem)
    if address is None:
        yield
        return
    store, patience_s = connect(world, address, listener), config.workers.stall_timeout_s
    with process_group(world, backend_of(use_gpu=use_gpu), store, patience_s):
        yield


def _too_many(config: RunConfig, world_size: int) -> str | None:
    """The message when there are more workers than micro-batches in a step; else None."""
    training = config.training
    if world_size <= training.num_micro_batches:
        return None
    return (
        f"{world_size} workers are more than the {training.num_micro_batches} micro-batches of a step: lower "
        f"ScalingConfig(num_workers), or begin a new run with a {training.batches_for(world_size)}"
    )


def _no_room_for_data(config: RunConfig, world_size: int) -> str | None:
    """The message when the workers leave no CPU free, so that Ray Data would wait indefinitely for one; else None."""
    each, there, data_cpus = _assigned("CPU"), ray.cluster_resources().get("CPU", 0.0), config.workers.data_cpus
    most = most_in({"CPU": there}, {"CPU": each}, data_cpus)
    if world_size <= most:
        return None
    return (
        f"{world_size} workers of {each:g} CPUs each leave too few of the cluster's {there:g} for Ray Data (workers."
        f"data_cpus {data_cpus:g} each, at least 1), which would wait forever: lower ScalingConfig(num_workers) to "
        f"{most}, lower the CPU of resources_per_worker, or add nodes"
    )


def _assigned(resource: str) -> float:
    """The amount of a resource that Ray has assigned to this worker."""
    return ray.get_runtime_context().get_assigned_resources().get(resource, 0.0)


def _choose_device() -> bool:
    """Whether this worker has a GPU; if so, it becomes the process's current device."""
    import ray.train.torch
    import torch

    if not torch.cuda.is_available():  # the GPU may be only a declared resource of the node
        return False
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return bool(device.type == "cuda")


# This process's link, through which the controller sends its requests; see `ray_train_resize.py`.
_link: DriverLink | None = None
_has_saved = threading.Event()


def ask_to_save() -> bool:
    """Ask the loop to save at its next step and then wait for the process to be ended. Returns whether the loop has
    started its steps: otherwise there is nothing to save yet."""
    link = _link
    if link is None:
        return False
    link.request_leave()
    return link.status.step is not None


def has_saved() -> bool:
    """Whether the loop has saved since it was asked to, and the checkpoint is committed."""
    return _has_saved.is_set()
