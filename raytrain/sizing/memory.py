"""Estimates the memory of one worker's tensors by ZeRO stage, precision and world size. Pure arithmetic: no Ray, no
torch.

Weights, masters, moments and gradients follow what DeepSpeed allocates; the tests compare them with real engines.
Activations are an estimate and are reported separately. They follow Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models" (2022, arXiv:2205.05198, equation 1), in bytes per layer:

    s b h (34 + 5 a s / h)      s: seq_len, b: micro-batch, h: hidden size, a: heads

The formula is generalized to other widths than 16 bits and other feed-forward networks, and leaves out the term of the
attention scores (5 a s / h) for fused kernels, which do not keep them. With gradient checkpointing each layer keeps its
input (s b h elements), and one layer at a time keeps everything. Real models differ from it by some 20 %.
"""

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from raytrain.config import Precision
from raytrain.sizing.shape import Layers, ModelShape

# DeepSpeed's defaults, in elements (0.19: runtime/zero/config.py).
REDUCE_BUCKET = 500_000_000
MAX_REUSE_DISTANCE = 1_000_000_000
PREFETCH_BUCKET = 50_000_000
PERSISTENCE_THRESHOLD = 100_000
# Only these ranks are searched for the largest partition: the embedding comes first.
MAX_RANKS = 64


@dataclass(frozen=True)
class Memory:
    """Peak memory of one worker during a step, in bytes."""

    weights: int
    """Weights in the precision of forward and backward."""
    master: int
    """The fp32 copies of the weights that the optimizer updates."""
    moments: int
    """The two moments of AdamW, and with `training.ema_decay` the average of the weights, in fp32."""
    gradients: int
    """Gradients that are allocated at the end of the last backward pass."""
    buffers: int
    """Temporary tensors: reduction buckets, gathered parameters of ZeRO-3, gradients before they are partitioned."""
    activations: int | None
    """An estimate, to which `memory_at` adds the logits of a language model; None: the layers of the model are
    unknown."""
    host: int = 0
    """Host memory of an offloaded optimizer; not included in the other fields."""

    @property
    def state(self) -> int:
        """Memory that stays allocated between steps, and the gradients."""
        return self.weights + self.master + self.moments + self.gradients

    @property
    def total(self) -> int:
        """Peak memory on the worker's device; without activations if these are unknown."""
        return self.state + self.buffers + (self.activations or 0)

    @property
    def is_lower_bound(self) -> bool:
        """Whether a part of `total` is unknown and missing from it."""
        return self.activations is None

    def fits_in(self, usable_bytes: int | None) -> bool | None:
        """Whether it fits into the memory available to a worker's tensors; None: unknown."""
        if usable_bytes is None:
            return None
        if self.total > usable_bytes:
            return False
        return None if self.is_lower_bound else True

    def to_json(self) -> dict[str, Any]:
        """Each part and the total in bytes, and whether the total is a lower bound."""
        return {**asdict(self), "total": self.total, "is_lower_bound": self.is_lower_bound}


def estimate_memory(
    shape: ModelShape,
    deepspeed: dict[str, Any],
    *,
    precision: Precision,
    world_size: int,
    micro_batch_size: int,
    max_length: int,
    use_gpu: bool,
    checkpoints: bool = False,
) -> Memory:
    """Estimate the memory of a worker.

    Args:
        shape: The model.
        deepspeed: DeepSpeed's configuration, from `build_deepspeed_config`.
        precision: A resolved precision, not AUTO.
        world_size: Number of workers.
        micro_batch_size: Sequences per forward and backward pass.
        max_length: Tokens of the longest sequence. Not used for images.
        use_gpu: Whether the worker has a GPU; without one, offloading has no effect.
        checkpoints: Whether gradient checkpointing is enabled.
    """
    zero = deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    setup = _Setup(
        shape,
        zero,
        precision,
        world_size,
        accumulates=deepspeed["gradient_accumulation_steps"] > 1,
        offloads=use_gpu and stage > 0 and (zero.get("offload_optimizer") or {}).get("device") == "cpu",
    )
    state = {0: _without_zero, 1: _stage_1, 2: _stage_2, 3: _stage_3}[stage](setup)
    host = 0
    if setup.offloads:
        moved = ("master", "moments", "gradients")
        host = sum(state[part] for part in moved)
        state.update({**dict.fromkeys(moved, 0), "gradients": _left_on_the_device(setup, stage)})
    activations = None
    if shape.layers is not None:
        activations = activation_bytes(
            shape.layers,
            micro_batch_size,
            shape.layers.patches or max_length,
            precision,
            use_gpu=use_gpu,
            checkpoints=checkpoints,
        )
    return Memory(**state, activations=activations, host=host)


def activation_bytes(
    layers: Layers,
    micro_batch_size: int,
    seq_len: int,
    precision: Precision,
    *,
    use_gpu: bool,
    checkpoints: bool = False,
) -> int:
    """Bytes that the forward pass keeps for the backward pass, over all layers; see the top of this file. With
    `checkpoints`: the peak during the backward pass."""
    width = 4 if precision is Precision.FP32 else 2
    # Multiples of s b h elements: the inputs of linear layers and norms, Q, K, V and the output of the attention, and
    # the input and output of the feed-forward network's activation, or of its gate and RMSNorm in Llama-like models.
    inner = layers.intermediate / layers.hidden
    elements = 10 + 4 * inner if layers.is_gated else 8 + 2 * inner
    has_cpu_dropout = layers.has_dropout and not use_gpu
    mask = width if has_cpu_dropout else 1  # on CPUs, dropout masks are floats
    scores = 2 * width + mask if layers.stores_scores else 0
    if has_cpu_dropout and not layers.stores_scores:
        scores = 3 * 4  # on CPUs torch's fused attention has no dropout: with it, the unfused one runs in fp32
    per_token = layers.hidden * (width * elements + 2 * mask) + layers.heads * seq_len * scores
    tokens = micro_batch_size * seq_len
    if checkpoints:
        return round(tokens * (layers.count * layers.hidden * width + per_token))
    return round(layers.count * tokens * per_token)


def logits_bytes(shape: ModelShape, num_tokens: int, precision: Precision, *, in_parts: bool) -> int:
    """Bytes of a language model's logits and of their gradient; 0 without a language model's head.

    Args:
        num_tokens: Tokens of a micro-batch; each may be a target.
        in_parts: Whether many logits are computed a part at a time (models/token_losses.py). A micro-batch with just
            fewer targets than that takes is computed whole. Beside a part there are the gradient of the head in fp32,
            that of the part, and the one that is handed on.
    """
    from raytrain.models.token_losses import HEAD_ELEMENTS, LARGE_ELEMENTS

    width = 4 if precision is Precision.FP32 else 2
    elements = shape.vocabulary * num_tokens
    if not in_parts or elements <= LARGE_ELEMENTS:
        return 2 * width * elements
    return max(2 * width * LARGE_ELEMENTS, 2 * width * HEAD_ELEMENTS + (4 + width) * shape.head_trained)


@dataclass(frozen=True)
class _Setup:
    """The inputs of the formulas below."""

    shape: ModelShape
    zero: dict[str, Any]
    precision: Precision
    world_size: int
    accumulates: bool
    """Whether a step has several micro-batches."""
    offloads: bool

    @property
    def is_16_bit(self) -> bool:
        return self.precision is not Precision.FP32

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.is_16_bit else 4

    @property
    def trained(self) -> int:
        return sum(self.shape.trained)

    @property
    def partition(self) -> int:
        """Trained elements in the partition of one worker; padding is ignored, since it is far below a percent."""
        return -(-self.trained // self.world_size)

    @property
    def largest(self) -> int:
        return max(self.shape.trained, default=0)

    @property
    def bucket(self) -> int:
        """Elements of a reduction bucket."""
        return self.zero.get("reduce_bucket_size", REDUCE_BUCKET)


def _without_zero(setup: _Setup) -> dict[str, int]:
    """Without ZeRO, in fp32: the all-reduce flattens all gradients into one buffer and returns another. A worker alone
    reduces nothing."""
    trained = setup.trained
    buffers = 4 * setup.largest if setup.world_size == 1 else 4 * trained
    return _parts(4 * setup.shape.num_parameters, 0, 8 * trained, 4 * trained, buffers)


def _stage_1(setup: _Setup) -> dict[str, int]:
    """The optimizer state is partitioned. All gradients stay allocated until the last micro-batch has been reduced."""
    weights, trained, partition = setup.width * setup.shape.num_parameters, setup.trained, setup.partition
    if setup.precision is Precision.BF16 and not setup.offloads:
        # DeepSpeed's BF16_Optimizer keeps all gradients in fp32 permanently, besides those in 16 bits. The reduction
        # copies the fp32 gradients, and converts that copy to 16 bits. A worker alone reduces nothing.
        in_update = _in_update(setup)
        buffers = in_update if setup.world_size == 1 else max(6 * trained, in_update)
        return _parts(weights, 4 * partition, 8 * partition, 6 * trained, buffers)
    gradients = _partitioned_gradients(setup)
    in_backward = 4 * trained + 4 * setup.bucket
    if setup.is_16_bit:
        in_backward += 2 * trained
        # A gradient larger than the bucket stays on the workers that do not own it until the next forward pass.
        left = 4 * setup.largest if setup.largest > setup.bucket else 0
        gradients, in_backward = gradients + left, in_backward - left
    return _parts(weights, 4 * partition, 8 * partition, gradients, max(in_backward, _in_update(setup)))


def _stage_2(setup: _Setup) -> dict[str, int]:
    """Gradients are partitioned as soon as they are computed."""
    weights, partition, largest = setup.width * setup.shape.num_parameters, setup.partition, setup.largest
    gradients = _partitioned_gradients(setup)
    buckets = 2 if setup.zero.get("overlap_comm") else 1
    in_backward = setup.width * (largest + buckets * setup.bucket)
    if setup.is_16_bit:
        in_backward += 4 * largest  # reduced in 16 bits, accumulated in 32 bits
    elif setup.accumulates:
        in_backward += gradients  # of one micro-batch, before they are accumulated
    return _parts(weights, 4 * partition, 8 * partition, gradients, max(in_backward, _in_update(setup)))


def _stage_3(setup: _Setup) -> dict[str, int]:
    """Weights are partitioned too, except for small ones, and are gathered for the computation, up to a limit."""
    zero, shape, partition, width = setup.zero, setup.shape, setup.partition, setup.width
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)
    small = sum(size for size in (*shape.trained, *shape.frozen) if size <= threshold)
    # A parameter stays gathered if it is used again within the reuse distance, so a small model stays gathered whole.
    prefetch = zero.get("stage3_prefetch_bucket_size", PREFETCH_BUCKET)
    kept = zero.get("stage3_max_reuse_distance", MAX_REUSE_DISTANCE) + prefetch
    gathered = max(setup.largest, min(shape.num_parameters - small, kept))
    weights = width * (-(-shape.num_parameters // setup.world_size) + small)
    bucket = width * setup.bucket  # allocated permanently
    # The largest gradient and its copy for the reduction, and a padded copy if it can't be divided evenly.
    copies = 2 if setup.largest % setup.world_size == 0 else 3
    # Parameters are gathered together into one buffer and then copied out of it.
    in_backward = width * (gathered + min(gathered, prefetch) + copies * setup.largest)
    flags = partition if setup.precision is Precision.FP16 else 0  # for the overflow check
    in_update = 0 if setup.offloads else 4 * partition + flags
    return _parts(weights, 4 * partition, 8 * partition, 4 * partition, bucket + max(in_backward, in_update))


def _partitioned_gradients(setup: _Setup) -> int:
    """Bytes of the gradients in a worker's partition. In fp32 DeepSpeed keeps gradients that lie only partly in it
    whole."""
    partition = setup.partition
    if setup.is_16_bit:
        return 4 * partition
    stops = list(accumulate(setup.shape.trained))
    starts = [0, *stops[:-1]]
    held = [
        sum(
            stop - start
            for start, stop in zip(starts, stops, strict=True)
            if start < (rank + 1) * partition and stop > rank * partition
        )
        for rank in range(min(setup.world_size, MAX_RANKS))
    ]
    return 4 * max(held)


def _left_on_the_device(setup: _Setup, stage: int) -> int:
    """Bytes of gradients on the GPU at the end of the last backward pass if the optimizer is offloaded."""
    if stage == 3:
        return 0
    if stage == 1 and setup.is_16_bit:
        return 4 * setup.trained + 2 * setup.largest  # accumulated there until the step
    return 4 * setup.largest


def _in_update(setup: _Setup) -> int:
    """Temporary bytes of the optimizer step: the norm in fp64, one parameter at a time, and in fp32 a flattened copy of
    the gradients. 0 if the optimizer is offloaded."""
    if setup.offloads:
        return 0
    norm = 8 * min(setup.largest, setup.partition)
    return norm if setup.is_16_bit else max(norm, 4 * setup.partition)


def _parts(weights: int, master: int, moments: int, gradients: int, buffers: int) -> dict[str, int]:
    return {"weights": weights, "master": master, "moments": moments, "gradients": gradients, "buffers": buffers}
