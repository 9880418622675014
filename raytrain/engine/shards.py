"""Where the trained weights and their optimizer's state lie on each worker, at any ZeRO stage. No Ray."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raytrain.config import Precision
from raytrain.engine.shares import gather_shares, share_of


@dataclass(frozen=True)
class Shard:
    """The location of the elements [start, start + length) of a parameter on this worker."""

    name: str
    start: int
    length: int
    master: Tensor
    """1-D view, fp32; writing to it changes the engine's state."""
    flat: Tensor
    """The tensor that the optimizer keeps state for."""
    flat_start: int
    """Offset of the elements in `flat`, and so in its moments."""


def inner_optimizer(engine: Any) -> Any:
    """The torch optimizer, with or without DeepSpeed's wrapper."""
    return engine.optimizer if engine.zero_stage == 0 else engine.optimizer.optimizer


def optimizer_tensors(engine: Any) -> list[Tensor]:
    """The tensors for which this worker's optimizer has state."""
    if engine.zero_stage == 0:
        return [p for p in engine.module.parameters() if p.requires_grad]
    return _flat_partitions(engine.optimizer, engine.zero_stage)


def _flat_partitions(optimizer: Any, zero_stage: int) -> list[Tensor]:
    if zero_stage == 3:
        return optimizer.fp32_partitioned_groups_flat
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return optimizer.single_partition_of_fp32_groups
    return optimizer.fp32_groups_flat_partition  # DeepSpeed's BF16_Optimizer: bf16 at stage 1


def shards(engine: Any) -> Iterator[Shard]:
    """This worker's part of every trained parameter, in the order of `named_parameters` (the same on all workers)."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        shard: Shard | None
        if engine.zero_stage == 3:
            shard = _shard_of_stage_3(engine, name, parameter)
        elif engine.zero_stage == 0:
            shard = _equal_share(engine, name, parameter)
        else:
            shard = _shard_of_stage_1_2(engine, name, parameter)
        if shard is not None and shard.length > 0:
            yield shard


def _equal_share(engine: Any, name: str, parameter: nn.Parameter) -> Shard:
    start, stop = share_of(parameter.numel(), engine.world_rank, engine.world_size)
    return Shard(name, start, stop - start, parameter.detach().view(-1)[start:stop], parameter, start)


def _shard_of_stage_1_2(engine: Any, name: str, parameter: Any) -> Shard | None:
    mapping = parameter._hp_mapping
    if mapping is None:  # this worker's partition contains none of it
        return None
    inside, place = mapping.lp_fragment_address, mapping.hp_fragment_address
    flat = _flat_partitions(engine.optimizer, engine.zero_stage)[mapping.param_group_index]
    return Shard(name, inside.start, inside.numel, mapping.hp_fragment.detach(), flat, place.start)


def _shard_of_stage_3(engine: Any, name: str, parameter: Any) -> Shard:
    """ZeRO-3 pads each flattened parameter to a multiple of the world size and cuts it into equal parts."""
    part = parameter.partition_numel()
    start = min(engine.world_rank * part, parameter.ds_numel)
    length = min(part, parameter.ds_numel - start)
    optimizer = engine.optimizer
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    return Shard(name, start, length, flat.detach()[offset : offset + length], flat, offset)


def weights_to_be_rounded(model: nn.Module, precision: Precision) -> dict[str, Tensor]:
    """The trained weights as they are, which DeepSpeed rounds to 16 bits before it makes the masters of them."""
    if precision is Precision.FP32:
        return {}
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def set_masters(engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Set this worker's part of some master weights, and not the 16-bit copies of the workers. Not collective.

    `weights`: whole parameters in fp32, by name.
    """
    for shard in shards(engine) if weights else ():
        shard.master.copy_(weights[shard.name].reshape(-1)[shard.start : shard.start + shard.length])


def spread(engine: Any, kinds: tuple[str, ...]) -> None:
    """Update everything that is derived from the master weights, on this worker and on the others."""
    if engine.zero_stage == 0:
        state = inner_optimizer(engine).state
        parameters = optimizer_tensors(engine)
        tensors = [t for p in parameters for t in (p.detach(), *(state[p][kind] for kind in kinds))]
        gather_shares([tensor.view(-1) for tensor in tensors], engine.world_rank, engine.world_size)
        return
    if engine.zero_stage == 3:
        _refresh_stage_3(engine.optimizer)
        return
    engine.optimizer.update_lp_params()


def _refresh_stage_3(optimizer: Any) -> None:
    """What ZeRO-3 does in a step: release gathered parameters, then set the 16-bit partitions from the master weights.

    The next forward pass gathers the small parameters again that ZeRO-3 keeps whole.
    """
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
