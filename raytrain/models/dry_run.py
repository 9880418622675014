"""Running a model without its weights: floats have only shapes, integers have values.

A model on torch's meta device computes nothing, so the shapes that do not fit are found in a second and without memory.
But meta tensors have no values, and a table of positions that is too short shows only by the index that is looked up
in it. So here whatever is computed from integers alone (token ids, masks, positions) is computed for real, and each
look-up is compared with the size of its table.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
META, CPU = torch.device("meta"), torch.device("cpu")
MAX_ELEMENTS = 2**26  # of an integer tensor; larger ones, such as the masks of very long texts, have only shapes too


class UnknownValue(Exception):
    """The model asked for the value of a float, or has an operation without a shape function."""


class DryRun(TorchDispatchMode):
    """Context in which a model is built under `torch.device("meta")`, and in which it is called.

    Raises IndexError for a look-up beyond a table's end, and UnknownValue.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch calls this for each operation."""
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in tensors) and _num_elements(args, tensors) <= MAX_ELEMENTS:
            if kwargs.get("device") == META and _gives_integers(func, tensors, kwargs):
                kwargs["device"] = CPU
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            raise UnknownValue(str(func))
        if func is aten.index.Tensor:
            args = (args[0], _checked(args[0], args[1]), *args[2:])
        elif func is aten.embedding.default:
            _check(args[1], args[0].shape[0])
        elif func is aten.index_select.default:
            _check(args[2], args[0].shape[args[1]])
        args, kwargs = tree_map(_on_meta, (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = META
        try:
            return func(*args, **kwargs)
        except NotImplementedError:
            raise UnknownValue(str(func)) from None


def first_error(model: nn.Module, inputs: dict[str, Tensor]) -> Exception | None:
    """What a call of the model raises. `model`: built in a DryRun; `inputs`: integers on the CPU.

    Raises UnknownValue when the call can't be followed to its end.
    """
    try:
        with torch.no_grad(), DryRun():
            model(**inputs)
    except UnknownValue:
        raise
    except Exception as error:  # whatever a model's code raises for sizes that do not fit
        return error
    return None


def _num_elements(args: Any, tensors: list[Tensor]) -> int:
    """About the elements of the result: of what is created, or of the operands broadcast to each other."""
    if not tensors:
        size = args[0] if args and isinstance(args[0], (list, tuple)) else ()
        return math.prod(int(length) for length in size)
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    except RuntimeError:  # not an operation by elements
        return max(tensor.numel() for tensor in tensors)


def _gives_integers(func: Any, tensors: list[Tensor], kwargs: dict[str, Any]) -> bool:
    dtype = kwargs.get("dtype")
    if dtype is None and tensors:  # a copy from the CPU
        dtype = tensors[0].dtype
    if dtype is None:
        return func.overloadpacket is aten.arange
    return not dtype.is_floating_point


def _checked(table: Tensor, indices: list[Tensor | None]) -> list[Tensor | None]:
    """The indices of `table[indices]`, compared with its sizes; masks with values become the places that are on."""
    checked: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool and not index.is_meta:
            checked += index.nonzero().unbind(1)
        else:
            checked.append(index)
    for dim, index in enumerate(checked):
        if index is not None and index.dtype is not torch.bool:
            _check(index, table.shape[dim])
    return checked


def _check(index: Tensor, size: int) -> None:
    if not index.is_meta and index.numel() and not -size <= int(index.min()) <= int(index.max()) < size:
        raise IndexError(f"index {int(index.max())} is beyond a table of {size} rows")


def _on_meta(leaf: Any) -> Any:
    return leaf.to(META) if isinstance(leaf, Tensor) and not leaf.is_meta else leaf
