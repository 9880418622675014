"""DeepSpeed's sharded state <-> named ranges of flattened parameters, at any number of workers and any ZeRO stage.

What is saved: the fp32 master weight and the AdamW moments of every parameter that is trained, and the persistent
buffers (BatchNorm's statistics and the like; rank 0's). Frozen parameters are not: whoever loads the state has built
the model with the same ones. Each element is saved by exactly one worker:

- ZeRO-1 and -2: the worker whose optimizer partition holds it,
- ZeRO-3: the worker that holds it of the parameter,
- without ZeRO: equal shares of each parameter,
- buffers: rank 0.

Nothing here is pickled, and names and ranges say nothing about how many workers there were. No Ray here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain.checkpoint.ranges import BUFFER, FP32, MOMENTS, RangeReader, StateRange
from raytrain.config import Precision
from raytrain.engine.engine import Engine

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class _Shard:
    """Where the elements [start, start + length) of a parameter lie on this worker."""

    name: str
    start: int
    length: int
    master: Tensor
    """1-D view, fp32; writing to it changes the engine."""
    flat: Tensor
    """The tensor that the optimizer keeps state for."""
    flat_start: int
    """Where the elements begin in `flat`, and so in its moments."""


@dataclass(frozen=True)
class StateCopy:
    """What a worker must save of one moment, on the CPU."""

    ranges: list[StateRange]
    """Not to be read before `wait` has returned."""
    copied: "torch.cuda.Event | None"
    """Set by the GPU when all of it has come; None: it is there."""

    def wait(self) -> None:
        """Until it is there. In any thread."""
        if self.copied is not None:
            self.copied.synchronize()


def owned_ranges(engine: Engine) -> list[StateRange]:
    """What this worker must save: copies, so training may go on. Over all workers each element comes once.

    Moments that don't exist yet (no update so far) are zeros. Not collective.
    """
    return _copied_ranges(engine)


def copy_state(engine: Engine) -> StateCopy:
    """`owned_ranges`, without waiting for a GPU: it copies beside the next step's forward and backward pass, and only
    then updates what is copied. Not collective.

    The copy is in locked memory, of which torch takes up to twice as much and keeps it for the next time: have one such
    copy at a time.
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
    """`is_locked`: on a GPU they may still be on their way."""
    ranges = []
    for shard in _shards(engine):
        tensors = {FP32: _cpu_copy(shard.master, is_locked)}
        state = _inner_optimizer(engine).state.get(shard.flat, {})
        for kind in MOMENTS:
            tensors[kind] = _moment_copy(state.get(kind), shard, is_locked)
        ranges.append(StateRange(shard.name, shard.start, tensors))
    if engine.world_rank == 0:
        for name, buffer in _persistent_buffers(engine.module):
            # A forward pass changes them, so they are waited for; they are small.
            ranges.append(StateRange(name, 0, {BUFFER: _cpu_copy(buffer.flatten(), is_locked=False)}))
    return ranges


@torch.no_grad()
def load_ranges(engine: Engine, reader: RangeReader, optimizer_step: int) -> None:
    """Put saved state into an engine, fresh or used; the next step is then that of the run that was saved. Collective.

    Each worker reads only what it owns, and the buffers. What is held in 16 bits is rounded from the masters again.

    Args:
        engine: At any ZeRO stage and world size.
        reader: Gives any range of what `owned_ranges` returned on all workers.
        optimizer_step: Updates that were applied up to the save: AdamW's bias correction goes by it.

    Raises:
        CheckpointError: A parameter of the model is not in the checkpoint, or was shorter (raised by the reader).
    """
    for flat in _optimizer_tensors(engine):
        _make_state(engine, flat, optimizer_step)
    for shard in _shards(engine):
        stop = shard.start + shard.length
        shard.master.copy_(_read(reader, FP32, shard, stop))
        state = _inner_optimizer(engine).state[shard.flat]
        for kind in MOMENTS:
            moment = state[kind].view(-1)[shard.flat_start : shard.flat_start + shard.length]
            moment.copy_(_read(reader, kind, shard, stop))
    for name, buffer in _persistent_buffers(engine.module):
        buffer.copy_(reader.read(BUFFER, name, 0, buffer.numel()).view(buffer.shape))
    _spread(engine)


def scaler_state(engine: Engine) -> dict[str, float | int]:
    """The loss scaler's state, JSON-able and the same on all workers; empty without fp16. Not collective."""
    if engine.precision is not Precision.FP16:
        return {}
    return {field: getattr(engine.optimizer.loss_scaler, field) for field in _SCALER_FIELDS}


def load_scaler_state(engine: Engine, state: dict[str, float | int]) -> None:
    """Restore `scaler_state`; nothing happens when either run is not in fp16. Not collective."""
    if engine.precision is Precision.FP16 and state:
        for field in _SCALER_FIELDS:
            setattr(engine.optimizer.loss_scaler, field, state[field])


def _inner_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The torch AdamW, inside DeepSpeed's wrapper or bare."""
    return engine.optimizer if engine.zero_stage == 0 else engine.optimizer.optimizer


def _optimizer_tensors(engine: Engine) -> list[Tensor]:
    """The tensors that the AdamW of this worker has moments for."""
    if engine.zero_stage == 0:
        return [p for p in engine.module.parameters() if p.requires_grad]
    return _flat_partitions(engine.optimizer, engine.zero_stage)


def _flat_partitions(optimizer: Any, zero_stage: int) -> list[Tensor]:
    if zero_stage == 3:
        return optimizer.fp32_partitioned_groups_flat
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return optimizer.single_partition_of_fp32_groups
    return optimizer.fp32_groups_flat_partition  # DeepSpeed's BF16_Optimizer: bf16 at stage 1


def _shards(engine: Engine) -> Iterator[_Shard]:
    """This worker's share of every trained parameter, in the order of `named_parameters` (the same on all workers)."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        shard: _Shard | None
        if engine.zero_stage == 3:
            shard = _shard_of_stage_3(engine, name, parameter)
        elif engine.zero_stage == 0:
            shard = _equal_share(engine, name, parameter)
        else:
            shard = _shard_of_stage_1_2(engine, name, parameter)
        if shard is not None and shard.length > 0:
            yield shard


def _equal_share(engine: Engine, name: str, parameter: nn.Parameter) -> _Shard:
    start = parameter.numel() * engine.world_rank // engine.world_size
    stop = parameter.numel() * (engine.world_rank + 1) // engine.world_size
    return _Shard(name, start, stop - start, parameter.detach().view(-1)[start:stop], parameter, start)


def _shard_of_stage_1_2(engine: Engine, name: str, parameter: Any) -> _Shard | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # none of it lies in this worker's partition
        return None
    inside, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    flat = _flat_partitions(engine.optimizer, engine.zero_stage)[mapping.param_group_index]
    return _Shard(name, inside.start, inside.numel, mapping.hp_fragment.detach(), flat, place.start)


def _shard_of_stage_3(engine: Engine, name: str, parameter: Any) -> _Shard:
    """ZeRO-3 pads each flattened parameter to a multiple of the world size and cuts it into equal parts."""
    part = parameter.partition_numel()
    start = min(engine.world_rank * part, parameter.ds_numel)
    length = min(part, parameter.ds_numel - start)
    optimizer = engine.optimizer
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    return _Shard(name, start, length, flat.detach()[offset : offset + length], flat, offset)


def _make_state(engine: Engine, flat: Tensor, optimizer_step: int) -> None:
    """What AdamW makes itself in its first step: it must be there before that to be loaded."""
    optimizer = _inner_optimizer(engine)
    state = optimizer.state[flat]
    for kind in MOMENTS:
        if kind not in state:
            state[kind] = torch.zeros_like(flat, memory_format=torch.preserve_format, requires_grad=False)
    step_device = flat.device if optimizer.defaults["fused"] else "cpu"  # where AdamW wants it
    state["step"] = torch.tensor(float(optimizer_step), dtype=torch.float32, device=step_device)


def _spread(engine: Engine) -> None:
    """Bring everything that is derived from the masters, on this worker and the others, in line with them."""
    if engine.zero_stage == 0:
        for parameter in _optimizer_tensors(engine):
            state = _inner_optimizer(engine).state[parameter]
            for tensor in (parameter.detach(), *(state[kind] for kind in MOMENTS)):
                _exchange_shares(engine, tensor)
        return
    if engine.zero_stage == 3:
        _refresh_stage_3(engine.optimizer)
        return
    engine.optimizer.update_lp_params()


def _refresh_stage_3(optimizer: Any) -> None:
    """As ZeRO-3 does in a step: let go of what was gathered, then 16-bit partitions from the masters.

    The small parameters that it keeps whole are gathered again by the next forward.
    """
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)


def _exchange_shares(engine: Engine, tensor: Tensor) -> None:
    """Make a replicated tensor whole where each worker has filled its equal share."""
    if engine.world_size == 1:
        return
    flat = tensor.view(-1)
    for rank in range(engine.world_size):
        start = flat.numel() * rank // engine.world_size
        stop = flat.numel() * (rank + 1) // engine.world_size
        if stop > start:
            dist.broadcast(flat[start:stop], src=rank)


def _read(reader: RangeReader, kind: str, shard: _Shard, stop: int) -> Tensor:
    return reader.read(kind, shard.name, shard.start, stop)


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that belong to `state_dict()`. Whole numbers up to 2**24 survive the trip through fp32."""
    state = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in state and buffer.numel()]


def _cpu_copy(tensor: Tensor, is_locked: bool) -> Tensor:
    """fp32, on the CPU; with `is_locked` and from a GPU still on its way."""
    is_locked = is_locked and tensor.is_cuda
    copy = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=is_locked)
    return copy.copy_(tensor.detach(), non_blocking=is_locked)


def _moment_copy(moment: Tensor | None, shard: _Shard, is_locked: bool) -> Tensor:
    if moment is None:
        return torch.zeros(shard.length)
    return _cpu_copy(moment.view(-1)[shard.flat_start : shard.flat_start + shard.length], is_locked)
