"""`raytrain export --format gguf`: Transformers reads weights and tokenizer back; what it would not is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import TINY_CHAT
from running import run_cli
from saved_models import save_best
from tiny import byte_tokenizer

import raytrain
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError, TrainingError
from raytrain.inference import gguf_model
from raytrain.inference.export import ExportRequest, export_model
from raytrain.inference.formats import DType, Format
from raytrain.inference.gguf_tokenizer import SPLITS

TEXTS = ["a fine film", "Née 1984: 3,141.59 films!  It's   good\n\n", "日本 and 🎬"]
SIZES = {**TINY_CHAT, "vocab_size": 260, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
QWEN = {"model_type": "qwen2", "tie_word_embeddings": False}


def saved(folder: Path, adapter: dict[str, Any] | None = None, **changes: Any) -> str:
    """best/ of a language model with 260 rows for 258 tokens, whose rows are TEXTS."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = folder / "base"
    byte_tokenizer(base)
    made = json.loads((base / "tokenizer.json").read_text())
    made["model"] |= {"vocab": {**made["model"]["vocab"], "fi": 257}, "merges": [["f", "i"]]}
    (base / "tokenizer.json").write_text(json.dumps(made))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**SIZES, **changes}))
    for _name, weight in model.named_parameters():
        if weight.ndim == 1:  # norms of ones and biases of zeros could be mistaken for others
            weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(base)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    raw: dict[str, Any] = {
        "name": "lm",
        "task": {"kind": "causal_lm"},
        "model": {"path": str(base)} | ({} if adapter is None else {"adapter": adapter}),
        "data": {"train": {"path": str(rows)}, "max_length": 64},
    }
    return save_best(parse_config(raw), {}, folder)


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (DType.FP32, {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}),
        pytest.param(
            DType.BF16, {"model_type": "mistral", "sliding_window": None, "head_dim": 16}, marks=pytest.mark.slow
        ),
        (DType.FP16, QWEN),
        pytest.param(DType.FP32, {"model_type": "qwen3", "head_dim": 128}, marks=pytest.mark.slow),
    ],
)
def test_transformers_reads_it(tmp_path: Path, dtype: DType, changes: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    best, out = saved(tmp_path, **changes), tmp_path / "out"
    found = export_model(best, ExportRequest(str(out), format=Format.GGUF, dtype=dtype))
    assert found.num_rows == len(TEXTS) and found.num_outputs > 50
    assert found.largest_difference < (1e-4 if dtype == DType.FP32 else 0.15)
    assert not (out / "model.safetensors").exists()
    ours, theirs = (AutoTokenizer.from_pretrained(*one) for one in ((best,), (out,)))
    alone = tmp_path / "alone"  # the file has all of the tokenizer
    alone.mkdir()
    shutil.copyfile(out / "model.gguf", alone / "model.gguf")
    inside = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
    for text in [*TEXTS, "end<|endoftext|>"]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"] == inside(text)["input_ids"]
    assert inside.eos_token_id == 256
    assert raytrain.load(out)("a fine film")["loss"] == pytest.approx(
        raytrain.load(best)("a fine film")["loss"], abs=0.1
    )


RULE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def steps(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(rules)}


def cut_by(pattern: str) -> dict[str, Any]:
    return steps({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, RULE)


def changed_tokenizer(best: str, **changes: Any) -> None:
    """Change tokenizer.json of best/, where digits are merged, too."""
    made = json.loads(Path(best, "tokenizer.json").read_text())
    made["model"]["merges"] = [["f", "i"], ["1", "2"]]
    made["model"]["vocab"] |= {"12": 258}
    made["model"]["ignore_merges"] = changes.pop("ignore_merges", False)
    Path(best, "tokenizer.json").write_text(json.dumps({**made, **changes}))
    facts = json.loads(Path(best, "raytrain.json").read_text())
    facts["files"].pop("tokenizer.json")
    Path(best, "raytrain.json").write_text(json.dumps(facts))


NAMED = {
    "llama-bpe": cut_by(next(iter(SPLITS))),
    "qwen2": cut_by(list(SPLITS)[1]),
    "smollm": steps({"type": "Digits", "individual_digits": True}, {**RULE, "use_regex": True}),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_tokenizer_in_the_file_is_compared(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 rows; and a file with another rule or other merges is not written."""
    best = saved(tmp_path)
    changed_tokenizer(best, pre_tokenizer=NAMED[name], ignore_merges=name == "llama-bpe")
    rows = tmp_path / "64.jsonl"
    rows.write_text("".join(f"{json.dumps({'text': f'It is {n}, 12{n} FILMS! fi'})}\n" for n in range(64)))
    request = ExportRequest(str(tmp_path / "out"), format=Format.GGUF, source=str(rows))
    assert export_model(best, request).num_rows == 64
    wrong = {"merges": ["1 2"]} if name == "llama-bpe" else {"pre": "gpt-2"}
    right = gguf_model.gguf_tokenizer
    monkeypatch.setattr(gguf_model, "gguf_tokenizer", lambda *given: replace(right(*given), **wrong))
    refused = ExportRequest(str(tmp_path / "other"), format=Format.GGUF, source=str(rows))
    with pytest.raises(TrainingError, match="the tokenizer in the GGUF file makes other tokens of 64 of 64 rows"):
        export_model(best, refused)
    assert not (tmp_path / "other").exists()


def test_merges_that_llama_cpp_makes_otherwise_are_refused(tmp_path: Path) -> None:
    best = saved(tmp_path)
    changed_tokenizer(best, pre_tokenizer=NAMED["llama-bpe"])
    with pytest.raises(ConfigError, match=r"for its rule, llama-bpe, llama\.cpp looks a whole word up"):
        export_model(best, ExportRequest(str(tmp_path / "out"), format=Format.GGUF))


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    code, printed = run_cli("export", saved(tmp_path, {"rank": 2}), str(tmp_path / "out"), "--format", "gguf")
    assert code == 0, printed
    assert "compared with the trained model on 3 rows" in printed
    assert json.loads((tmp_path / "out" / "raytrain.json").read_text())["export"]["format"] == "gguf"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: gguf" in card and "llama-cli -m model.gguf -no-cnv" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "GPT2LMHeadModel can't be written. GGUF is for language models"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "its positions are scaled"),
        ({"model_type": "mistral", "sliding_window": 8}, "its attention has a window of 8 tokens"),
        ({"attention_bias": True}, "its attention has biases"),
        ({"model_type": "qwen3", "head_dim": 16}, "its heads are 16 wide and not 128"),
    ],
)
def test_what_would_be_read_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    best = saved(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        export_model(best, ExportRequest(str(tmp_path / "out"), format=Format.GGUF))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_a_name_is_refused(tmp_path: Path) -> None:
    best = saved(tmp_path)
    changed_tokenizer(best, normalizer={"type": "Lowercase"})
    with pytest.raises(ConfigError, match=r"the tokenizer can't be written into a GGUF file: .*Lowercase"):
        export_model(best, ExportRequest(str(tmp_path / "out"), format=Format.GGUF))
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".out")] == []
