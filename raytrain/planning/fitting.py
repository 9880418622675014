"""Searches for settings that fit into the memory of a worker: ZeRO stage, precision, micro-batch size, gradient
checkpointing, offloading."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from raytrain.config import Precision, RunConfig, TrainingConfig
from raytrain.engine.deepspeed_config import effective_zero_stage, resolve_precision
from raytrain.planning.gpus import Gpu
from raytrain.sizing.memory import Memory
from raytrain.sizing.shape import ModelShape
from raytrain.sizing.zero_stage import Group, memory_at, settle
from raytrain.steps.batches import BatchPlan

CHECKPOINTING = "training.gradient_checkpointing"
OFFLOAD = "training.deepspeed.zero_optimization.offload_optimizer.device"

# Smaller micro-batches are tried before gradient checkpointing down to this fraction (1/n) of the configured size.
SMALLEST_BEFORE_CHECKPOINTING = 4


@dataclass(frozen=True)
class Choice:
    """Settings that determine the memory of a worker and change the result little or not at all."""

    zero_stage: int | Literal["auto"]
    precision: Precision
    """Not AUTO."""
    micro_batch_size: int
    min_workers: int
    offloads: bool
    checkpoints: bool = False
    """Gradient checkpointing."""
    changed: tuple[str, ...] = ()
    """Dotted options that are changed from the config."""

    @classmethod
    def of(cls, config: RunConfig, precision: Precision) -> Self:
        """The settings of the config itself."""
        training = config.training
        zero = training.deepspeed.get("zero_optimization") or {}
        offloads = (zero.get("offload_optimizer") or {}).get("device") == "cpu"
        return cls(
            training.zero_stage,
            precision,
            training.samples_per_micro_batch,
            config.workers.min,
            offloads,
            training.gradient_checkpointing,
        )

    def overrides(self) -> list[str]:
        """`key=value` words to add to the command; [] if nothing has to change."""
        values = {
            "training.zero_stage": str(self.zero_stage),
            "training.precision": self.precision.value,
            "training.micro_batch_size": str(self.micro_batch_size),
            CHECKPOINTING: "true",
            "workers.min": str(self.min_workers),
            OFFLOAD: "cpu",
        }
        return [f"{key}={values[key]}" for key in self.changed]

    def training(self, config: RunConfig) -> TrainingConfig:
        """The config's training options with these settings."""
        return config.training.model_copy(
            update={
                "zero_stage": self.zero_stage,
                "precision": self.precision,
                "micro_batch_size": self.micro_batch_size,
                "gradient_checkpointing": self.checkpoints,
                "deepspeed": _with_offload(config.training.deepspeed) if self.offloads else config.training.deepspeed,
            }
        )


def resolved_precision(precision: Precision, use_gpu: bool, gpu: Gpu | None) -> Precision:
    """The precision that the workers will use. Raises ConfigError if the GPU does not support it."""
    return resolve_precision(precision, has_gpu=use_gpu, gpu_has_bf16=gpu is None or gpu.has_bf16)


def memory_of(
    config: RunConfig,
    shape: ModelShape,
    choice: Choice,
    world_size: int,
    *,
    use_gpu: bool,
    usable_bytes: int | None = None,
) -> tuple[Memory, int]:
    """Estimate the memory of each worker at a world size. Returns it and the ZeRO stage that DeepSpeed is given.

    Args:
        usable_bytes: Memory available to a worker's tensors, from which an automatic stage is chosen; None: unknown.
    """
    training = choice.training(config)
    batches = BatchPlan(training.global_batch_size, training.num_micro_batches, world_size)
    group = Group.of(config, batches, choice.precision, use_gpu=use_gpu)
    training = settle(training, shape, group, usable_bytes)
    return memory_at(training, shape, group), effective_zero_stage(training.zero_stage, choice.precision)


def choices(config: RunConfig, world_size: int, *, use_gpu: bool, gpu: Gpu | None) -> list[Choice]:
    """The rows of the memory table: every ZeRO stage, in the config's precision and in the alternatives."""
    own = Choice.of(config, resolved_precision(config.training.precision, use_gpu, gpu))
    return [
        Choice(stage, precision, own.micro_batch_size, world_size, own.offloads, own.checkpoints)
        for precision in dict.fromkeys([*_precisions(own.precision, use_gpu, gpu), Precision.FP32])
        for stage in range(4)
        if effective_zero_stage(stage, precision) == stage and (stage or not own.offloads)
    ]


def first_that_fits(
    config: RunConfig,
    shape: ModelShape,
    usable_bytes: int,
    *,
    use_gpu: bool,
    gpu: Gpu | None,
    most_workers: float = math.inf,
) -> Choice | None:
    """The first choice that fits both with its minimum of workers, up to `most_workers`, and with workers.max.

    Choices are tried in the order of their cost: another ZeRO stage does not change the result, somewhat smaller
    micro-batches change only the dropout masks, gradient checkpointing takes a third more time, very small
    micro-batches underuse a GPU, a larger minimum of workers needs nodes, another precision changes the numbers, and
    offloading is slow.
    """
    own = Choice.of(config, resolved_precision(config.training.precision, use_gpu, gpu))
    for choice in _in_order(config, own, shape.can_checkpoint, use_gpu, gpu):
        if choice.min_workers > max(own.min_workers, most_workers):
            continue
        sizes = {choice.min_workers, min(choice.min_workers + 1, config.workers.max), config.workers.max}
        needs = (
            memory_of(config, shape, choice, size, use_gpu=use_gpu, usable_bytes=usable_bytes)[0].total
            for size in sorted(sizes)
        )
        if all(needed <= usable_bytes for needed in needs):
            return choice
    return None


def _in_order(config: RunConfig, own: Choice, can_checkpoint: bool, use_gpu: bool, gpu: Gpu | None) -> Iterator[Choice]:
    offloads = (own.offloads, True) if use_gpu and not own.offloads else (own.offloads,)
    precisions = _precisions(own.precision, use_gpu, gpu)
    workers = _doubling(config.workers.min, config.workers.max)
    stages = [own.zero_stage, *(range(own.zero_stage + 1, 4) if isinstance(own.zero_stage, int) else ())]
    pairs = _checkpointing_and_micro(own, can_checkpoint)
    for offload, precision, min_workers, (checkpoints, micro), stage in itertools.product(
        offloads, precisions, workers, pairs, stages
    ):
        if offload and stage == 0:
            continue
        changes = {
            "training.zero_stage": stage != own.zero_stage,
            "training.micro_batch_size": micro != own.micro_batch_size,
            CHECKPOINTING: checkpoints != own.checkpoints,
            "workers.min": min_workers != own.min_workers,
            "training.precision": precision is not own.precision,
            OFFLOAD: offload != own.offloads,
        }
        changed = tuple(key for key, is_changed in changes.items() if is_changed)
        yield Choice(stage, precision, micro, min_workers, offload, checkpoints, changed)


def _checkpointing_and_micro(own: Choice, can_checkpoint: bool) -> list[tuple[bool, int]]:
    """Pairs of (gradient checkpointing, micro-batch size), the cheapest change first."""
    micros = list(reversed(_doubling(1, own.micro_batch_size)))
    if own.checkpoints or not can_checkpoint:
        return [(own.checkpoints, micro) for micro in micros]
    large = [micro for micro in micros if micro * SMALLEST_BEFORE_CHECKPOINTING >= own.micro_batch_size]
    return [*((False, micro) for micro in large), *((True, micro) for micro in micros)]


def _precisions(own: Precision, use_gpu: bool, gpu: Gpu | None) -> list[Precision]:
    """The config's precision, and if that is fp32, the 16-bit precision that the workers support."""
    half = Precision.FP16 if use_gpu and gpu is not None and not gpu.has_bf16 else Precision.BF16
    return [own, half] if own is Precision.FP32 else [own]


def _doubling(low: int, high: int) -> list[int]:
    """low, 2 low, 4 low, ..., and high."""
    values = [low]
    while values[-1] * 2 < high:
        values.append(values[-1] * 2)
    return values if values[-1] == high else [*values, high]


def _with_offload(deepspeed: dict) -> dict:
    zero = deepspeed.get("zero_optimization") or {}
    offload = {**(zero.get("offload_optimizer") or {}), "device": "cpu"}
    return {**deepspeed, "zero_optimization": {**zero, "offload_optimizer": offload}}
