"""The identity of weights that are not trained: a hash over their names and values."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import nn


def frozen_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters without `requires_grad`, in the model's order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad]


def hash_of_parameter(parameter: nn.Parameter) -> str:
    """SHA-256 of its values."""
    data = parameter.detach().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def combined_hash(hashes: Mapping[str, str]) -> str:
    """SHA-256 over names and hashes of values, whatever their order."""
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()
