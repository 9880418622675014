"""The model that a training starts from, as what others are compared with. torch is imported late."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from raytrain.config import ModelConfig, RunConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.storage import Storage
from raytrain.tasks import Task, TaskState

if TYPE_CHECKING:
    from torch import nn


def reference_identity(model: ModelConfig) -> str:
    """Identifies the weights at `model.path` by their content: of a folder the SHA-256 of its config and its
    safetensors files, of a model of the hub its commit. Raises ConfigError."""
    path = Path(model.path or "").expanduser()
    if path.is_dir():
        names = sorted(file.name for file in (*path.glob("*.safetensors"), *path.glob("config.json")))
        stats = [(name, os.stat(path / name)) for name in names]
        stamps = tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
        return _hash_of_files(str(path), stamps)
    from transformers.utils import cached_file

    try:
        config = cached_file(model.path or "", "config.json", revision=model.revision or "main")
    except OSError as error:
        raise ConfigError(f"model.path {model.path}: its commit can't be found: {error}") from None
    return f"{model.path}@{Path(str(config)).parent.name}"  # the hub's cache has a folder for each commit


@functools.lru_cache
def _hash_of_files(folder: str, stamps: tuple[tuple[str, int, int, int], ...]) -> str:
    """`stamps`: of the files, (name, inode, bytes, time of the last change); read again when one is another."""
    storage = Storage(folder)
    hashes = {name: storage.sha256(name) for name, *_ in stamps}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def load_reference(config: RunConfig, task: Task, state: TaskState) -> "nn.Module":
    """The model that training starts from, fp32, without adapter and dropout. Raises ConfigError."""
    model = config.model.model_copy(update={"adapter": None})
    built: nn.Module = task.build_model(model, state, TrainingConfig()).eval()
    return built.requires_grad_(False)
