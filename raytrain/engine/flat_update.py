"""The update of bf16 at ZeRO stage 1 over flat gradients, instead of one parameter after the other. No Ray.

DeepSpeed's BF16_Optimizer keeps the fp32 gradients of a parameter group in one tensor, and adds, measures and clips
them parameter by parameter: some 600 kernels in a step of BERT, and four reads of a number from the device. Here these
are a few kernels for a group, and one read. The norm is that of the workers' partitions, so that what is added to the
own one alone, as AdaLoRA's penalty is, counts on all.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class FlatUpdate:
    """Replaces what BF16_Optimizer does with gradients once they are computed."""

    def __init__(self, optimizer: Any, clip: float):
        """Args:
        optimizer: DeepSpeed's.
        clip: The largest norm; 0: gradients are not clipped.
        """
        self._optimizer, self._clip = optimizer, clip
        self._is_first = True
        """Whether the next micro-batch is the first of a step."""
        self._clear = optimizer.clear_hp_grads
        optimizer.update_hp_grads = self._add
        optimizer.clear_hp_grads = self._begin
        optimizer.step = self._step

    def _begin(self) -> None:
        self._is_first = True
        self._clear()

    @torch.no_grad()
    def _add(self, clear_lp_grads: bool = False) -> None:
        """Add the gradients of a micro-batch to those of the step. `clear_lp_grads`: as DeepSpeed calls it; they are
        cleared in any case, or the next micro-batch would be added to them in 16 bits."""
        optimizer = self._optimizer
        groups = zip(
            optimizer.bf16_groups,
            optimizer.fp32_groups_gradients,
            optimizer.fp32_groups_actual_gradients_flat,
            strict=True,
        )
        for parameters, places, flat in groups:
            used = [i for i, parameter in enumerate(parameters) if parameter.grad is not None]
            gradients = [parameters[i].grad.reshape(-1) for i in used]
            targets = [places[i].view(-1) for i in used]
            if self._is_first and used:  # the places of the others are zeros
                torch._foreach_copy_(targets, gradients)
            elif len(used) == len(parameters):
                flat.add_(torch.cat(gradients))
            else:
                for target, gradient in zip(targets, gradients, strict=True):
                    target.add_(gradient)
            for parameter in parameters:
                parameter.grad = None
        self._is_first = False

    @torch.no_grad()
    def _step(self, closure: None = None) -> None:
        """What BF16_Optimizer does in a step. Collective."""
        optimizer = self._optimizer
        parts: list[Tensor] = optimizer.fp32_groups_gradient_flat_partition
        norm = self._norm(parts)
        optimizer.overflow = not math.isfinite(norm)
        optimizer._global_grad_norm = math.inf if optimizer.overflow else norm
        if optimizer.overflow:
            optimizer.zero_grad()
            return
        if self._clip and norm > self._clip:
            torch._foreach_mul_(parts, self._clip / (norm + 1e-6))
        for weights, gradient in zip(optimizer.fp32_groups_flat_partition, parts, strict=True):
            weights.grad = gradient
        optimizer.optimizer.step()
        optimizer._lazy_init_hp_params_optimizer_state()
        optimizer.update_lp_params()
        optimizer.clear_hp_grads()

    def _norm(self, parts: list[Tensor]) -> float:
        """Of the whole gradient, whose parts each worker has its own of."""
        square = torch.stack([torch.linalg.vector_norm(part) for part in parts]).square().sum()
        if dist.get_world_size() > 1:
            dist.all_reduce(square)
        return math.sqrt(float(square))  # nan stays nan
