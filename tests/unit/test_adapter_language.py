"""Adapters of language models: what best/ holds, that PEFT opens it, and that an export is base and adapter."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import save_best
from tiny import TINY_BERT, TINY_GPT, byte_tokenizer, tiny_tokenizer

import raytrain
from raytrain.config import ModelConfig, TrainingConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError
from raytrain.models.card import model_card
from raytrain.models.language import build_masked_lm

QUESTION = "hi"
TASKS: dict[str, dict[str, Any]] = {
    "causal_lm": {},
    "chat": {"format": "messages", "chat_template": "chatml"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT whose files say that only its end-of-text token ends a text, and whose tokenizer has <|im_end|> too."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {**TINY_GPT, "vocab_size": len(tokenizer), "n_positions": 128, "initializer_range": 0.3}
    GPT2LMHeadModel(GPT2Config(**size, bos_token_id=256, eos_token_id=256)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=TASKS)
def best(request: pytest.FixtureRequest, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp(request.param)
    rows = folder / "rows.jsonl"
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "yes"}]
    rows.write_text("".join(f"{json.dumps({'text': 'a fine film', 'messages': turns})}\n" for _ in range(4)))
    raw = {
        "name": "lm",
        "task": {"kind": request.param, **TASKS[request.param]},
        "model": {"path": base, "adapter": {"rank": 2}},
        "data": {"train": {"path": str(rows)}, "max_length": 64},
    }
    return save_best(parse_config(raw), {}, folder)


def test_peft_opens_it_and_it_ends_texts_as_in_training(best: str, base: str) -> None:
    facts = json.loads(Path(best, "raytrain.json").read_text())
    code = re.search(r"```python\n(.*?)```", model_card(facts, {}), re.DOTALL)
    assert code is not None
    found: dict[str, Any] = {}
    exec(code[1].replace("path/to/this/folder", best).replace(f'"{Path(base).name}"', f'"{base}"'), found)
    model, tokenizer = found["model"].eval(), found["tokenizer"]
    ends = model.generation_config.eos_token_id
    ours = raytrain.load(best, device="cpu")
    answer = ours(QUESTION, max_new_tokens=12)
    if facts["task"]["kind"] == "chat":
        assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>"), 256]
        turns = [{"role": "user", "content": QUESTION}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    else:
        assert ends == 256
        ids = torch.tensor([tokenizer(QUESTION)["input_ids"]])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, pad_token_id=256)
    told = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert told and told == answer["answer" if "answer" in answer else "generated"]


def test_an_export_is_merged_and_ends_texts_alike(best: str, tmp_path: Path) -> None:
    assert raytrain.export(best, tmp_path / "out").agreement == 1.0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names and "adapter_config.json" not in names
    ends = [
        json.loads(Path(one, "generation_config.json").read_text())["eos_token_id"] for one in (best, tmp_path / "out")
    ]
    assert ends[0] == ends[1]
    answers = [raytrain.load(one, device="cpu")(QUESTION, max_new_tokens=12) for one in (best, tmp_path / "out")]
    assert answers[0] == answers[1]


def test_an_encoder_without_a_language_head_is_refused_with_an_adapter(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tiny_tokenizer(tmp_path)
    BertModel(BertConfig(**TINY_BERT)).save_pretrained(tmp_path)
    model = ModelConfig.model_validate({"path": str(tmp_path), "adapter": {}})
    with pytest.raises(ConfigError, match="cls.predictions.bias, which PEFT's files can't hold .* model.adapter out"):
        build_masked_lm(model, TrainingConfig())
