"""The optimizer over a model's trained parameters."""

import math
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from raytrain.config import OptimizerConfig, TrainingConfig
from raytrain.engine.own_optimizer import make_own
from raytrain.errors import ConfigError
from raytrain.models.depths import depths_of

# Elements updated at once: the temporary tensors stay in a CPU's cache.
_CHUNK = 1 << 17
LR_SCALE = "lr_scale"
"""Of a parameter group: its share of the learning rate."""
SCALING = ".ia3_l."  # in the names of PEFT's vectors that scale, which have two dimensions


def make_optimizer(
    model: nn.Module, training: TrainingConfig, *, is_elementwise: bool = False
) -> torch.optim.Optimizer:
    """The optimizer over the trained parameters. Biases and normalization weights (1-D) have no weight decay, and
    neither have vectors that scale (IA3), which begin at 1. AdamW, if the config names no other. `LR_SCALE` of a group
    is its share of the learning rate (`training.layerwise_lr_decay`).

    Args:
        is_elementwise: The bits of an updated element don't depend on where in a tensor it lies, so not on how
            parameters are flattened and partitioned. torch's fused kernel for CPUs computes most elements with
            instructions for vectors, which round once where those for the last few elements of a tensor round twice.

    Raises ConfigError if nothing is trained, or an optimizer of the user's can't be made.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("the model has no parameter to train: all of them are frozen")
    optimizer = training.optimizer
    groups = _groups(model, optimizer, training.layerwise_lr_decay)
    if optimizer.target is not None:
        return make_own(groups, optimizer)
    adamw = torch.optim.AdamW(
        groups,
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
        fused=True,  # one pass over memory; on a CPU more than ten times as fast as torch's default
    )
    if is_elementwise:
        # Not a subclass: DeepSpeed warns of optimizers that it does not know.
        adamw.step = MethodType(_elementwise_step, adamw)  # type: ignore[method-assign]
    return adamw


def _groups(model: nn.Module, optimizer: OptimizerConfig, decay: float) -> list[dict[str, Any]]:
    """One group for each learning rate and weight decay that there is, from the lowest layer on."""
    depths, top = depths_of(model) if decay < 1.0 else ({}, 0)
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decayed = parameter.ndim > 1 and SCALING not in name
            found.setdefault((depths.get(name, 0), not is_decayed), []).append(parameter)
    return [
        {
            "params": found[depth, is_kept],
            "weight_decay": 0.0 if is_kept else optimizer.weight_decay,
            LR_SCALE: decay ** (top - depth),
        }
        for depth, is_kept in sorted(found)
    ]


@torch.no_grad()
def _elementwise_step(self: torch.optim.AdamW, closure: None = None) -> None:
    """A step of AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2) from
    operations that IEEE 754 rounds in one way only: products, sums, quotients and square roots."""
    for group in self.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            step = float(state["step"])
            tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
            for chunk in zip(*(tensor.view(-1).split(_CHUNK) for tensor in tensors), strict=True):
                _update(chunk, group, step)


def _update(chunk: Sequence[Tensor], group: dict[str, Any], step: float) -> None:
    """Update a part of a parameter in place. `chunk`: of weights, gradient, first and second moment, 1-D."""
    weights, gradient, mean, square = chunk
    beta1, beta2 = group["betas"]
    mean.mul_(beta1).add_(gradient * (1 - beta1))
    square.mul_(beta2).add_((gradient * gradient).mul_(1 - beta2))
    denominator = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    weights.mul_(1 - group["lr"] * group["weight_decay"])
    weights.sub_(torch.div(mean, denominator, out=denominator).mul_(group["lr"] / (1 - beta1**step)))
