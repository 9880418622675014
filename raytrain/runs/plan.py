"""The plan of a run: what will happen at each world size, before anything happens. No Ray, no torch.

It answers whether the run fits: workers hold CPUs for good, and Ray Data needs some that they don't hold, or it waits
for ever without an error.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from raytrain.checkpoint.sizes import CHECKPOINT_BYTES_PER_PARAMETER, SNAPSHOT_COPIES, SNAPSHOTS_KEPT
from raytrain.config import RunConfig
from raytrain.errors import ConfigError
from raytrain.steps.batches import BatchPlan
from raytrain.steps.timetable import make_timetable

# World sizes that a note names; plan.json has them all.
MAX_NAMED_SIZES = 8


@dataclass(frozen=True)
class WorldPlan:
    """How a step is done at one world size."""

    world_size: int
    min_samples_per_worker: int
    """Samples of a full step on the worker that has fewest."""
    max_samples_per_worker: int
    micro_steps: int
    """Forward/backward passes of a step on each worker."""
    cpus: float
    """CPUs that the workers and their Ray Data pipelines hold."""
    fits: bool
    """Whether the Ray that was looked at has room for it now."""


@dataclass(frozen=True)
class Plan:
    """What a run will do; the contents of plan.json."""

    name: str
    num_cpus: float
    """Logical CPUs of the Ray that was looked at."""
    num_gpus: float | None
    """GPUs of it; None: not known."""
    use_gpu: bool
    """Whether each worker holds a GPU."""
    canonical_shards: int
    global_batch_size: int
    worlds: list[WorldPlan]
    """One entry a world size in [workers.min, workers.max]."""
    steps_per_epoch: int | None = None
    """None when the data has not been counted yet."""
    total_steps: int | None = None
    checkpoint_bytes: int | None = None
    """Size of one checkpoint; None when the model has not been looked at."""
    checkpoints_kept: int = 0
    snapshot_bytes: int | None = None
    """What the snapshots take in the memory of all nodes together; None when they are off or the model's size is not
    known."""
    notes: list[str] = field(default_factory=list)
    """What the user may want to know; none of it keeps the run from starting."""

    @property
    def world_size(self) -> int:
        """Workers that the run starts with: the most that fit now, or the fewest when it has to wait for nodes."""
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
        num_samples: Training samples, when they have been prepared.
        num_trained: Parameters that are trained, when the model has been looked at.
        can_grow: Whether nodes may join that Ray: the run then waits for them instead of being refused.
        whose: What has these CPUs and GPUs, for messages.

    Raises:
        ConfigError: It can't run: no room for workers.min with CPU left for Ray Data, no GPUs, or no step in an epoch.
    """
    use_gpu = _use_gpu(config, num_gpus, can_grow, whose)
    workers = config.workers
    worlds = [_world_plan(config, size, num_cpus, num_gpus, use_gpu) for size in range(workers.min, workers.max + 1)]
    if not worlds[0].fits and not can_grow:
        raise ConfigError(_no_room(config, num_cpus, num_gpus, use_gpu, whose))
    steps_per_epoch = None if num_samples is None else _steps_per_epoch(config, num_samples)
    checkpoint_bytes = None if num_trained is None else CHECKPOINT_BYTES_PER_PARAMETER * num_trained
    snapshot_bytes = None
    if checkpoint_bytes is not None and config.checkpoint.snapshot_every_steps is not None:
        snapshot_bytes = SNAPSHOTS_KEPT * SNAPSHOT_COPIES * checkpoint_bytes
    total_steps = config.training.max_steps
    if total_steps is None and num_samples is not None:
        total_steps = make_timetable(config, num_samples, has_validation=False).total_steps
    return Plan(
        name=config.name,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        use_gpu=use_gpu,
        canonical_shards=config.canonical_shards,
        global_batch_size=config.training.global_batch_size,
        worlds=worlds,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        checkpoint_bytes=checkpoint_bytes,
        checkpoints_kept=config.checkpoint.keep_last,
        snapshot_bytes=snapshot_bytes,
        notes=_notes(config, worlds, num_samples, total_steps, use_gpu),
    )


def logical_cpus(config: RunConfig, machine_cores: int) -> int:
    """CPUs to give a private Ray on this machine: its cores, and on top what Ray Data needs beside the workers.

    Logical CPUs only count reservations. `ray.num_cpus` is taken as it is: who sets it may oversubscribe the cores.

    Raises:
        ConfigError: workers.min workers have not a core each for their CPUs.
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
    """CPUs that a worker group holds: the workers' own, and at least one for Ray Data, which also prepares."""
    return world_size * config.workers.cpus + _data_cpus(config, world_size)


def _data_cpus(config: RunConfig, world_size: int) -> float:
    return max(1.0, world_size * config.workers.data_cpus)


def _use_gpu(config: RunConfig, num_gpus: float | None, can_grow: bool, whose: str) -> bool:
    """Whether workers hold GPUs. Raises ConfigError when they are asked for and there are none."""
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
    """Why not even workers.min fits, in numbers, and what to change."""
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
        f"and {whose} has {num_cpus:g}, so Ray Data would wait for ever. Lower workers.min or workers.cpus, "
        + (
            f"or {more_nodes}"
            if is_planned
            else f"raise ray.num_cpus to at least {math.ceil(needed)} (a private Ray), or add nodes (a cluster)"
        )
    )


def _steps_per_epoch(config: RunConfig, num_samples: int) -> int:
    """Steps of an epoch, the smaller last one included. Raises ConfigError when there is none."""
    batch = config.training.global_batch_size
    steps = make_timetable(config, num_samples, has_validation=False).steps_per_epoch
    if steps == 0:
        if num_samples == 0:
            raise ConfigError("data.train has no sample that can be used")
        raise ConfigError(
            f"an epoch of {num_samples} samples has no step: training.global_batch_size is {batch} and data.drop_last "
            "leaves out the smaller last step; lower training.global_batch_size, or set data.drop_last to false"
        )
    return steps


def _notes(
    config: RunConfig, worlds: list[WorldPlan], num_samples: int | None, total_steps: int | None, use_gpu: bool
) -> list[str]:
    notes = []
    warmup = config.training.schedule.warmup_steps
    if warmup is not None and total_steps is not None and warmup >= total_steps:
        notes.append(
            f"training.schedule.warmup_steps {warmup} is no less than the {total_steps} steps of the run: the learning "
            "rate never comes to its peak"
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
    if num_samples is not None and num_samples < batch:
        notes.append(f"fewer samples ({num_samples}) than training.global_batch_size {batch}: one step an epoch")
    uneven = [world for world in worlds if world.min_samples_per_worker != world.max_samples_per_worker and world.fits]
    if uneven:
        sizes = ", ".join(str(world.world_size) for world in uneven[:MAX_NAMED_SIZES])
        more = ", ..." if len(uneven) > MAX_NAMED_SIZES else ""
        notes.append(f"at {sizes}{more} workers a step is not shared out evenly: exact all the same, but some wait")
    return notes


def _needs(world: WorldPlan, use_gpu: bool) -> str:
    return f"it needs {world.cpus:g} CPUs" + (f" and {world.world_size} GPUs" if use_gpu else "")
