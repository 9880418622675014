"""What a run will need and whether it fits: the plan, with the model counted, the memory, the time and the money."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.parquet as pq

from raytrain.config import Precision, RunConfig, SourceFormat
from raytrain.data.listing import list_files
from raytrain.data.prepare import find_prepared
from raytrain.data.readers.base import open_source
from raytrain.errors import ConfigError
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
    """What a run is planned for. Without `num_nodes` and `gpu` it is this machine, without GPUs."""

    gpu: Gpu | None = None
    """Each worker's."""
    num_nodes: int | None = None
    """None: as many as workers.max needs."""
    gpus_per_node: int | None = None
    """None: 1, where there are GPUs."""
    cpus_per_node: float | None = None
    """None: as many as the workers and Ray Data need."""
    price_per_hour: float | None = None
    """Dollars for a worker with its GPU; None: the table's for the GPU."""
    bandwidth_bytes: float = 100 * 2**20
    """Bytes that a worker sends to storage in a second."""

    def __post_init__(self) -> None:
        if self.gpus_per_node is not None and self.gpu is None:
            raise ConfigError("--gpus-per-node says how many, and nothing which: add --gpu, such as --gpu a10g")

    @property
    def gpus_each(self) -> int:
        """GPUs of a node that has any."""
        return self.gpus_per_node or 1

    @property
    def is_this_machine(self) -> bool:
        """Whether the run would start a private Ray here."""
        return self.gpu is None and self.num_nodes is None and self.cpus_per_node is None

    @property
    def price(self) -> float | None:
        """Dollars for a worker and an hour."""
        if self.price_per_hour is not None or self.gpu is None:
            return self.price_per_hour
        return self.gpu.price_per_hour


@dataclass(frozen=True)
class WorldForecast:
    """What one world size needs."""

    world_size: int
    zero_stage: int
    memory: Memory
    """Of each worker."""
    fits_memory: bool | None
    """None: the memory of the workers, or a part of what they need, is not known."""
    step_s: float | None
    """None: no run has measured it."""
    run_s: float | None
    """All steps of the run, at this world size throughout; evaluations, saves and the start are not in it."""
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
    """What a worker's tensors can have; None: not known. On CPUs, of this machine with the plan's world size."""
    worlds: list[WorldForecast]
    choices: list[tuple[Choice, Memory]]
    """Every ZeRO stage and precision at the plan's world size."""
    first_fit: Choice | None
    """The first combination that fits, as far as its parts are known, the least change from the config first; None:
    none does, or nothing is known of the memory."""
    cpus_per_worker: int
    data_cpus: float
    """CPUs of each worker's Ray Data pipeline."""
    bandwidth_bytes: float
    """Bytes that a worker is taken to send to storage in a second."""
    upload_s: float
    """Seconds for a checkpoint to storage at the plan's world size."""
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the config as it is fits at every world size, as far as is known."""
        return all(world.fits_memory is not False for world in self.worlds)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; bytes, seconds and dollars."""
        return {
            "plan": self.plan.to_json(),
            "fits": self.fits,
            "first_fit": self.first_fit and asdict(self.first_fit),
            "first_fit_overrides": self.first_fit.overrides() if self.first_fit else None,
            "parameters": self.shape.num_parameters,
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
    """Check a config and say what a run of it needs. No Ray.

    Args:
        calibration_run: Folder of a run that has measured the steps; None: the config's own, if there is one.

    Raises:
        ConfigError, DataError: All that is wrong with the config, its data or its model, or no room for it.
    """
    _check_gpu(config, hardware)
    on_this_machine = hardware.is_this_machine and cluster_address(config) is None
    found = check(config, on_this_machine=on_this_machine)
    config = found.config
    task = make_task(config.task, config.data.max_length)
    num_samples, state, said = _count_data(config, task)
    notes = [said] if said else []
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
    calibration, said = find_calibration(config, calibration_run, use_gpu=plan.use_gpu)
    notes += [said, *_assumptions(config, shape, plan, hardware, precision, on_this_machine=on_this_machine)]
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
    """Raises ConfigError when the hardware has GPUs that no worker would hold, or workers need GPUs of unknown kind."""
    if hardware.gpu is not None and config.workers.gpu is False:
        raise ConfigError("workers.gpu is false, so no worker would hold the --gpu: set workers.gpu to auto or true")
    if hardware.gpu is None and config.workers.gpu is True and hardware.num_nodes is not None:
        raise ConfigError("workers.gpu is true: say which GPU the --nodes have, such as --gpu a10g or --gpu 24GiB")


def _most_workers(plan: Plan, hardware: Hardware, num_gpus: float | None, *, on_this_machine: bool) -> float:
    """The largest world size that may be suggested; infinity where the number of nodes is left open."""
    if on_this_machine:  # its memory is divided among the workers that fit
        return plan.world_size
    return num_gpus if plan.use_gpu and num_gpus is not None and hardware.num_nodes is not None else math.inf


def _first_fit(
    config: RunConfig, shape: ModelShape, plan: Plan, gpu: Gpu | None, usable: int | None, most_workers: float
) -> Choice | None:
    """The least change from the config that fits; None: nothing does, or the memory is not known."""
    if usable is None:
        return None
    return first_that_fits(config, shape, usable, use_gpu=plan.use_gpu, gpu=gpu, most_workers=most_workers)


def _memory_by_choice(config: RunConfig, shape: ModelShape, plan: Plan, gpu: Gpu | None) -> list[tuple[Choice, Memory]]:
    """Memory of a worker for every ZeRO stage and precision, at the plan's world size."""
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


def _count_data(config: RunConfig, task: Task) -> tuple[int | None, TaskState, str | None]:
    """Training samples, the task's state, and where the number is from, when it is not from prepared data."""
    store = find_prepared(config)
    if store is not None:
        return store.manifest.splits["train"].num_samples, store.manifest.task_state, None
    state = task.assumed_state()
    files = list_files(config.data.train, "data.train")
    if any(file.format != SourceFormat.PARQUET for file in files):
        return None, state, "data is not prepared, so its samples are not counted: `raytrain data prepare CONFIG`"
    rows = 0
    for file in files:
        with open_source(file) as opened:
            rows += pq.ParquetFile(opened).metadata.num_rows
    fraction = config.data.validation.fraction if config.data.validation else None
    rows = round(rows * (1 - (fraction or 0.0)))
    return rows, state, f"data is not prepared: {rows:,} samples are the rows of its files"


def _size_of(found: Preflight, hardware: Hardware, *, on_this_machine: bool) -> tuple[float, float | None]:
    """CPUs and GPUs that the run is planned for."""
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
    """Nodes that workers.max needs by its GPUs; 1 on CPUs."""
    return -(-config.workers.max // hardware.gpus_each) if hardware.gpu else 1


def _usable_bytes(plan: Plan, hardware: Hardware, world_size: int, *, on_this_machine: bool) -> int | None:
    """What the tensors of a worker can have. On this machine never more workers are than the plan's."""
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
    """What was taken for granted and what is not known, in sentences."""
    notes = [] if shape.layers is not None else [NO_ACTIVATIONS]
    if hardware.gpu is None and config.workers.gpu == "auto":
        where = " on this machine" if on_this_machine else ""
        notes.append(f"planned for CPU workers{where}; --gpu plans for GPUs")
    if hardware.gpu is None and plan.use_gpu:
        notes.append("the memory of the GPUs is not known: give --gpu to have it checked")
    if cluster_address(config) is not None and hardware.is_this_machine:
        notes.append("the cluster was not asked: room for workers.max is taken for granted; --nodes tells its size")
    elif not on_this_machine and hardware.cpus_per_node is None:
        notes.append(f"taken for granted: {plan.num_cpus:g} CPUs for the workers and Ray Data; --cpus-per-node tells")
    if config.training.zero_stage == AUTO and hardware.gpu is None and (plan.use_gpu or not on_this_machine):
        notes.append(
            "the memory of the workers is not known here: ZeRO is shown at stage 2, and they take the lowest that fits"
        )
    if config.training.zero_stage == 0 and precision is not Precision.FP32:
        notes.append(f"training.zero_stage 0 in {precision.value} is DeepSpeed's stage 1, which computes the same")
    if hardware.gpu is not None:
        gpu = hardware.gpu
        if hardware.num_nodes is None:
            notes.append(f"taken for granted: {config.workers.max} GPUs, since that is workers.max; --nodes tells")
        notes.append(
            f"{gpu.name}: {gpu.usable_bytes / GIB:.1f} GiB of {gpu.memory_bytes / GIB:.1f} are counted on; the driver, "
            "libraries and gaps have the rest"
        )
        if hardware.price_per_hour is None and gpu.price_per_hour is not None:
            notes.append(PRICES_ARE)
    return notes
