"""Chooses the ZeRO stage of a worker group.

All stages compute the same, and checkpoints are independent of the stage (P10), so it may differ between the attempts
of a run. Lower stages are faster if they fit: higher ones have an overhead per parameter.
"""

from dataclasses import dataclass, replace
from typing import Self

from raytrain.config import Exactness, PairsConfig, Precision, RunConfig, TrainingConfig
from raytrain.engine.deepspeed_config import build_deepspeed_config
from raytrain.sizing.memory import Memory, estimate_memory, logits_bytes
from raytrain.sizing.shape import ModelShape
from raytrain.steps.batches import BatchPlan

AUTO = "auto"
# Used if the memory of the workers is unknown: it partitions gradients, and does not gather parameters twice.
UNKNOWN_MEMORY = 2
# Safety factors of the estimates: in the tests the state is within 10 %, activations within 20 %.
STATE_MARGIN, ACTIVATIONS_MARGIN = 1.1, 1.3
UNKNOWN_MARGIN = 2.0  # of the state, if the activations are unknown


@dataclass(frozen=True)
class Group:
    """The worker group, as far as it determines the memory of a worker."""

    batches: BatchPlan
    """How a step is divided among the workers."""
    precision: Precision
    """A resolved precision, not AUTO."""
    max_length: int
    """Tokens of the longest sample."""
    use_gpu: bool
    """Whether each worker has a GPU."""
    is_of_pairs: bool = False
    """Whether a sample is two sequences, whose tokens' log-probabilities are all kept."""

    @classmethod
    def of(cls, config: RunConfig, batches: BatchPlan, precision: Precision, *, use_gpu: bool) -> Self:
        """The group of a run."""
        return cls(batches, precision, config.data.max_length, use_gpu, isinstance(config.task, PairsConfig))

    @property
    def sequences(self) -> int:
        """Sequences per forward and backward pass."""
        return self.batches.samples_per_micro_batch * (2 if self.is_of_pairs else 1)


def settle(training: TrainingConfig, shape: ModelShape, group: Group, usable_bytes: int | None) -> TrainingConfig:
    """The training options of a worker group, with its ZeRO stage in place of auto.

    auto becomes the lowest stage that fits with a safety margin, or else the stage that needs the least memory. A
    single worker has nothing to partition: whatever is configured, it gets stage 0, which computes the same without
    ZeRO's copies. The exceptions are configs with options of ZeRO itself, such as offloading, and auto in 16 bits if
    stage 1 does not fit.

    Args:
        training: The configured options.
        shape: The model.
        group: The workers.
        usable_bytes: Memory available to a worker's tensors; None: unknown.
    """
    has_own_options = "zero_optimization" in training.deepspeed
    is_16_bit = group.precision is not Precision.FP32
    if group.batches.world_size == 1 and not has_own_options and not (is_16_bit and training.zero_stage == AUTO):
        return _at(training, 0)
    if training.zero_stage != AUTO:
        return training
    # Options of ZeRO have no effect at stage 0. In 16 bits stage 0 becomes 1 anyway, which needs more than 2.
    lowest = 1 if has_own_options or is_16_bit else 0
    if usable_bytes is None:
        return _at(training, UNKNOWN_MEMORY)
    estimates = {stage: memory_at(_at(training, stage), shape, group) for stage in range(lowest, 4)}
    for stage, memory in estimates.items():
        if _with_margin(memory) <= usable_bytes:
            return _at(training, stage)
    return _at(training, min(estimates, key=lambda stage: estimates[stage].total))


def memory_at(training: TrainingConfig, shape: ModelShape, group: Group) -> Memory:
    """Memory of each worker of a group. `training`: options with a stage that is not auto."""
    batches = group.batches
    deepspeed = build_deepspeed_config(
        training,
        precision=group.precision,
        num_micro_steps=batches.micro_steps,
        can_overlap=group.use_gpu and batches.world_size > 1,
    )
    memory = estimate_memory(
        shape,
        deepspeed,
        precision=group.precision,
        world_size=batches.world_size,
        micro_batch_size=group.sequences,
        max_length=group.max_length,
        use_gpu=group.use_gpu,
        checkpoints=training.gradient_checkpointing,
    )
    if memory.activations is not None:
        logits = _logits(training, deepspeed["zero_optimization"]["stage"], shape, group)
        memory = replace(memory, activations=memory.activations + logits)
    if averages := shape.averages + (training.ema_decay is not None):  # they lie where the masters are
        average = 4 * averages * -(-sum(shape.trained) // batches.world_size)
        name = "host" if memory.host else "moments"
        memory = replace(memory, **{name: getattr(memory, name) + average})
    if training.exactness is not Exactness.BITWISE:
        return memory
    stage = deepspeed["zero_optimization"]["stage"]
    return replace(memory, gradients=memory.gradients + _exact_sums(training, stage, shape, group))


def _logits(training: TrainingConfig, stage: int, shape: ModelShape, group: Group) -> int:
    """Bytes of logits. What excludes parts is in models/token_losses.py (`_can_be_chunked`); pairs need each token's
    loss and not the sum alone."""
    in_parts = (
        shape.head_is_last
        and stage < 3
        and not group.is_of_pairs
        and group.precision is not Precision.FP16
        and training.exactness is not Exactness.BITWISE
    )
    return logits_bytes(shape, group.sequences * group.max_length, group.precision, in_parts=in_parts)


def _exact_sums(training: TrainingConfig, stage: int, shape: ModelShape, group: Group) -> int:
    """Bytes of the int64 sums of engine/bitwise.py; at stage 2 also of the gradients that wait for being added, and at
    stage 3 of the largest bucket."""
    trained = sum(shape.trained)
    if stage == 3:
        bucket = min(training.communication.bucket_elements, trained)
        return 8 * (-(-trained // group.batches.world_size) + max(bucket, *shape.trained))
    width = 4 if group.precision is Precision.FP32 else 2
    return 8 * trained + (width * trained if stage == 2 else 0)


def _at(training: TrainingConfig, stage: int) -> TrainingConfig:
    return training.model_copy(update={"zero_stage": stage})


def _with_margin(memory: Memory) -> float:
    if memory.activations is None:
        return memory.total * UNKNOWN_MARGIN
    return (memory.state + memory.buffers) * STATE_MARGIN + memory.activations * ACTIVATIONS_MARGIN
