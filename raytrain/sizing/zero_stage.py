"""Which ZeRO stage a worker group trains with.

Every stage computes the same, and a checkpoint belongs to none (P10), so stages may differ between the attempts of a
run. Lower ones are faster where they fit: DeepSpeed works for each parameter at the higher ones.
"""

from dataclasses import dataclass

from raytrain.config import Precision, TrainingConfig
from raytrain.engine.deepspeed_config import build_deepspeed_config
from raytrain.sizing.memory import Memory, estimate_memory
from raytrain.sizing.shape import ModelShape
from raytrain.steps.batches import BatchPlan

AUTO = "auto"
# Where the workers' memory is not known. Its gradients are shared out, and its parameters are not sent twice.
UNKNOWN_MEMORY = 2
# What an estimate may be wrong by: DeepSpeed's tensors are within a tenth in the tests, activations within a fifth.
STATE_ROOM, ACTIVATIONS_ROOM = 1.1, 1.3
UNKNOWN_ROOM = 2.0  # for activations of a model whose layers are not known


@dataclass(frozen=True)
class Group:
    """What decides the memory of a worker, beside the model and its options."""

    batches: BatchPlan
    """How a step is shared out."""
    precision: Precision
    """Resolved, not AUTO."""
    max_length: int
    """Tokens of the longest sample."""
    use_gpu: bool
    """Whether each worker holds a GPU."""


def settle(training: TrainingConfig, shape: ModelShape, group: Group, usable_bytes: int | None) -> TrainingConfig:
    """The options for a worker group, with a stage instead of auto.

    auto is the lowest stage that fits, with room for what the estimate may be wrong by; else the one that needs least.
    A single worker has nothing to shard, and stage 0 computes the same without ZeRO's copies, whatever is configured;
    unless the user set options of ZeRO's own, such as offloading, or auto in 16 bits finds that stage 1 does not fit.

    Args:
        training: As configured.
        shape: The model.
        group: The workers.
        usable_bytes: What a worker's tensors can have; None: not known.
    """
    has_own_options = "zero_optimization" in training.deepspeed
    is_16_bit = group.precision is not Precision.FP32
    if group.batches.world_size == 1 and not has_own_options and not (is_16_bit and training.zero_stage == AUTO):
        return _at(training, 0)
    if training.zero_stage != AUTO:
        return training
    # ZeRO's own options mean nothing at stage 0; in 16 bits stage 0 would become 1 anyway, which keeps more than 2.
    lowest = 1 if has_own_options or is_16_bit else 0
    if usable_bytes is None:
        return _at(training, UNKNOWN_MEMORY)
    estimates = {stage: memory_at(_at(training, stage), shape, group) for stage in range(lowest, 4)}
    for stage, memory in estimates.items():
        if _with_room(memory) <= usable_bytes:
            return _at(training, stage)
    return _at(training, min(estimates, key=lambda stage: estimates[stage].total))


def memory_at(training: TrainingConfig, shape: ModelShape, group: Group) -> Memory:
    """Memory of each worker of a group. `training`: with a stage, not auto."""
    batches = group.batches
    deepspeed = build_deepspeed_config(
        training, precision=group.precision, num_micro_steps=batches.micro_steps, on_gpu=group.use_gpu
    )
    return estimate_memory(
        shape,
        deepspeed,
        precision=group.precision,
        world_size=batches.world_size,
        micro_batch_size=-(-batches.max_samples_per_worker // batches.micro_steps),
        max_length=group.max_length,
        use_gpu=group.use_gpu,
        checkpoints=training.gradient_checkpointing,
    )


def _at(training: TrainingConfig, stage: int) -> TrainingConfig:
    return training.model_copy(update={"zero_stage": stage})


def _with_room(memory: Memory) -> float:
    if memory.activations is None:
        return memory.total * UNKNOWN_ROOM
    return (memory.state + memory.buffers) * STATE_ROOM + memory.activations * ACTIVATIONS_ROOM
