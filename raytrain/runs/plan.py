"""The plan of a run: what will happen at each world size, computed before anything starts. No Ray, no torch.

It also decides whether the run fits. Workers reserve their CPUs for their whole life, and Ray Data needs some that are
not reserved; otherwise it waits indefinitely without an error.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from raytrain.checkpoint.sizes import SNAPSHOT_COPIES, SNAPSHOTS_KEPT, checkpoint_bytes
from raytrain.config import RunConfig
from raytrain.errors import ConfigError, counted
from raytrain.models.rank_schedule import rank_schedule
from raytrain.steps.batches import BatchPlan
from raytrain.steps.timetable import make_timetable

# A note names at most this many world sizes; plan.json has all of them.
MAX_NAMED_SIZES = 8


@dataclass(frozen=True)
class WorldPlan:
    """How a step is executed at one world size."""

    world_size: int
    min_samples_per_worker: int
    """Samples of a full step on the worker that has the fewest."""
    max_samples_per_worker: int
    micro_steps: int
    """Forward/backward passes per step on each worker."""
    cpus: float
    """CPUs that the workers and their Ray Data pipelines hold."""
    fits: bool
    """Whether the inspected Ray has room for it now."""


@dataclass(frozen=True)
class Plan:
    """What a run will do; the contents of plan.json."""

    name: str
    num_cpus: float
    """Logical CPUs of the inspected Ray."""
    num_gpus: float | None
    """GPUs of the inspected Ray; None: not known."""
    use_gpu: bool
    """Whether each worker holds a GPU."""
    micro_batches: int
    """Micro-batches of a step, over all workers."""
    global_batch_size: int
    worlds: list[WorldPlan]
    """One entry per world size in [workers.min, workers.max]."""
    steps_per_epoch: int | None = None
    """None when the data has not been prepared yet."""
    total_steps: int | None = None
    checkpoint_bytes: int | None = None
    """Size of one checkpoint; None when the model has not been inspected."""
    checkpoints_kept: int = 0
    snapshot_bytes: int | None = None
    """Memory that the snapshots take on all nodes together; None when they are off or the model's size is not known."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user; none of them keeps the run from starting."""

    @property
    def world_size(self) -> int:
        """Workers that the run starts with: the most that fit now, or workers.min when it has to wait for nodes."""
        return max((world.world_size for world in self.worlds if world.fits), default=self.worlds[0].world_size)

    def world(self, world_size: int) -> WorldPlan:
        """The plan at a world size in [workers.min, workers.max]."""
        return self.worlds[world_size - self.worlds[0].world_size]

    def to_json(self) -> dict[str, Any]:
        """The contents of plan.json."""
        return {**asdict(self), "world_size": self.world_size}


def make_plan(
    config: RunConfig,
    *,
    num_cpus: float,
    num_gpus: float | None,
    num_samples: int | None = None,
    num_trained: int | None = None,
    can_grow: bool = False,
    whose: str = "this Ray",
) -> Plan:
    """Plan a run on a Ray of this size.

    Args:
        num_cpus: Logical CPUs of the Ray; for a private one, what `logical_cpus` says.
        num_gpus: GPUs of the Ray; None before it is known: GPUs are not checked then.
        num_samples: Training samples, if they have been counted.
        num_trained: Parameters that are trained, if the model has been inspected.
        can_grow: Whether nodes may join this Ray; the run then waits for them instead of being refused.
        whose: The owner of these CPUs and GPUs, for messages.

    Raises:
        ConfigError: The run can't work: no room for workers.min with CPU left for Ray Data, no GPUs, or no step in an
        epoch.
    """
    use_gpu = _use_gpu(config, num_gpus, can_grow, whose)
    workers = config.workers
    worlds = [_world_plan(config, size, num_cpus, num_gpus, use_gpu) for size in range(workers.min, workers.max + 1)]
    if not worlds[0].fits and not can_grow:
        raise ConfigError(_no_room(config, num_cpus, num_gpus, use_gpu, whose))
    if num_samples is None:
        num_samples = config.data.fixed_epoch_samples  # the steps are known then, whatever the data has
    steps_per_epoch = None if num_samples is None else _steps_per_epoch(config, num_samples)
    bytes_saved = None if num_trained is None else checkpoint_bytes(num_trained, config)
    snapshot_bytes = None
    if bytes_saved is not None and config.checkpoint.snapshot_every_steps is not None:
        snapshot_bytes = SNAPSHOTS_KEPT * SNAPSHOT_COPIES * bytes_saved
    total_steps = config.training.max_steps
    if total_steps is None and num_samples is not None:
        total_steps = make_timetable(config, num_samples, has_validation=False).total_steps
    if total_steps is not None:
        rank_schedule(config, total_steps)  # refuses a run that is too short for it
    return Plan(
        name=config.name,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        use_gpu=use_gpu,
        micro_batches=config.training.num_micro_batches,
        global_batch_size=config.training.global_batch_size,
        worlds=worlds,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        checkpoint_bytes=bytes_saved,
        checkpoints_kept=config.checkpoint.keep_last,
        snapshot_bytes=snapshot_bytes,
        notes=_notes(config, worlds, num_samples, total_steps, use_gpu),
    )


def logical_cpus(config: RunConfig, machine_cores: int) -> int:
    """CPUs to give a private Ray on this machine: its cores, plus what Ray Data needs beside the workers.

    Logical CPUs only count reservations. `ray.num_cpus` is taken as it is: setting it allows oversubscription of the
    cores.

    Raises:
        ConfigError: The machine has fewer cores than workers.min workers reserve.
    """
    if config.ray.num_cpus is not None:
        return config.ray.num_cpus
    workers = config.workers
    if workers.min * workers.cpus > machine_cores:
        raise ConfigError(
            f"workers.min {workers.min} x workers.cpus {workers.cpus} = {workers.min * workers.cpus} CPUs, and this "
            f"machine has {machine_cores}: lower workers.min or workers.cpus, set ray.address to a larger cluster, or "
            f"set ray.num_cpus to at least {math.ceil(cpus_needed(config, workers.min))} to let workers share cores "
            "(they will be slow)"
        )
    world_size = min(workers.max, machine_cores // workers.cpus)
    return machine_cores + math.ceil(_data_cpus(config, world_size))


def cpus_needed(config: RunConfig, world_size: int) -> float:
    """CPUs that a worker group reserves: the workers' own, and at least one for Ray Data, which also prepares the
    data."""
    return world_size * config.workers.cpus + _data_cpus(config, world_size)


def _data_cpus(config: RunConfig, world_size: int) -> float:
    return max(1.0, world_size * config.workers.data_cpus)


def _use_gpu(config: RunConfig, num_gpus: float | None, can_grow: bool, whose: str) -> bool:
    """Whether each worker reserves a GPU. Raises ConfigError when GPUs are requested and there are none."""
    if config.workers.gpu == "auto":
        return num_gpus is not None and num_gpus >= 1
    if config.workers.gpu and num_gpus is not None and num_gpus < 1 and not can_grow:
        raise ConfigError(
            f"workers.gpu is true, and {whose} has no GPU: set workers.gpu to auto or false to train on CPUs, or set "
            "ray.address to a cluster with GPUs"
        )
    return config.workers.gpu


def _world_plan(
    config: RunConfig, world_size: int, num_cpus: float, num_gpus: float | None, use_gpu: bool
) -> WorldPlan:
    plan = BatchPlan.of(config, world_size)
    cpus = cpus_needed(config, world_size)
    return WorldPlan(
        world_size=world_size,
        min_samples_per_worker=plan.min_samples_per_worker,
        max_samples_per_worker=plan.max_samples_per_worker,
        micro_steps=plan.micro_steps,
        cpus=cpus,
        fits=cpus <= num_cpus and (not use_gpu or num_gpus is None or world_size <= num_gpus),
    )


def _no_room(config: RunConfig, num_cpus: float, num_gpus: float | None, use_gpu: bool, whose: str) -> str:
    """The message for when not even workers.min fits: the numbers, and what to change."""
    workers = config.workers
    is_planned = whose != "this Ray"
    more_nodes = "plan with more --nodes, --gpus-per-node or --cpus-per-node" if is_planned else "add nodes"
    if use_gpu and num_gpus is not None and workers.min > num_gpus:
        return (
            f"workers.min {workers.min} needs {workers.min} GPUs, and {whose} has {num_gpus:g}: lower workers.min, "
            f"{more_nodes}, or set workers.gpu to false"
        )
    needed = cpus_needed(config, workers.min)
    held = workers.min * workers.cpus
    return (
        f"no room for workers.min {workers.min}: {held} CPUs for the workers (workers.cpus {workers.cpus} each) and "
        f"{needed - held:g} for Ray Data (workers.data_cpus {workers.data_cpus:g} each, at least 1) make {needed:g}, "
        f"and {whose} has {num_cpus:g}, so Ray Data would wait indefinitely. Lower workers.min or workers.cpus, "
        + (
            f"or {more_nodes}"
            if is_planned
            else f"raise ray.num_cpus to at least {math.ceil(needed)} (a private Ray), or add nodes (a cluster)"
        )
    )


def _steps_per_epoch(config: RunConfig, num_samples: int) -> int:
    """Steps per epoch, including the smaller last one. Raises ConfigError when there is none."""
    batch = config.training.global_batch_size
    steps = make_timetable(config, num_samples, has_validation=False).steps_per_epoch
    if steps == 0:
        if num_samples == 0:
            raise ConfigError("data.train has no usable sample")
        size = config.data.samples_per_epoch(num_samples)
        raise ConfigError(
            f"an epoch of {counted(size, 'sample')} has no step: training.global_batch_size is {batch} and "
            "data.drop_last leaves out the smaller last step; lower "
            "training.global_batch_size, or set data.drop_last to false"
        )
    return steps


def _notes(
    config: RunConfig, worlds: list[WorldPlan], num_samples: int | None, total_steps: int | None, use_gpu: bool
) -> list[str]:
    notes = []
    warmup = config.training.schedule.warmup_steps
    if warmup is not None and total_steps is not None and warmup >= total_steps:
        notes.append(
            f"training.schedule.warmup_steps {warmup} is not less than the {total_steps} steps of the run: the "
            "learning rate never reaches its peak"
        )
    too_large = [world for world in worlds if not world.fits]
    if len(too_large) == len(worlds):
        notes.append(f"not even workers.min {config.workers.min} fits now ({_needs(worlds[0], use_gpu)}); it waits")
    elif too_large:
        notes.append(
            f"workers.max {config.workers.max} does not fit now ({_needs(too_large[-1], use_gpu)}); the run starts "
            f"with {too_large[0].world_size - 1}"
        )
    batch = config.training.global_batch_size
    size = None if num_samples is None else config.data.samples_per_epoch(num_samples)
    if size is not None and size < batch:
        notes.append(f"fewer samples ({size}) than training.global_batch_size {batch}: one step an epoch")
    num = config.training.num_micro_batches
    uneven = [world for world in worlds if num % world.world_size and world.fits]
    if uneven:
        sizes = ", ".join(str(world.world_size) for world in uneven[:MAX_NAMED_SIZES])
        more = ", ..." if len(uneven) > MAX_NAMED_SIZES else ""
        notes.append(f"at {sizes}{more} workers a step can't be split evenly: still exact, but some workers wait")
    return notes


def _needs(world: WorldPlan, use_gpu: bool) -> str:
    return f"it needs {world.cpus:g} CPUs" + (f" and {world.world_size} GPUs" if use_gpu else "")
