"""DeepSpeed's sharded state <-> named ranges of flattened parameters, at any number of workers and any ZeRO stage.

The saved state is the fp32 master weight of every trained parameter, what the optimizer keeps for it (the moments of
AdamW), with `training.ema_decay` its average, of an AdaLoRA adapter the averages by which ranks are removed, and the
persistent buffers (such as BatchNorm's statistics; rank 0's).
Frozen parameters are not saved: the process that loads the state has built the model with the same ones. Each element
is saved by exactly one worker:

- ZeRO-1 and -2: the worker whose optimizer partition contains it,
- ZeRO-3: the worker whose partition of the parameter contains it,
- without ZeRO: each parameter is split equally among the workers,
- buffers: rank 0.

Nothing here is pickled, and names and ranges do not depend on the number of workers. No Ray.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raytrain.checkpoint.ranges import AVERAGE, BUFFER, FP32, RangeReader, StateRange, Wanted
from raytrain.config import Precision
from raytrain.engine.engine import Engine
from raytrain.engine.exact_sums import sum_of_bits
from raytrain.engine.own_optimizer import ADAMW, step_state
from raytrain.engine.shards import Shard, inner_optimizer, optimizer_tensors, shards, spread

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class StateCopy:
    """CPU copies of everything that a worker must save of one point in time."""

    ranges: list[StateRange]
    """Must not be read before `wait` has returned."""
    copied: "torch.cuda.Event | None"
    """Recorded on the GPU after the last copy; None: the copies are complete."""

    def wait(self) -> None:
        """Block until the copies are complete. May be called in any thread."""
        if self.copied is not None:
            self.copied.synchronize()


def owned_ranges(engine: Engine) -> list[StateRange]:
    """Copies of what this worker must save, so training may continue. Over all workers, each element appears once.

    Moments that don't exist yet (no update so far) are zeros. Not collective.
    """
    return _copied_ranges(engine)


def copy_state(engine: Engine) -> StateCopy:
    """`owned_ranges` without waiting for the GPU: it copies during the next step's forward and backward pass, before it
    updates the copied tensors. Not collective.

    The copy is in pinned memory. torch takes up to twice its size, and keeps the memory for the next copy: have only
    one such copy at a time.
    """
    beside = engine.copy_stream
    if beside is None:
        return StateCopy(_copied_ranges(engine), None)
    beside.wait_stream(torch.cuda.current_stream(engine.device))
    with torch.cuda.stream(beside):
        ranges = _copied_ranges(engine, is_locked=True)
    copied = beside.record_event()
    engine.update_after = copied
    return StateCopy(ranges, copied)


def _copied_ranges(engine: Engine, *, is_locked: bool = False) -> list[StateRange]:
    """`is_locked`: the copies are in pinned memory, and may still be in progress if they come from a GPU."""
    ranges = []
    for shard in shards(engine):
        tensors = {FP32: _cpu_copy(shard.master, is_locked)}
        state = inner_optimizer(engine).state.get(shard.flat, {})
        for kind in engine.state_layout.kinds:
            tensors[kind] = _moment_copy(state.get(kind), shard, is_locked)
        if engine.average is not None:
            tensors[AVERAGE] = _cpu_copy(engine.average.of(shard), is_locked)
        if engine.ranks is not None:
            averages = engine.ranks.averages_of(shard).items()
            tensors.update({kind: _cpu_copy(average, is_locked) for kind, average in averages})
        ranges.append(StateRange(shard.name, shard.start, tensors))
    if engine.world_rank == 0:
        for name, buffer in _persistent_buffers(engine.module):
            # A forward pass changes buffers, so these copies are waited for; buffers are small.
            ranges.append(StateRange(name, 0, {BUFFER: _cpu_copy(buffer.flatten(), is_locked=False)}))
    return ranges


@torch.no_grad()
def load_ranges(engine: Engine, reader: RangeReader, optimizer_step: int) -> None:
    """Load saved state into an engine, fresh or used; the next step is then that of the saved run. Collective.

    Each worker reads only what it owns, and the buffers. 16-bit copies are rounded from the master weights again.

    Args:
        engine: An engine of any ZeRO stage and world size.
        reader: Returns any range of what `owned_ranges` returned on all workers.
        optimizer_step: Updates applied before the save; AdamW's bias correction depends on it. Before the first one,
            an optimizer of the user's makes its state itself.

    Raises:
        CheckpointError: A parameter of the model is missing in the checkpoint, or is shorter there (raised by the
        reader).
    """
    kinds = _kinds_at(engine, optimizer_step)
    for flat in optimizer_tensors(engine):
        _make_state(engine, flat, kinds, optimizer_step)
    wanted = []
    for shard in shards(engine):
        wanted.append(Wanted(FP32, shard.name, shard.start, shard.master))
        state = inner_optimizer(engine).state[shard.flat]
        for kind in kinds:
            moment = state[kind].view(-1)[shard.flat_start : shard.flat_start + shard.length]
            wanted.append(Wanted(kind, shard.name, shard.start, moment))
        if engine.average is not None:
            wanted.append(Wanted(AVERAGE, shard.name, shard.start, engine.average.of(shard)))
        if engine.ranks is not None:
            averages = engine.ranks.averages_of(shard).items()
            wanted += [Wanted(kind, shard.name, shard.start, average) for kind, average in averages]
    buffers = [(name, buffer, torch.empty(buffer.numel())) for name, buffer in _persistent_buffers(engine.module)]
    wanted += [Wanted(BUFFER, name, 0, elements) for name, _, elements in buffers]
    reader.load(wanted)
    for _, buffer, elements in buffers:
        buffer.copy_(elements.view(buffer.shape))
    spread(engine, kinds)
    if engine.average is not None:
        engine.average.num_updates = optimizer_step
    if engine.ranks is not None:
        engine.ranks.restored(optimizer_step)


def weights_checksum(engine: Engine) -> int:
    """A checksum of the trained weights: that of all workers is the sum of theirs modulo 2**64, whatever their number.
    Not collective."""
    total = torch.zeros((), dtype=torch.int64, device=engine.device)
    for shard in shards(engine):
        total += sum_of_bits(shard.master, shard.name, shard.start)
    return int(total) % 2**64


def scaler_state(engine: Engine) -> dict[str, float | int]:
    """The loss scaler's state, JSON-able and the same on all workers; empty without fp16. Not collective."""
    if engine.precision is not Precision.FP16:
        return {}
    return {field: getattr(engine.optimizer.loss_scaler, field) for field in _SCALER_FIELDS}


def load_scaler_state(engine: Engine, state: dict[str, float | int]) -> None:
    """Restore `scaler_state`; does nothing if either run is not in fp16. Not collective."""
    if engine.precision is Precision.FP16 and state:
        for field in _SCALER_FIELDS:
            setattr(engine.optimizer.loss_scaler, field, state[field])


def _kinds_at(engine: Engine, optimizer_step: int) -> tuple[str, ...]:
    """The tensors that the optimizer has after `optimizer_step` updates. One of the user's may not begin with zeros."""
    return engine.state_layout.kinds if optimizer_step or engine.state_layout is ADAMW else ()


def _make_state(engine: Engine, flat: Tensor, kinds: tuple[str, ...], optimizer_step: int) -> None:
    """Create the state that the optimizer creates itself in its first step: it must exist before it can be loaded."""
    optimizer, layout = inner_optimizer(engine), engine.state_layout
    state = optimizer.state[flat]
    if not optimizer_step and layout is not ADAMW:
        state.clear()
        return
    for kind in kinds:
        if kind not in state:
            state[kind] = torch.zeros_like(flat, memory_format=torch.preserve_format, requires_grad=False)
    is_beside = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    state.update(step_state(layout, optimizer_step, flat.device if is_beside else "cpu"))  # where torch expects it


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that are part of `state_dict()`. Integers up to 2**24 are exact in fp32."""
    state = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in state and buffer.numel()]


def _cpu_copy(tensor: Tensor, is_locked: bool) -> Tensor:
    """A copy in fp32 on the CPU; with `is_locked`, a copy from a GPU may still be in progress."""
    is_locked = is_locked and tensor.is_cuda
    copy = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=is_locked)
    return copy.copy_(tensor.detach(), non_blocking=is_locked)


def _moment_copy(moment: Tensor | None, shard: Shard, is_locked: bool) -> Tensor:
    if moment is None:
        return torch.zeros(shard.length)
    return _cpu_copy(moment.view(-1)[shard.flat_start : shard.flat_start + shard.length], is_locked)


def num_trained(engine: Engine) -> int:
    """Number of elements of all trained parameters, which are empty under ZeRO-3 outside a forward pass."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters() if p.requires_grad)
