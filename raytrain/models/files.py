"""What a model's files say of it without loading it. No torch."""

import json
import math
from pathlib import Path

from raytrain.config import ModelConfig

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


def count_parameters(model: ModelConfig) -> int | None:
    """Parameters of a pretrained model in a local folder, from the headers of its safetensors files.

    None when it is not known: a hub id, a new model, other formats. A new head's few parameters are not counted.
    """
    if model.path is None:
        return None
    try:
        return sum(map(_parameters_in, Path(model.path).expanduser().glob("*.safetensors"))) or None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _parameters_in(path: Path) -> int:
    """Raises ValueError and the like when the file is none of safetensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file")
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
