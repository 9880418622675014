"""What makes a forward and backward pass give the same bits in every process (training.exactness=bitwise)."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def require_deterministic_kernels() -> Callable[[], None]:
    """Make torch raise where an operation has no deterministic implementation. Returns what undoes it."""
    options: Any = torch.utils.deterministic
    before = options.fill_uninitialized_memory
    was_on, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which torch demands, before cuBLAS is used
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # it is for debugging, and takes time

    def undo() -> None:
        torch.use_deterministic_algorithms(was_on, warn_only=only_warned)
        options.fill_uninitialized_memory = before

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


class BufferWatch:
    """Notices when a forward pass changes a buffer that is saved, such as BatchNorm's statistics: each worker has its
    own, from the micro-batches that it was dealt."""

    def __init__(self, module: nn.Module):
        self._module = module
        self._before: dict[str, tuple[int, int, Tensor]] = {}
        self._before = self._now({})

    def changed(self) -> str | None:
        """The name of a buffer that has changed since the last call; None: none has. Not collective."""
        now = self._now(self._before)
        changed = [name for name in now if name not in self._before or not _equal(now[name][2], self._before[name][2])]
        self._before = now
        return changed[0] if changed else None

    def _now(self, before: dict[str, tuple[int, int, Tensor]]) -> dict[str, tuple[int, int, Tensor]]:
        """By name: identity, version, and a copy, which is taken only where one of these has changed."""
        saved = self._module.state_dict(keep_vars=True)
        now = {}
        for name, buffer in self._module.named_buffers():
            if name in saved:
                now[name] = before.get(name, (0, 0, buffer))
                if now[name][:2] != (id(buffer), buffer._version):
                    now[name] = (id(buffer), buffer._version, buffer.detach().clone())
        return now


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
