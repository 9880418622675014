"""Where the gradient of a step lies on each worker after the backward passes, at any ZeRO stage. No Ray."""

from typing import Any

from torch import Tensor, nn

from raytrain.engine.shards import Shard


def gradient_of(engine: Any, shard: Shard, parameter: nn.Parameter, *, is_exact: bool = False) -> Tensor:
    """This worker's part of a gradient that is complete: 1-D, times the loss scale; writing to it changes the update.
    Not collective.

    Args:
        is_exact: `ExactGradients.finish` has handed over the gradients. They are unscaled and clipped then.
    """
    own: Any = parameter
    stop = shard.start + shard.length
    if engine.zero_stage == 0:
        return own.grad.view(-1)[shard.start : stop]
    optimizer = engine.optimizer
    if engine.zero_stage == 3:
        return optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition[own.ds_id].view(-1)[: shard.length]
    mapping = own._hp_mapping
    if is_exact:
        (flat,) = optimizer.averaged_gradients[mapping.param_group_index]
        return flat[shard.flat_start : shard.flat_start + shard.length]
    fragment = mapping.get_lp_grad_fragment(own._index_in_param_group).view(-1)
    # DeepSpeed's optimizer for bf16 holds the whole gradient on each worker.
    return fragment if fragment.numel() == shard.length else fragment[shard.start : stop]
