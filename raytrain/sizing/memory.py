"""Bytes that one worker's tensors take, by ZeRO stage, precision and world size. Pure arithmetic: no Ray, no torch.

Weights, masters, moments and gradients follow from what DeepSpeed allocates, and are compared with real engines in
the tests. Activations are an estimate, and are told apart from them. It is that of Korthikanti et al., "Reducing
Activation Recomputation in Large Transformer Models" (2022, arXiv:2205.05198, equation 1) in bytes a layer,

    s b h (34 + 5 a s / h)      s: seq_len, b: micro-batch, h: hidden size, a: heads

written out for other widths than 16 bits and other feed-forward parts, and without the part of the scores (5 a s / h)
where a fused attention kernel keeps none. With gradient checkpointing a layer keeps its input (s b h elements), and one
layer at a time the rest. Real ones differ by some 20 % with what a model computes piece by piece.
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
# Ranks that are looked at for the largest partition: an embedding comes first.
MAX_RANKS = 64


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, at most during a step."""

    weights: int
    """In the format of forward and backward."""
    master: int
    """fp32 copies that the optimizer updates."""
    moments: int
    """AdamW's two, fp32."""
    gradients: int
    """Those that are there when the last backward pass ends."""
    buffers: int
    """On their way: reduction buckets, gathered parameters of ZeRO-3, gradients before they are shared out."""
    activations: int | None
    """An estimate; None: the model's layers are not known."""
    host: int = 0
    """In the machine's memory instead of the GPU's, with an offloaded optimizer; not part of the others."""

    @property
    def state(self) -> int:
        """What lies there between two steps and at the end of a backward pass."""
        return self.weights + self.master + self.moments + self.gradients

    @property
    def total(self) -> int:
        """All that is needed at once on the worker's device; without activations, if these are not known."""
        return self.state + self.buffers + (self.activations or 0)

    @property
    def is_lower_bound(self) -> bool:
        """Whether `total` lacks a part that is not known."""
        return self.activations is None

    def fits_in(self, usable_bytes: int | None) -> bool | None:
        """Whether a worker that can have this much can hold it; None: not known."""
        if usable_bytes is None:
            return None
        if self.total > usable_bytes:
            return False
        return None if self.is_lower_bound else True

    def to_json(self) -> dict[str, Any]:
        """Every part, the total, and whether it is a lower bound; bytes."""
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
    """Bytes of a worker.

    Args:
        shape: The model.
        deepspeed: DeepSpeed's configuration of the worker, from `build_deepspeed_config`.
        precision: Resolved, not AUTO.
        world_size: Number of workers.
        micro_batch_size: Samples that the worker computes on at once.
        max_length: Tokens of the longest sample.
        use_gpu: Whether the worker holds a GPU; only then does offloading move anything.
        checkpoints: Whether gradient checkpointing is on.
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
            shape.layers, micro_batch_size, max_length, precision, use_gpu=use_gpu, checkpoints=checkpoints
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
    """Bytes that forward keeps for backward, over all layers; see the top of this file. With `checkpoints`, at most in
    the backward pass."""
    width = 4 if precision is Precision.FP32 else 2
    # Elements for each of the s b h: the inputs of linear layers and norms, Q, K, V and the attention's output, and
    # both sides of the feed-forward part's activation, or of its gate and RMSNorm in Llama and its kin.
    inner = layers.intermediate / layers.hidden
    elements = 10 + 4 * inner if layers.is_gated else 8 + 2 * inner
    is_noisy_on_cpu = layers.has_dropout and not use_gpu
    mask = width if is_noisy_on_cpu else 1  # a CPU keeps dropout's masks as numbers
    scores = 2 * width + mask if layers.stores_scores else 0
    if is_noisy_on_cpu and not layers.stores_scores:
        scores = 3 * 4  # torch's fused attention has no dropout on a CPU: it falls back to the plain one, in fp32
    per_token = layers.hidden * (width * elements + 2 * mask) + layers.heads * seq_len * scores
    tokens = micro_batch_size * seq_len
    if checkpoints:
        return round(tokens * (layers.count * layers.hidden * width + per_token))
    return round(layers.count * tokens * per_token)


@dataclass(frozen=True)
class _Setup:
    """What the stages' arithmetic needs."""

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
    def share(self) -> int:
        """Trained elements of a worker's partition; the rounding of partitions is far below a percent."""
        return -(-self.trained // self.world_size)

    @property
    def largest(self) -> int:
        return max(self.shape.trained, default=0)

    @property
    def bucket(self) -> int:
        """Elements of a reduction bucket."""
        return self.zero.get("reduce_bucket_size", REDUCE_BUCKET)


def _without_zero(setup: _Setup) -> dict[str, int]:
    """fp32; the reduction flattens all gradients into one buffer, and a sum comes back."""
    trained = setup.trained
    return _parts(4 * setup.shape.num_parameters, 0, 8 * trained, 4 * trained, 4 * trained)


def _stage_1(setup: _Setup) -> dict[str, int]:
    """The optimizer's state is shared out; every gradient is there until the last micro-batch has been reduced."""
    weights, trained, share = setup.width * setup.shape.num_parameters, setup.trained, setup.share
    if setup.precision is Precision.BF16 and not setup.offloads:
        # DeepSpeed's BF16_Optimizer keeps fp32 gradients of everything for good, beside those in 16 bits; the reduction
        # copies the fp32 ones, and these once more in 16 bits.
        return _parts(weights, 4 * share, 8 * share, 6 * trained, 6 * trained)
    gradients = _shared_out(setup)
    in_backward = 4 * trained + 4 * setup.bucket
    if setup.is_16_bit:
        in_backward += 2 * trained
        # One that is larger than the bucket is held by workers that do not own it, until the next forward.
        left = 4 * setup.largest if setup.largest > setup.bucket else 0
        gradients, in_backward = gradients + left, in_backward - left
    return _parts(weights, 4 * share, 8 * share, gradients, max(in_backward, _in_update(setup)))


def _stage_2(setup: _Setup) -> dict[str, int]:
    """Gradients are shared out as they come."""
    weights, share, largest = setup.width * setup.shape.num_parameters, setup.share, setup.largest
    gradients = _shared_out(setup)
    buckets = 2 if setup.zero.get("overlap_comm") else 1
    in_backward = setup.width * (largest + buckets * setup.bucket)
    if setup.is_16_bit:
        in_backward += 4 * largest  # reduced in 16 bits, added up in 32
    elif setup.accumulates:
        in_backward += gradients  # the micro-batch's own, before they are added
    return _parts(weights, 4 * share, 8 * share, gradients, max(in_backward, _in_update(setup)))


def _stage_3(setup: _Setup) -> dict[str, int]:
    """Weights are shared out too, but for small ones; what is computed with is gathered, up to a limit."""
    zero, shape, share, width = setup.zero, setup.shape, setup.share, setup.width
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)
    small = sum(size for size in (*shape.trained, *shape.frozen) if size <= threshold)
    # A parameter stays gathered while it is needed again within the reuse distance: a smaller model stays as a whole.
    prefetch = zero.get("stage3_prefetch_bucket_size", PREFETCH_BUCKET)
    kept = zero.get("stage3_max_reuse_distance", MAX_REUSE_DISTANCE) + prefetch
    gathered = max(setup.largest, min(shape.num_parameters - small, kept))
    weights = width * (-(-shape.num_parameters // setup.world_size) + small)
    bucket = width * setup.bucket  # kept for good
    # The largest gradient, and its copy in the reduction; padded first when the workers can't share it evenly.
    copies = 2 if setup.largest % setup.world_size == 0 else 3
    # What is gathered together comes in one piece, and is copied out of it.
    in_backward = width * (gathered + min(gathered, prefetch) + copies * setup.largest)
    flags = share if setup.precision is Precision.FP16 else 0  # of the overflow check
    in_update = 0 if setup.offloads else 4 * share + flags
    return _parts(weights, 4 * share, 8 * share, 4 * share, bucket + max(in_backward, in_update))


def _shared_out(setup: _Setup) -> int:
    """Bytes of the gradients of a worker's partition. In fp32 DeepSpeed keeps whole those that lie in it in part."""
    share = setup.share
    if setup.is_16_bit:
        return 4 * share
    stops = list(accumulate(setup.shape.trained))
    starts = [0, *stops[:-1]]
    held = [
        sum(
            stop - start
            for start, stop in zip(starts, stops, strict=True)
            if start < (rank + 1) * share and stop > rank * share
        )
        for rank in range(min(setup.world_size, MAX_RANKS))
    ]
    return 4 * max(held)


def _left_on_the_device(setup: _Setup, stage: int) -> int:
    """Bytes of gradients on a GPU when the last backward pass ends, though the optimizer works on the host."""
    if stage == 3:
        return 0
    if stage == 1 and setup.is_16_bit:
        return 4 * setup.trained + 2 * setup.largest  # added up there until the step
    return 4 * setup.largest


def _in_update(setup: _Setup) -> int:
    """Bytes beside the gradients while the optimizer works: their norm in fp64, one parameter at a time, and in fp32 a
    flattened copy of them. Nothing when it works on the host."""
    if setup.offloads:
        return 0
    norm = 8 * min(setup.largest, setup.share)
    return norm if setup.is_16_bit else max(norm, 4 * setup.share)


def _parts(weights: int, master: int, moments: int, gradients: int, buffers: int) -> dict[str, int]:
    return {"weights": weights, "master": master, "moments": moments, "gradients": gradients, "buffers": buffers}
