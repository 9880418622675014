"""`model.adapter`: what is trained, what best/ holds, and that base and adapter answer together."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from running import tiny_run
from safetensors.torch import load_file, save_file
from saved_models import save_best
from tiny import make_reviews, tiny_encoder
from whole_run import next_life, without_ray

import raytrain
from raytrain.config import ModelConfig, RunConfig, TrainingConfig
from raytrain.config.io import parse_config
from raytrain.elastic.allocation import Terms
from raytrain.errors import CheckpointError, ConfigError, FailureCode
from raytrain.inference.card import find_model, read_card
from raytrain.inference.export import ExportRequest, export_model
from raytrain.inference.formats import DType, Format
from raytrain.inference.predictor import Predictor
from raytrain.models.adapter import add_adapter, has_adapter
from raytrain.models.build import build_with_head
from raytrain.runs.preflight import check
from raytrain.runs.run import run_training
from raytrain.sizing.shape import shape_on_meta
from raytrain.tasks import make_task
from raytrain.training.outcome import StopReason

STATE = {"labels": ["negative", "positive"]}
TAGS = {"labels": ["O", "B-PER"]}
ADAPTER = {"rank": 3, "targets": ["query", "dense"], "also_train": ["LayerNorm"], "dora": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(make_reviews(40, 0)), path)
    return str(path)


def run_config(base: str, rows: str, adapter: dict[str, Any] | None, *overrides: str) -> RunConfig:
    raw = {
        "name": "answers",
        "task": {"kind": "sequence_classification", **STATE},
        "model": {"path": base, "adapter": adapter},
        "data": {"train": {"path": rows}},
    }
    return parse_config(raw, list(overrides))


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory, base: str, rows: str) -> str:
    return save_best(run_config(base, rows, ADAPTER), STATE, tmp_path_factory.mktemp("adapted"))


def logits(folder: str, rows: str, *overrides: str) -> np.ndarray:
    predictor = Predictor.load(read_card(find_model(folder)), overrides, "cpu")
    return np.array(predictor.outputs(predictor.samples_of(pq.read_table(rows))))


def test_the_head_and_what_no_file_has_are_trained_whole(base: str) -> None:
    model = build(base, {"targets": "all-linear"})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {
        "classifier.weight",
        "classifier.bias",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    assert len(trained) == 4 + 2 * 2 * 6, "two matrices for each of six layers, in two blocks"


def build(base: str, adapter: dict[str, Any] | None) -> Any:
    config = ModelConfig.model_validate({"path": base, "adapter": adapter})
    torch.manual_seed(0)
    return build_with_head("AutoModelForSequenceClassification", config, STATE["labels"], TrainingConfig())


def test_the_seed_gives_the_first_weights(base: str) -> None:
    one, other = (build(base, {}).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any("lora_A" in name and one[name].abs().sum() > 0 for name in one)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"targets": ["quarry"]},
            r"targets: the model has no module called 'quarry'; did you mean query\?.* in query, ",
        ),
        ({"targets": "encoder.*quary"}, "targets: the model has no module called 'encoder.*quary'"),
        ({"targets": "*"}, "is not a regular expression"),
        (
            {"targets": ["attention"]},
            "is a BertAttention, and adapters are for linear layers, such as query, key, value",
        ),
        ({"targets": ["classifier"]}, "classifier is trained whole already"),
        ({"also_train": ["norm"]}, "also_train: the model has no module called 'norm'"),
    ],
)
def test_names_that_fit_nothing_are_refused_before_work_starts(
    base: str, rows: str, adapter: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        check(run_config(base, rows, adapter))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"path": "x", "adapter": {"kind": "lara"}}, "adapter.kind"),
        ({"path": "x", "adapter": {"targets": []}}, "adapter.targets and model.adapter.also_train are names"),
        ({"path": "x", "adapter": {"rank": 0}}, "adapter.rank"),
        ({"config": {"model_type": "bert"}, "tokenizer": "x", "adapter": {}}, "adapter is for a pretrained model"),
    ],
)
def test_options_that_can_not_work(model: dict[str, Any], message: str) -> None:
    raw = {"name": "a", "task": {"kind": "sequence_classification"}, "model": model, "data": {"train": {"path": "x"}}}
    with pytest.raises(ConfigError, match=message):
        parse_config(raw)


def test_a_tied_head_is_no_target(base: str) -> None:
    from transformers import BertForMaskedLM

    for adapter in ({"targets": ["decoder"]}, {"also_train": ["word_embeddings"]}):
        config = ModelConfig.model_validate({"path": base, "adapter": adapter})
        with pytest.raises(ConfigError, match=r"shares its weights with"):
            add_adapter(BertForMaskedLM.from_pretrained(base), config)
    config = ModelConfig.model_validate({"path": base, "adapter": {}})
    adapted = add_adapter(BertForMaskedLM.from_pretrained(base), config)
    assert not hasattr(adapted.cls.predictions.decoder, "base_layer"), "an output layer is none of all-linear"


def test_best_is_an_adapter_that_peft_opens(best: str, base: str, rows: str) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    names = {path.name for path in Path(best).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "raytrain.json", "README.md"} <= names
    assert "model.safetensors" not in names
    assert not any("base_layer" in name for name in load_file(f"{best}/adapter_model.safetensors"))
    facts = json.loads(Path(best, "raytrain.json").read_text())
    assert facts["version"] == 2 and facts["base_model"]["path"] == base and len(facts["base_model"]["sha256"]) == 64
    assert facts["adapter"]["rank"] == 3 and "peft" in facts["versions"]

    plain = AutoModelForSequenceClassification.from_pretrained(base, config=AutoConfig.from_pretrained(best))
    theirs, tokenizer = PeftModel.from_pretrained(plain, best).eval(), AutoTokenizer.from_pretrained(best)
    with torch.inference_mode():
        texts = pq.read_table(rows)["text"].to_pylist()
        found = theirs(**tokenizer(texts, return_tensors="pt", padding=True)).logits.numpy()
    ours = logits(best, rows)
    np.testing.assert_allclose(found, ours, atol=1e-5)
    assert np.abs(ours - ours[0]).max() > 0.1, "the answers differ between rows"


def test_a_loaded_model_is_base_and_adapter(best: str) -> None:
    model = raytrain.load(best)
    assert model("a good film")["predicted_label"] in STATE["labels"]
    assert len(model.predict(["a good film"], embeddings=True)[0]["embedding"]) == 16


@pytest.mark.parametrize("dtype", [DType.FP32, DType.BF16])
def test_an_export_is_merged(best: str, rows: str, tmp_path: Path, dtype: DType) -> None:
    found = export_model(best, ExportRequest(str(tmp_path / "out"), dtype=dtype))
    assert found.num_rows == 40
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert "bert.encoder.layer.0.attention.self.query.weight" in weights and not any("lora" in name for name in weights)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    difference = np.abs(logits(best, rows) - logits(str(tmp_path / "out"), rows)).max()
    assert difference < (1e-5 if dtype == DType.FP32 else 0.15)
    facts = json.loads((tmp_path / "out" / "raytrain.json").read_text())
    assert "adapter" not in facts and facts["version"] == 1
    trained = ModelConfig(path=str(tmp_path / "out"))  # where another training may begin
    assert not has_adapter(
        build_with_head("AutoModelForSequenceClassification", trained, STATE["labels"], TrainingConfig())
    )


def test_an_adapter_can_be_copied(best: str, rows: str, tmp_path: Path) -> None:
    export_model(best, ExportRequest(str(tmp_path / "out"), format=Format.ADAPTER))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == Path(best, name).read_bytes()
    np.testing.assert_array_equal(logits(best, rows), logits(str(tmp_path / "out"), rows))
    with pytest.raises(ConfigError, match="--dtype bf16 is for a whole model"):
        export_model(best, ExportRequest(str(tmp_path / "no"), format=Format.ADAPTER, dtype=DType.BF16))


def test_a_whole_model_has_no_adapter_to_copy(base: str, rows: str, tmp_path: Path) -> None:
    whole = save_best(run_config(base, rows, None), STATE, tmp_path)
    with pytest.raises(ConfigError, match="trained without model.adapter"):
        export_model(whole, ExportRequest(str(tmp_path / "out"), format=Format.ADAPTER))


def test_a_base_that_is_gone_moved_or_changed(base: str, rows: str, tmp_path: Path) -> None:
    mine = shutil.copytree(base, tmp_path / "mine")
    best = save_best(run_config(str(mine), rows, {"rank": 2}), STATE, tmp_path / "run")
    expected = logits(best, rows)
    moved = mine.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"an adapter of a base model, which can't be loaded: model.path .*mine"):
        logits(best, rows)
    np.testing.assert_array_equal(logits(best, rows, f"model.path={moved}"), expected)

    weights = load_file(moved / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"][0] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"belongs to other weights than those of .*moved .*was changed since"):
        logits(best, rows, f"model.path={moved}")


def test_files_of_another_adapter(base: str, rows: str, tmp_path: Path) -> None:
    config = run_config(base, rows, {"rank": 2})
    best, other = (save_best(config, STATE, tmp_path / name) for name in "ab")
    whole = run_config(base, rows, {"rank": 4})
    shutil.copy(f"{save_best(whole, STATE, tmp_path / 'c')}/adapter_model.safetensors", other)
    task = make_task(config.task, 64)
    task.load_model(best, config.model, STATE, config.training)
    with pytest.raises(CheckpointError, match="is not of this adapter"):
        task.load_model(other, config.model, STATE, config.training)


def test_an_adapter_is_no_model_to_begin_from(best: str, rows: str) -> None:
    with pytest.raises(ConfigError, match=r"holds an adapter and not the model .*raytrain export RUN FOLDER"):
        check(run_config(best, rows, {}))


def test_a_plan_counts_what_is_trained(base: str, rows: str) -> None:
    config = run_config(base, rows, {"rank": 2, "targets": ["query"]})
    task = make_task(config.task, config.data.max_length)
    shape = shape_on_meta(config, task, STATE)
    head, adapters = 16 * 2 + 2, 2 * 2 * 2 * 16
    assert shape.num_trained == head + adapters == check(config).num_trained
    assert shape.num_parameters > 3000


def test_a_whole_run(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pauses, is resumed, and is measured; a state of another base is refused."""
    mine = shutil.copytree(base, tmp_path / "mine")
    options = [
        *("model.config=null", "model.tokenizer=null", f"model.path={mine}", "model.adapter.dropout=0.2"),
        *("training.max_steps=8", "training.epochs=null", "training.eval_every_steps=4"),
    ]
    config = tiny_run(tmp_path, "a", *options, num_rows=64)
    faults = without_ray(monkeypatch, tmp_path / "runs")
    faults.begin(None)
    assert run_training(config, terms=Terms(until_step=5)).stop_reason is StopReason.PAUSED

    weights = load_file(mine / "model.safetensors")
    changed = {**weights, "bert.embeddings.LayerNorm.bias": weights["bert.embeddings.LayerNorm.bias"] + 1}
    save_file(changed, mine / "model.safetensors", metadata={"format": "pt"})
    next_life(faults)
    refused = run_training(config)
    assert refused.failure_code is FailureCode.CONFIG and "frozen weights are not those of" in refused.message
    save_file(weights, mine / "model.safetensors", metadata={"format": "pt"})
    next_life(faults)
    result = run_training(config)
    assert result.final_metrics, "the test split was measured with base and adapter"

    run = tmp_path / "runs" / "a"
    facts = json.loads((run / "best" / "raytrain.json").read_text())
    state = json.loads(next(run.glob("checkpoints/*/state.json")).read_text())
    assert facts["base_model"]["sha256"] == state["frozen_weights"]
    trained = sum(tensor.numel() for tensor in load_file(run / "best" / "adapter_model.safetensors").values())
    saved = [load_file(part) for part in next(run.glob("checkpoints/*/")).glob("*.safetensors")]
    assert sum(tensor.numel() for part in saved for tensor in part.values()) == 3 * trained
