"""The size of a model, from its files."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from raytrain.config import ModelConfig
from raytrain.models.files import count_parameters


def test_all_shards_are_counted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(())}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": torch.zeros(5)}, tmp_path / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    assert count_parameters(ModelConfig(path=str(tmp_path))) == 12 + 1 + 5


def test_what_is_not_known_is_none(tmp_path: Path) -> None:
    assert count_parameters(ModelConfig(path="some/model")) is None
    assert count_parameters(ModelConfig(path=str(tmp_path))) is None
    assert count_parameters(ModelConfig(config={"model_type": "bert"}, tokenizer="x")) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert count_parameters(ModelConfig(path=str(tmp_path))) is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert count_parameters(ModelConfig(path=str(tmp_path))) is None
