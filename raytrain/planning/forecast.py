"""Forecasts what a run needs and whether it fits: memory, time and cost on top of the plan."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from raytrain.config import Precision, RunConfig
from raytrain.data.copies import describe_epoch
from raytrain.data.listing import list_split
from raytrain.data.prepare import find_prepared
from raytrain.data.readers.base import GROUPED
from raytrain.data.sources import count_rows
from raytrain.errors import ConfigError, counted
from raytrain.planning.calibration import Calibration, find_calibration
from raytrain.planning.fitting import Choice, choices, first_that_fits, memory_of, resolved_precision
from raytrain.planning.gpus import PRICES_ARE, Gpu
from raytrain.ray_core.connect import cluster_address
from raytrain.runs.plan import Plan, cpus_needed, make_plan
from raytrain.runs.preflight import Preflight, check
from raytrain.sizing.memory import Memory
from raytrain.sizing.shape import ModelShape, shape_on_meta
from raytrain.sizing.usable import GIB, usable_of_machine
from raytrain.sizing.zero_stage import AUTO
from raytrain.tasks import make_task
from raytrain.tasks.base import Task, TaskState

NO_ACTIVATIONS = (
    "activations are not known: they are estimated from the layers of a Transformers config, which this model does not "
    "have. Weights, masters, moments, gradients and buffers are counted, so a worker needs at least what is shown. "
    "Only a short run tells what a step takes beyond that (nvidia-smi, or the workers' memory on Ray's dashboard); "
    "with its folder, --calibrate gives the time of a step, not its memory"
)


@dataclass(frozen=True)
class Hardware:
    """The hardware to plan for. Without `num_nodes` and `gpu`: this machine, without GPUs."""

    gpu: Gpu | None = None
    """Each worker's."""
    num_nodes: int | None = None
    """None: as many nodes as workers.max needs."""
    gpus_per_node: int | None = None
    """None: 1 if the nodes have GPUs."""
    cpus_per_node: float | None = None
    """None: as many CPUs as the workers and Ray Data need."""
    price_per_hour: float | None = None
    """Dollars per hour for a worker with its GPU; None: the example price of the GPU."""
    bandwidth_bytes: float = 100 * 2**20
    """Upload rate of a worker to storage, bytes per second."""

    def __post_init__(self) -> None:
        if self.gpus_per_node is not None and self.gpu is None:
            raise ConfigError("--gpus-per-node needs the kind of GPU too: add --gpu, such as --gpu a10g")

    @property
    def gpus_each(self) -> int:
        """GPUs per node, if the nodes have any."""
        return self.gpus_per_node or 1

    @property
    def is_this_machine(self) -> bool:
        """Whether the run would start a private Ray here."""
        return self.gpu is None and self.num_nodes is None and self.cpus_per_node is None

    @property
    def price(self) -> float | None:
        """Dollars per worker and hour; None: unknown."""
        if self.price_per_hour is not None or self.gpu is None:
            return self.price_per_hour
        return self.gpu.price_per_hour


@dataclass(frozen=True)
class WorldForecast:
    """The needs of a run at one world size."""

    world_size: int
    zero_stage: int
    memory: Memory
    """Of each worker."""
    fits_memory: bool | None
    """None: the available or the needed memory is not fully known."""
    step_s: float | None
    """None: not measured."""
    run_s: float | None
    """Duration of all steps at this world size, without evaluations, saves and the start."""
    cost: float | None
    """Dollars, for `run_s`."""


@dataclass(frozen=True)
class Forecast:
    """The contents of `raytrain plan --json`."""

    plan: Plan
    precision: Precision
    shape: ModelShape
    num_samples: int | None
    usable_bytes: int | None
    """Memory available to a worker's tensors; None: unknown. On CPUs: this machine's, at the plan's world size."""
    worlds: list[WorldForecast]
    choices: list[tuple[Choice, Memory]]
    """Every ZeRO stage and precision at the plan's world size."""
    first_fit: Choice | None
    """The cheapest change of the config that fits, as far as is known. None: nothing fits, or the available memory is
    unknown."""
    cpus_per_worker: int
    data_cpus: float
    """CPUs of the Ray Data pipeline of each worker."""
    bandwidth_bytes: float
    """Assumed upload rate of a worker to storage, bytes per second."""
    upload_s: float
    """Seconds to upload a checkpoint at the plan's world size."""
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the unchanged config fits at every world size, as far as is known."""
        return all(world.fits_memory is not False for world in self.worlds)

    def to_json(self) -> dict[str, Any]:
        """The forecast as JSON-able values, in bytes, seconds and dollars."""
        return {
            "plan": self.plan.to_json(),
            "fits": self.fits,
            "first_fit": self.first_fit and asdict(self.first_fit),
            "first_fit_overrides": self.first_fit.overrides() if self.first_fit else None,
            "parameters": self.shape.num_parameters,
            "trained_parameters": self.shape.num_trained,
            "precision": self.precision.value,
            "num_samples": self.num_samples,
            "usable_bytes": self.usable_bytes,
            "cpus_per_worker": self.cpus_per_worker,
            "data_cpus": self.data_cpus,
            "bandwidth_bytes": self.bandwidth_bytes,
            "upload_s": self.upload_s,
            "worlds": [{**asdict(world), "memory": world.memory.to_json()} for world in self.worlds],
            "memory_by_choice": [{**asdict(choice), "memory": memory.to_json()} for choice, memory in self.choices],
            "notes": self.notes,
        }


def make_forecast(config: RunConfig, hardware: Hardware, calibration_run: str | None = None) -> Forecast:
    """Check a config and forecast the needs of its run. Does not use Ray.

    Args:
        calibration_run: Directory of a run with measured steps; None: the config's own, if it exists.

    Raises:
        ConfigError, DataError: The config, its data or its model are invalid, or no worker fits.
    """
    _check_gpu(config, hardware)
    on_this_machine = hardware.is_this_machine and cluster_address(config) is None
    found = check(config, on_this_machine=on_this_machine)
    config = found.config
    task = make_task(config.task, config.data.max_length)
    num_samples, state, notes = _count_data(config, task)
    shape = shape_on_meta(config, task, state)
    num_cpus, num_gpus = _size_of(found, hardware, on_this_machine=on_this_machine)
    plan = make_plan(
        config,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        num_samples=num_samples,
        num_trained=shape.num_trained,
        whose="this Ray" if on_this_machine else "the planned cluster",
    )
    precision = resolved_precision(config.training.precision, plan.use_gpu, hardware.gpu)
    calibration, time_note = find_calibration(config, calibration_run, use_gpu=plan.use_gpu)
    notes += [time_note, *_assumptions(config, shape, plan, hardware, precision, on_this_machine=on_this_machine)]
    usable = _usable_bytes(plan, hardware, plan.world_size, on_this_machine=on_this_machine)
    worlds = [
        _world(
            config,
            shape,
            precision,
            plan,
            world.world_size,
            _usable_bytes(plan, hardware, world.world_size, on_this_machine=on_this_machine),
            calibration,
            hardware.price,
        )
        for world in plan.worlds
    ]
    most = _most_workers(plan, hardware, num_gpus, on_this_machine=on_this_machine)
    assert plan.checkpoint_bytes is not None
    return Forecast(
        plan=plan,
        precision=precision,
        shape=shape,
        num_samples=num_samples,
        usable_bytes=usable,
        worlds=worlds,
        choices=_memory_by_choice(config, shape, plan, hardware.gpu),
        first_fit=_first_fit(config, shape, plan, hardware.gpu, usable, most),
        cpus_per_worker=config.workers.cpus,
        data_cpus=config.workers.data_cpus,
        bandwidth_bytes=hardware.bandwidth_bytes,
        upload_s=plan.checkpoint_bytes / plan.world_size / hardware.bandwidth_bytes,
        notes=[*notes, *plan.notes],
    )


def _check_gpu(config: RunConfig, hardware: Hardware) -> None:
    """Raises ConfigError if the hardware has GPUs that no worker uses, or the workers need GPUs of an unknown kind."""
    if hardware.gpu is not None and config.workers.gpu is False:
        raise ConfigError("workers.gpu is false, so no worker would use the --gpu: set workers.gpu to auto or true")
    if hardware.gpu is None and config.workers.gpu is True and hardware.num_nodes is not None:
        raise ConfigError("workers.gpu is true: say which GPU the --nodes have, such as --gpu a10g or --gpu 24GiB")


def _most_workers(plan: Plan, hardware: Hardware, num_gpus: float | None, *, on_this_machine: bool) -> float:
    """The largest world size that may be suggested; infinity if the number of nodes is open."""
    if on_this_machine:  # its memory is divided among the workers
        return plan.world_size
    return num_gpus if plan.use_gpu and num_gpus is not None and hardware.num_nodes is not None else math.inf


def _first_fit(
    config: RunConfig, shape: ModelShape, plan: Plan, gpu: Gpu | None, usable: int | None, most_workers: float
) -> Choice | None:
    """The cheapest change of the config that fits; None: nothing fits, or the available memory is unknown."""
    if usable is None:
        return None
    return first_that_fits(config, shape, usable, use_gpu=plan.use_gpu, gpu=gpu, most_workers=most_workers)


def _memory_by_choice(config: RunConfig, shape: ModelShape, plan: Plan, gpu: Gpu | None) -> list[tuple[Choice, Memory]]:
    """Memory of a worker at the plan's world size, for every ZeRO stage and precision."""
    table = choices(config, plan.world_size, use_gpu=plan.use_gpu, gpu=gpu)
    return [(one, memory_of(config, shape, one, plan.world_size, use_gpu=plan.use_gpu)[0]) for one in table]


def _world(
    config: RunConfig,
    shape: ModelShape,
    precision: Precision,
    plan: Plan,
    world_size: int,
    usable: int | None,
    calibration: Calibration | None,
    price: float | None,
) -> WorldForecast:
    choice = Choice.of(config, precision)
    memory, zero_stage = memory_of(config, shape, choice, world_size, use_gpu=plan.use_gpu, usable_bytes=usable)
    step_s = None if calibration is None else calibration.step_s_at(config, world_size)
    run_s = step_s * plan.total_steps if step_s and plan.total_steps else None
    return WorldForecast(
        world_size=world_size,
        zero_stage=zero_stage,
        memory=memory,
        fits_memory=memory.fits_in(usable),
        step_s=step_s,
        run_s=run_s,
        cost=None if run_s is None or price is None else run_s / 3600 * price * world_size,
    )


def _count_data(config: RunConfig, task: Task) -> tuple[int | None, TaskState, list[str]]:
    """Number of training samples, the task's state, and notes on the data, or on the number if it is not prepared."""
    store = find_prepared(config)
    if store is not None:
        notes = [*store.manifest.remarks, *describe_epoch(config, store.manifest)]
        return store.manifest.splits["train"].num_samples, store.manifest.task_state, notes
    state = task.assumed_state()
    files = list_split(config.data.train, "data.train")
    if any(file.format not in GROUPED for file in files):
        return None, state, ["data is not prepared, so its samples are not counted: `raytrain data prepare CONFIG`"]
    rows = count_rows(files)
    fraction = config.data.validation.fraction if config.data.validation else None
    rows = round(rows * (1 - (fraction or 0.0)))
    return rows, state, [f"data is not prepared: {counted(rows, 'sample')}, the rows of its files"]


def _size_of(found: Preflight, hardware: Hardware, *, on_this_machine: bool) -> tuple[float, float | None]:
    """(CPUs, GPUs) to plan for."""
    if on_this_machine:
        return found.private_cpus, None
    most = found.config.workers.max
    num_cpus = cpus_needed(found.config, most)
    if hardware.cpus_per_node is not None:
        num_cpus = hardware.cpus_per_node * (hardware.num_nodes or _nodes_for(found.config, hardware))
    if hardware.gpu is None:
        return num_cpus, 0.0 if found.config.workers.gpu is not True else float(most)
    return num_cpus, float(most if hardware.num_nodes is None else hardware.num_nodes * hardware.gpus_each)


def _nodes_for(config: RunConfig, hardware: Hardware) -> int:
    """Number of nodes with enough GPUs for workers.max; 1 on CPUs."""
    return -(-config.workers.max // hardware.gpus_each) if hardware.gpu else 1


def _usable_bytes(plan: Plan, hardware: Hardware, world_size: int, *, on_this_machine: bool) -> int | None:
    """Memory available to the tensors of a worker; None: unknown. This machine never has more workers than the plan."""
    if hardware.gpu is not None:
        return hardware.gpu.usable_bytes
    if not on_this_machine or plan.use_gpu:
        return None
    return usable_of_machine(min(world_size, plan.world_size))


def _assumptions(
    config: RunConfig,
    shape: ModelShape,
    plan: Plan,
    hardware: Hardware,
    precision: Precision,
    *,
    on_this_machine: bool,
) -> list[str]:
    """Sentences on what is assumed and what is unknown."""
    notes = [] if shape.layers is not None else [NO_ACTIVATIONS]
    if hardware.gpu is None and config.workers.gpu == "auto":
        where = " on this machine" if on_this_machine else ""
        notes.append(f"planned for CPU workers{where}; --gpu plans for GPUs")
    if hardware.gpu is None and plan.use_gpu:
        notes.append("the memory of the GPUs is not known: give --gpu to have it checked")
    if cluster_address(config) is not None and hardware.is_this_machine:
        notes.append("the cluster was not asked: room for workers.max is assumed; --nodes sets its size")
    elif not on_this_machine and hardware.cpus_per_node is None:
        notes.append(f"assumed: {plan.num_cpus:g} CPUs for the workers and Ray Data; --cpus-per-node sets them")
    if config.training.zero_stage == AUTO and hardware.gpu is None and (plan.use_gpu or not on_this_machine):
        notes.append(
            "the memory of the workers is not known here: ZeRO is shown at stage 2, and they take the lowest that fits"
        )
    if config.training.zero_stage == 0 and precision is not Precision.FP32:
        notes.append(f"training.zero_stage 0 in {precision.value} is DeepSpeed's stage 1, which computes the same")
    if hardware.gpu is not None:
        gpu = hardware.gpu
        if hardware.num_nodes is None:
            notes.append(f"assumed: {config.workers.max} GPUs, since that is workers.max; --nodes sets them")
        notes.append(
            f"{gpu.name}: {gpu.usable_bytes / GIB:.1f} GiB of {gpu.memory_bytes / GIB:.1f} are available to "
            "tensors; the rest is for the driver, libraries and fragmentation"
        )
        if hardware.price_per_hour is None and gpu.price_per_hour is not None:
            notes.append(PRICES_ARE)
    return notes
