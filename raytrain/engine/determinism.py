"""What makes a forward and backward pass give the same bits in every process (training.exactness=bitwise)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raytrain.errors import ConfigError


def require_deterministic_kernels() -> Callable[[], None]:
    """Make torch raise where an operation has no deterministic implementation. Returns what undoes it."""
    options: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which torch demands, before cuBLAS is used
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # it is for debugging, and takes time

    def undo() -> None:
        torch.use_deterministic_algorithms(before[0])
        options.fill_uninitialized_memory = before[1]

    return undo


class _Boundary(torch.autograd.Function):
    """The identity. Without `setup_context`, for which torch would inspect the signature in each call."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


def mark_boundaries(module: nn.Module) -> Callable[[], None]:
    """Make the autograd graph that of ZeRO-3, which puts such a function before and after each module.

    They decide in which order the gradients of a tensor with several uses are added: those of uses inside a module come
    first. Returns what undoes it.
    """
    from deepspeed.runtime.zero.utils import apply_to_tensors_only

    def before(_: nn.Module, inputs: Any) -> Any:
        return apply_to_tensors_only(_Boundary.apply, inputs) if torch.is_grad_enabled() else None

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return apply_to_tensors_only(_Boundary.apply, output) if torch.is_grad_enabled() else None

    handles = []
    for part in module.modules():
        handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Raises ConfigError at the end of the `with` block if a buffer has changed in it, such as BatchNorm's statistics:
    each worker has its own, from the micro-batches that it was dealt."""
    before = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    yield
    changed = [name for name, buffer in module.named_buffers() if not torch.equal(before[name], buffer)]
    if changed:
        raise ConfigError(
            f"training.exactness=bitwise: the model's buffer {changed[0]} changes in training, as statistics of "
            "BatchNorm do. They depend on the micro-batches that a worker is dealt: use another norm, freeze the "
            "statistics, or leave out training.exactness"
        )
