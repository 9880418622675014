"""Options of a model and of its training: what is computed, and what is refused before work starts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from running import tiny_run
from safetensors.torch import load_file
from saved_models import save_best
from tiny import make_reviews, tiny_encoder, tiny_tokenizer
from torch import nn
from whole_run import next_life, without_ray

import raytrain
from raytrain.config import ModelConfig, RunConfig, TrainingConfig
from raytrain.config.io import parse_config
from raytrain.elastic.allocation import Terms
from raytrain.errors import ConfigError
from raytrain.inference.export import ExportRequest, export_model
from raytrain.models.build import build_with_head
from raytrain.models.depths import depths_of
from raytrain.models.new_tokens import add_rows
from raytrain.models.token_losses import losses_at_targets
from raytrain.models.tokenizer import load_tokenizer
from raytrain.runs.preflight import check
from raytrain.runs.run import run_training
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.smoothing import training_loss
from raytrain.training.outcome import RunStatus, StopReason
from raytrain.training.records import read_jsonl

STATE = {"labels": ["negative", "positive"]}
IA3 = {"kind": "ia3", "targets": ["key", "value", "dense"], "feedforward": ["output.dense"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(make_reviews(40, 0)), path)
    return str(path)


def run_config(base: str, rows: str, model: dict[str, Any], *overrides: str) -> RunConfig:
    raw = {
        "name": "answers",
        "task": {"kind": "sequence_classification", **STATE},
        "model": {"path": base, **model},
        "data": {"train": {"path": rows}},
    }
    return parse_config(raw, list(overrides))


class Fixed(nn.Module):
    """A language model whose logits are its parameter."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.values = nn.Parameter(logits)

    def forward(self, input_ids: torch.Tensor) -> Any:
        return type("Output", (), {"logits": self.values})


def test_smoothed_losses_of_tokens_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.randn(2, 5, 7)) for _ in range(2))
    theirs.data.copy_(ours.data)
    labels = torch.randint(0, 7, (2, 5))
    labels[0, 1] = labels[1, 3] = -100
    model = Fixed(ours)
    losses = losses_at_targets(model, {"input_ids": labels}, labels, 0.3)[0]
    expected = nn.functional.cross_entropy(theirs.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=0.3)
    torch.testing.assert_close(losses.sum(), expected)
    losses.sum().backward()
    expected.backward()
    torch.testing.assert_close(model.values.grad, theirs.grad)


def test_an_evaluation_reports_the_plain_loss(base: str, rows: str) -> None:
    config = run_config(base, rows, {})
    task = make_task(config.task, 16)
    model = task.build_model(config.model, STATE, config.training).eval()
    ids = torch.randint(5, 40, (4, 6))
    weights = torch.tensor([1.0, 2.0, 1.0, 1.0])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1, -100])}
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.log_softmax(-1)
        plain = -log_p[range(3), [0, 1, 1]]
        smooth = 0.9 * plain - 0.1 * log_p[:3].mean(-1)
        for more, of_samples in (({}, torch.ones(3)), ({"weights": weights}, weights[:3])):
            torch.testing.assert_close(task.predict(model, batch | more)[0], (plain * of_samples).sum())
            torch.testing.assert_close(training_loss(task, 0.1)(model, batch | more), (smooth * of_samples).sum())


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ({}, ["task.multi_label=true", "training.label_smoothing=0.1"], "task.multi_label=true has another loss"),
        ({}, ["task.loss=my_losses:focal", "training.label_smoothing=0.1"], "has no effect on task.loss"),
        ({}, ["training.label_smoothing=1"], "label_smoothing"),
        ({}, ["training.ema_decay=1"], "ema_decay"),
        ({}, ["training.layerwise_lr_decay=0"], "layerwise_lr_decay"),
        ({"attention": "flash_attention_2"}, ["training.precision=fp32"], "computes on GPUs in 16 bits alone"),
        ({"attention": "flash"}, [], "model.attention"),
        ({"adapter": {**IA3, "rank": 4}}, [], "model.adapter.rank has no effect on model.adapter.kind=ia3"),
        ({"adapter": {"feedforward": ["key"]}}, [], "feedforward has no effect on model.adapter.kind=lora"),
    ],
)
def test_options_that_exclude_each_other(
    base: str, rows: str, model: dict[str, Any], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config(base, rows, model, *overrides)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"attention": "flash_attention_2"}, "needs the package flash-attn, which is not installed"),
        ({"adapter": {**IA3, "feedforward": ["query"]}}, "model.adapter.feedforward: the model has no module called"),
    ],
)
def test_what_the_model_or_the_machine_lacks(base: str, rows: str, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(run_config(base, rows, model))


def built(tmp_path: Path, config: dict[str, Any], attention: str = "auto", **training: Any) -> Any:
    torch.manual_seed(0)
    model = ModelConfig.model_validate(
        {"config": config, "tokenizer": tiny_tokenizer(tmp_path / "tokenizer"), "attention": attention}
    )
    return build_with_head("AutoModelForSequenceClassification", model, STATE["labels"], TrainingConfig(**training))


SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def test_attentions_agree_and_are_those_that_were_asked_for(tmp_path: Path) -> None:
    ids, found = torch.randint(5, 40, (2, 6)), []
    for attention in ("eager", "sdpa"):
        model = built(tmp_path, {"model_type": "bert", **SMALL}, attention).eval()
        assert model.config._attn_implementation == attention
        found.append(model(input_ids=ids).logits.detach())
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises(ConfigError, match=r"model.attention=sdpa: \w+ has no such attention: set model.attention=auto"):
        built(tmp_path, {"model_type": "deberta-v2", **SMALL}, "sdpa")


@pytest.mark.parametrize(
    ("config", "lowest", "highest"),
    [
        ({"model_type": "bert", **SMALL}, "embeddings.word_embeddings", "classifier"),
        ({"model_type": "deberta-v2", **SMALL, "relative_attention": True}, "rel_embeddings", "classifier"),
        ({"model_type": "llama", **SMALL}, "embed_tokens", "score"),
        ({"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}, "wpe", "ln_f"),
    ],
)
def test_depths(tmp_path: Path, config: dict[str, Any], lowest: str, highest: str) -> None:
    depths, top = depths_of(built(tmp_path, config))
    assert top == 3
    for name, depth in depths.items():
        if ".0." in name or ".1." in name:
            assert depth == (1 if ".0." in name else 2), name
        if lowest in name or highest in name:
            assert depth == (0 if lowest in name else top), name
    assert {0, 1, 2, 3} == {*depths.values()} and any(highest in name for name in depths)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "albert", **SMALL, "embedding_size": 8}, "no list of layers with weights of their own"),
        ({"model_type": "bart", "vocab_size": 64, "d_model": 16}, "has an encoder and a decoder"),
    ],
)
def test_a_model_without_depths(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"training.layerwise_lr_decay.*{message}"):
        built(tmp_path, config, layerwise_lr_decay=0.9)


def test_ia3_is_opened_by_peft_and_merged(base: str, rows: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    best = save_best(run_config(base, rows, {"adapter": IA3}), STATE, tmp_path / "adapted")
    texts = pq.read_table(rows)["text"].to_pylist()
    plain = AutoModelForSequenceClassification.from_pretrained(base, config=AutoConfig.from_pretrained(best))
    theirs, tokenizer = PeftModel.from_pretrained(plain, best).eval(), AutoTokenizer.from_pretrained(best)
    with torch.inference_mode():
        expected = theirs(**tokenizer(texts, return_tensors="pt", padding=True)).logits.softmax(-1).amax(-1).numpy()
    export_model(best, ExportRequest(str(tmp_path / "out")))
    for folder in (best, str(tmp_path / "out")):
        found = [row["probability"] for row in raytrain.load(folder).predict(texts)]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_that_is_resumed_has_the_same_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best model, which is the average, and its evaluations are those of a run that was not interrupted."""
    options = [
        *("training.max_steps=8", "training.epochs=null", "training.eval_every_steps=4", "training.ema_decay=0.8"),
        *("training.best_metric=loss", "checkpoint.save_every_steps=8"),
        *("training.label_smoothing=0.1", "training.neftune_alpha=5", "training.layerwise_lr_decay=0.7"),
    ]
    faults, kept = without_ray(monkeypatch, tmp_path / "runs"), []
    for name, pause in (("whole", None), ("paused", 5)):
        config = tiny_run(tmp_path, name, *options, num_rows=64)
        faults.begin(None)
        if pause:
            assert run_training(config, terms=Terms(until_step=pause)).stop_reason is StopReason.PAUSED
            next_life(faults)
        assert run_training(config).status is RunStatus.FINISHED
        run = tmp_path / "runs" / name
        evaluations = [row["loss"] for row in read_jsonl(Storage(str(run)), "evals.jsonl")]
        kept.append((evaluations, (run / "best" / "model.safetensors").read_bytes()))
        next_life(faults)
        part = load_file(next(run.glob("checkpoints/step_00000008*/*.safetensors")))
        best, name = load_file(run / "best" / "model.safetensors"), "classifier.weight"
        assert json.loads((run / "best" / "raytrain.json").read_text())["step"] == 8
        torch.testing.assert_close(best[name].flatten(), part[f"ema:{name}:0"], rtol=0, atol=0)
        assert not torch.equal(best[name].flatten(), part[f"fp32:{name}:0"])
    assert len(kept[0][0]) == 3 and kept[0] == kept[1]


@pytest.mark.parametrize(
    ("auto_class", "config"),
    [
        ("AutoModelForCausalLM", {"model_type": "gpt2", "vocab_size": 35, "n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("AutoModelForCausalLM", {"model_type": "llama", **SMALL, "vocab_size": 70}),
        ("AutoModelForMaskedLM", {"model_type": "bert", **SMALL, "vocab_size": 38}),
    ],
)
def test_new_tokens_have_the_mean_of_the_others(tmp_path: Path, auto_class: str, config: dict[str, Any]) -> None:
    """Spare rows are used, a tied head stays tied, and one of its own gets rows too."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(transformers.AutoConfig.for_model(**config))
    places = {"config": config, "tokenizer": tiny_tokenizer(tmp_path)}
    known = len(load_tokenizer(ModelConfig.model_validate(places)))
    model.resize_token_embeddings(max(known, model.config.vocab_size), mean_resizing=False)
    before = [part.weight.detach().clone() for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    add_rows(model, ModelConfig.model_validate({**places, "add_tokens": ["<name>", "<place>"]}))
    after = [part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    assert (after[0] is after[1]) == torch.equal(*before)
    for old, new in zip(before, after, strict=True):
        assert len(new) == max(len(old), known + 2) == model.config.vocab_size
        torch.testing.assert_close(new[:known], old[:known])
        torch.testing.assert_close(new[known : known + 2], old[:known].mean(0).expand(2, -1))
    assert model(input_ids=torch.tensor([[known, known + 1]])).logits.shape[-1] == len(after[0])


def test_new_tokens_are_trained_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "plain")
    plain = load_tokenizer(ModelConfig.model_validate({"path": tokenizer}))
    options = ["model.add_tokens=[film,<x>]", "training.max_steps=4", "training.epochs=null"]
    config = tiny_run(tmp_path, "new", *options, num_rows=64)
    with pytest.raises(ConfigError, match=r"model.add_tokens: the tokenizer of .* has the token 'film' already"):
        check(config)
    without_ray(monkeypatch, tmp_path / "runs").begin(None)
    config = tiny_run(tmp_path, "new", "model.add_tokens=[filmstory,<x>]", *options[1:], num_rows=64)
    result = run_training(config)
    assert result.status is RunStatus.FINISHED and result.final_metrics, "best/ was measured"
    best = tmp_path / "runs" / "new" / "best"
    saved = load_tokenizer(ModelConfig.model_validate({"path": str(best)}))
    assert len(saved) == len(plain) + 2 and saved.convert_tokens_to_ids("<x>") == len(plain) + 1
    assert saved("a filmstory")["input_ids"][2] == len(plain)
    assert raytrain.load(str(best))("a good <x>")["predicted_label"] in ("negative", "positive")


def test_new_tokens_and_an_adapter_exclude_each_other(base: str, rows: str) -> None:
    with pytest.raises(ConfigError, match=r"model.add_tokens are rows of the embedding, which stay as they are"):
        run_config(base, rows, {"adapter": {}, "add_tokens": ["<x>"]})
