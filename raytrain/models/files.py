"""Facts about a model from its files, without loading it. No torch."""

import json
import math
from pathlib import Path

from raytrain.config import ModelConfig
from raytrain.errors import ConfigError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's files
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


def count_parameters(model: ModelConfig) -> int | None:
    """Parameters of a pretrained model in a local folder, from the headers of its safetensors files.

    None when unknown: a hub id, a new model, other formats. A new head's few parameters are not counted.
    """
    if model.path is None:
        return None
    try:
        return sum(map(_parameters_in, Path(model.path).expanduser().glob("*.safetensors"))) or None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def refuse_adapter(model: ModelConfig) -> None:
    """Raises ConfigError when `model.path` is a folder with an adapter, which is not a model by itself."""
    if model.path is not None and (Path(model.path).expanduser() / ADAPTER_CONFIG).exists():
        raise ConfigError(
            f"model.path {model.path}: this folder holds an adapter and not the model that it belongs to. To train on "
            "from the two together, merge them with `raytrain export RUN FOLDER`, and give model.path=FOLDER"
        )


def untrusted_code(option: str, path: str | None, model: ModelConfig) -> str | None:
    """The message for a model or tokenizer that could not be loaded because it brings Python code, which Transformers
    runs only on request. None: it brings none, or is trusted.

    Args:
        option: The dotted option that names `path`.
    """
    files = [] if model.trust_remote_code or path is None else own_code(path, model.revision)
    if not files:
        return None
    return (
        f"{option} {path}: it brings Python code of its own ({', '.join(files)}), which is not run unless you trust "
        "it: read the code, then set model.trust_remote_code=true"
    )


def own_code(path: str, revision: str | None = None) -> list[str]:
    """The Python files that the config of a model or tokenizer refers to, in a local folder or in the hub's cache."""
    names = []
    for file in ("config.json", "tokenizer_config.json"):
        try:
            classes = json.loads(Path(_local_file(path, file, revision)).read_text(encoding="utf-8"))["auto_map"]
            for given in classes.values():
                each = given if isinstance(given, list) else [given]  # a slow and a fast tokenizer
                names += [f"{name.rpartition('--')[2].rpartition('.')[0]}.py" for name in each if name]
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
    return list(dict.fromkeys(names))


def _local_file(path: str, file: str, revision: str | None) -> str:
    """Raises OSError when it is neither in a folder nor in the hub's cache."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder / file)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, file, revision=revision)
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        raise FileNotFoundError(f"{path}/{file}")
    return found


def _parameters_in(path: Path) -> int:
    """Raises ValueError or KeyError when it is not a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file")
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
