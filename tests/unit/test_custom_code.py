"""Models that bring Python code of their own: they plan and build, and one that is not trusted is told what to set."""

import json
from pathlib import Path

import pytest
from running import run_cli, tiny_run, write_config
from tiny import VOCABULARY, tiny_tokenizer

import raytrain
from raytrain.config import ModelConfig, TrainingConfig
from raytrain.models.build import build_with_head
from raytrain.models.tokenizer import load_tokenizer

CONFIGURATION = """
from transformers import PretrainedConfig

class OddConfig(PretrainedConfig):
    model_type = "odd"

    def __init__(self, width=8, num_words=64, **kwargs):
        super().__init__(**kwargs)
        self.width, self.num_words = width, num_words
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration_odd import OddConfig

class OddForSequenceClassification(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Parameter(torch.zeros(config.num_words, config.width))  # not an nn.Embedding
        self.head = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return SequenceClassifierOutput(logits=self.head(self.table[input_ids].mean(1)))
"""


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """A folder with such a model, as `save_pretrained` of a registered class leaves it, but for its weights."""
    folder = tmp_path / "odd"
    tiny_tokenizer(folder)
    (folder / "configuration_odd.py").write_text(CONFIGURATION)
    (folder / "modeling_odd.py").write_text(MODELING)
    classes = {
        "AutoConfig": "configuration_odd.OddConfig",
        "AutoModelForSequenceClassification": "modeling_odd.OddForSequenceClassification",
    }
    config = {"model_type": "odd", "auto_map": classes, "width": 8, "num_words": len(VOCABULARY)}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_model_that_names_no_embeddings_plans(tmp_path: Path, odd: str) -> None:
    given = {"model": {"path": odd, "trust_remote_code": True}}
    found = raytrain.plan(tiny_run(tmp_path, "odd"), given)
    assert found.shape.num_parameters == len(VOCABULARY) * 8 + 8 * 2 + 2


def test_one_that_is_not_trusted_is_told_so_before_anything_starts(tmp_path: Path, odd: str) -> None:
    config = write_config(tiny_run(tmp_path, "odd"), tmp_path)
    for command in ("plan", "train"):
        code, output = run_cli(command, config, f"model={{path: {odd}}}")
        assert code == 2, output
        assert "brings Python code of its own (configuration_odd.py, modeling_odd.py)" in output
        assert "set model.trust_remote_code=true" in output
        assert "starting Ray" not in output


def test_what_transformers_knows_itself_needs_no_trust(tmp_path: Path) -> None:
    """Models that were published with code before Transformers had them name it still."""
    folder = tmp_path / "bert"
    tiny_tokenizer(folder)
    config = {
        "model_type": "bert",
        "auto_map": {"AutoConfig": "configuration_b.B"},
        "vocab_size": 64,
        "hidden_size": 16,
    }
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    found = raytrain.plan(tiny_run(tmp_path, "bert"), {"model": {"path": str(folder)}})
    assert found.shape.num_parameters > 64 * 16


def test_a_tokenizer_of_its_own_is_told_so(tmp_path: Path) -> None:
    folder = tmp_path / "odd_words"
    tiny_tokenizer(folder)
    (folder / "words.py").write_text("raise RuntimeError('this code must not run')")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": [None, "words.OddTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        raytrain.ConfigError, match=r"model\.tokenizer .*\(words\.py\).*set model\.trust_remote_code=true"
    ):
        load_tokenizer(ModelConfig(config={"model_type": "bert"}, tokenizer=str(folder)))


def test_trusted_code_is_run(odd: str) -> None:
    import torch

    model = ModelConfig(path=odd, trust_remote_code=True)
    with torch.device("meta"):
        built = build_with_head("AutoModelForSequenceClassification", model, ["a", "b", "c"], TrainingConfig())
    assert type(built).__name__ == "OddForSequenceClassification"
