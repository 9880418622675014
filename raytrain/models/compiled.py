"""Layers compiled by torch.compile (training.compile).

Layers are compiled one by one and not the model as a whole: those of one class share the code, so that the time to
compile does not depend on the depth, and what lies between them, such as a head that looks at its targets, may be any
Python. Widths are dynamic, so that batches of other lengths need no other code. Random numbers are those of the model
that is not compiled: dropout draws the same, and a run may continue with the option changed.
"""

from typing import Any

import torch
from torch import Tensor, nn

from raytrain.errors import first_line


def compile_layers(model: nn.Module) -> int:
    """Compile each layer of the model's lists of layers, in place: names and hooks stay. Nothing is compiled before
    the first call. Returns the number of layers."""
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
    layers = layers_of(model)
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules in the outermost lists of modules."""
    names: list[str] = []
    layers: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{other}.") for other in names):
            names.append(name)
            layers.extend(module)
    return layers


def why_no_compiler(device: torch.device) -> str | None:
    """Compile something small and call it. Returns what is wrong, in words; None: nothing."""
    compiled: Any = torch.compile(_small, dynamic=True)
    try:
        compiled(torch.ones(3, 4, device=device, requires_grad=True)).backward()
    except Exception as error:  # of Dynamo, Inductor, Triton, or the C++ compiler that they look for
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {first_line(str(cause))}"
    return None


def _small(x: Tensor) -> Tensor:
    return (x * 2 + 1).relu().sum()
