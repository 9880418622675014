"""What a model can't run on is found without its weights, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from running import run_cli, tiny_run, write_config
from tiny import TINY_BERT, VOCABULARY, tiny_tokenizer

import raytrain
from raytrain.config import RunConfig
from raytrain.sizing.shape import shape_on_meta
from raytrain.tasks import make_task

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BART = {"model_type": "bart", "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
BART |= {"max_position_embeddings": 32, "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2}
# Each has 32 positions.
LEARNED: dict[str, dict[str, Any]] = {
    "bert": {**TINY_BERT, "max_position_embeddings": 32},
    "roberta": {"model_type": "roberta", **SIZES, "max_position_embeddings": 34, "pad_token_id": 1},
    "gpt2": {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "opt": {"model_type": "opt", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "biogpt": {"model_type": "biogpt", **SIZES, "max_position_embeddings": 32},
    "bart": BART,
}
LEARNED["opt"] |= {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
ROTARY = {"model_type": "llama", **SIZES, "max_position_embeddings": 32}


def count(folder: Path, config: dict[str, Any], max_length: int, **task: Any) -> None:
    run: RunConfig = tiny_run(folder, "shape", f"data.max_length={max_length}")
    model = {"config": config, "tokenizer": tiny_tokenizer(folder / "words")}
    raw = {**run.model_dump(mode="json", exclude_unset=True), "model": model}
    run = RunConfig.model_validate({**raw, "task": {"kind": "sequence_classification", **task}})
    made = make_task(run.task, max_length)
    shape_on_meta(run, made, made.assumed_state())


@pytest.mark.parametrize("kind", list(LEARNED))
def test_more_tokens_than_learned_positions(tmp_path: Path, kind: str) -> None:
    count(tmp_path, LEARNED[kind], 32)
    with pytest.raises(raytrain.ConfigError, match=r"data\.max_length 45 is more than the 32 positions .*at most 32"):
        count(tmp_path, LEARNED[kind], 45)


def test_of_tags_too(tmp_path: Path) -> None:
    task = {"kind": "token_classification", "labels": ["O", "B-A"]}
    count(tmp_path, LEARNED["bert"], 32, **task)
    with pytest.raises(raytrain.ConfigError, match=r"data\.max_length 33 .*at most 32"):
        count(tmp_path, LEARNED["bert"], 33, **task)


def test_computed_positions_have_no_end(tmp_path: Path) -> None:
    count(tmp_path, ROTARY, 300)


def test_sizes_that_do_not_fit_each_other(tmp_path: Path) -> None:
    """Nothing checks the sizes of a GPT-J when it is made: only a call does."""
    sizes = {"model_type": "gptj", "vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    count(tmp_path, {**sizes, "rotary_dim": 8}, 32)
    with pytest.raises(raytrain.ConfigError, match=r"model\.config: a model of these sizes can't run"):
        count(tmp_path, {**sizes, "rotary_dim": 64}, 32)


def test_no_weights_are_made(tmp_path: Path) -> None:
    """70 billion parameters: on the meta device, or not at all."""
    large = {**ROTARY, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    before = torch.get_default_device()
    count(tmp_path, {**large, "num_attention_heads": 64}, 32)
    assert torch.get_default_device() == before


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("plan",), id="plan"),
        pytest.param(("data", "show"), id="data show", marks=pytest.mark.slow),
        pytest.param(("train",), id="train", marks=pytest.mark.slow),
    ],
)
def test_is_found_before_anything_starts(tmp_path: Path, command: tuple[str, ...]) -> None:
    config = write_config(tiny_run(tmp_path, "short", "data.max_length=40"), tmp_path)
    model = f"model={{config: {LEARNED['opt']}, tokenizer: {tiny_tokenizer(tmp_path / 'words')}}}"
    code, output = run_cli(*command, config, model)
    assert code == 2, output
    assert "data.max_length 40 is more than the 32 positions" in " ".join(output.split())
    assert not list(tmp_path.glob("**/manifest.json")), "no data was prepared"


def test_a_tokenizer_with_more_tokens_than_the_embedding(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, BertConfig

    few = BertConfig(**{**TINY_BERT, "vocab_size": len(VOCABULARY) - 3})
    AutoModelForSequenceClassification.from_config(few).save_pretrained(tmp_path / "model")
    tiny_tokenizer(tmp_path / "model")
    message = rf"model\.path .*{len(VOCABULARY)} tokens, .*embedding has {len(VOCABULARY) - 3} rows.*resize_token"
    with pytest.raises(raytrain.ConfigError, match=message):
        raytrain.plan(tiny_run(tmp_path, "few"), {"model": {"path": str(tmp_path / "model")}})
