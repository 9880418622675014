"""Folders of models as a run leaves them in best/, made without a training: their answers differ between rows."""

from pathlib import Path
from typing import Any

from tiny import TINY_BERT, tiny_tokenizer

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.data.prepared import Manifest, SplitInfo
from raytrain.models.adapter import has_adapter, hash_of_base
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.training.export import describe, save_description, save_tokenizer


def model_config(folder: Path, task: dict[str, Any], **data: Any) -> RunConfig:
    """The config of a tiny BERT for a task. `data`: further options of its data."""
    raw = {
        "name": "answers",
        "task": task,
        "model": {"config": {**TINY_BERT, "initializer_range": 0.2}, "tokenizer": tiny_tokenizer(folder / "tokenizer")},
        "data": {"train": {"path": "train.parquet"}, **data},
    }
    return parse_config(raw)


def save_best(config: RunConfig, state: dict[str, Any], folder: Path) -> str:
    """Write best/ of a model that has not been trained; returns its path."""
    import torch

    best = folder / "best"
    best.mkdir(parents=True)
    task = make_task(config.task, config.data.max_length)
    torch.manual_seed(7)
    model = task.build_model(config.model, state, config.training)
    frozen = hash_of_base(model) if has_adapter(model) else None
    for parameter in [p for p in model.parameters() if p.requires_grad] if frozen else []:
        parameter.data += 0.3 * torch.randn_like(parameter)  # a new adapter changes nothing
    task.save_model(model, model.state_dict(), str(best))
    save_tokenizer(config, str(best))
    manifest = Manifest("f", state, 0, {"train": SplitInfo(1, 1, 0, 0, [], "")}, "0123")
    facts = describe(config, manifest, step=1, epoch=1, frozen=frozen)
    save_description(facts, Storage(str(folder)), str(best))
    return str(best)
