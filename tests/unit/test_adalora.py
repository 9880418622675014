"""AdaLoRA in whole runs of one worker, and its schedule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import tiny_run
from safetensors.torch import load_file
from tiny import tiny_encoder
from whole_run import next_life, without_ray

import raytrain
from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.elastic.allocation import Terms
from raytrain.errors import ConfigError
from raytrain.inference.export import ExportRequest, export_model
from raytrain.models.rank_schedule import RankSchedule, rank_schedule
from raytrain.runs.run import run_training
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus, StopReason
from raytrain.training.records import read_jsonl

ADAPTER = "{kind: adalora, rank: 1, targets: [query, value], allocation: {first_rank: 4, every: 2}}"


def config_of(**adapter: Any) -> RunConfig:
    model = {"path": "x", "adapter": {"kind": "adalora", **adapter}}
    raw = {"name": "a", "task": {"kind": "sequence_classification"}, "model": model, "data": {"train": {"path": "x"}}}
    return parse_config(raw)


def test_the_schedule() -> None:
    """A cubic fall from the first budget to the last one, in steps of `every`; what is left follows from it."""
    schedule = RankSchedule(first_rank=6, last_rank=2, begin=10, end=70, every=10, orthogonality=0.5)
    budgets = {update: schedule.budget(update, 3) for update in range(1, 101)}
    assert {u: b for u, b in budgets.items() if b is not None} == {20: 12, 30: 9, 40: 7, 50: 6, 60: 6, 70: 6}
    assert [schedule.left(update, 3) for update in (0, 10, 19, 20, 29, 30, 69, 70, 100)] == [
        18,
        18,
        18,
        12,
        12,
        9,
        6,
        6,
        6,
    ]


def test_what_has_no_room_or_no_effect_is_refused() -> None:
    assert rank_schedule(config_of(), 100) == RankSchedule(12, 8, 10, 70, 10, 0.5)
    assert rank_schedule(config_of(rank=3), 100).first_rank == 5  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="allocation: of 16 steps those from 1 to 11 are for"):
        rank_schedule(config_of(allocation={"every": 11}), 16)
    with pytest.raises(ConfigError, match="allocation.begin 0.8 must be below model.adapter.allocation.end 0.7"):
        config_of(allocation={"begin": 0.8})
    with pytest.raises(ConfigError, match="first_rank 8 must be above model.adapter.rank 8"):
        config_of(allocation={"first_rank": 8})
    with pytest.raises(ConfigError, match="adapter.dora has no effect on model.adapter.kind=adalora"):
        config_of(dora=True)
    with pytest.raises(ConfigError, match="adapter.allocation has no effect on model.adapter.kind=lora"):
        config_of(kind="lora", allocation={"every": 3})
    offloaded = config_of().model_copy(deep=True)
    offloaded.training.deepspeed.update({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    with pytest.raises(ConfigError, match="offload_optimizer does not work with model.adapter.kind=adalora"):
        rank_schedule(offloaded, 100)


def ranks_in(weights: dict[str, torch.Tensor]) -> int:
    return sum(int(torch.count_nonzero(tensor)) for name, tensor in weights.items() if "lora_E" in name)


def test_a_run_and_a_resumed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files; PEFT opens best/, and a merged export computes the same."""
    base = tiny_encoder(tmp_path / "base")
    options = [f"model={{path: {base}, adapter: {ADAPTER}}}", "training.max_steps=12", "training.epochs=null"]
    options += ["data.validation=null", "checkpoint.save_every_steps=6", "training.optimizer.learning_rate=0.01"]
    faults, kept = without_ray(monkeypatch, tmp_path / "runs"), []
    for name, pause in (("whole", None), ("paused", 5)):
        config = tiny_run(tmp_path, name, *options, num_rows=64)
        faults.begin(None)
        if pause:
            assert run_training(config, terms=Terms(until_step=pause)).stop_reason is StopReason.PAUSED
            next_life(faults)
        assert run_training(config).status is RunStatus.FINISHED
        run = tmp_path / "runs" / name
        kept.append((run / "best" / "adapter_model.safetensors").read_bytes())
        rows = list(read_jsonl(Storage(str(run)), "metrics.jsonl"))
        layers = rows[0]["ranks"] // 4
        assert rows[-1]["ranks"] == layers == ranks_in(load_file(run / "best" / "adapter_model.safetensors"))
        assert {"kind": "ranks", "step": 12, "kept": layers, "first": 4 * layers}.items() <= next(
            event for event in read_jsonl(Storage(str(run)), "events.jsonl") if event["kind"] == "ranks"
        ).items()
        next_life(faults)
    assert kept[0] == kept[1]
    opens_with_peft(str(tmp_path / "runs" / "whole" / "best"), base, tmp_path)


def opens_with_peft(best: str, base: str, folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["good film", "a bad bad film"]
    labels = len(json.loads(Path(best, "raytrain.json").read_text())["state"]["labels"])
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    theirs, tokenizer = PeftModel.from_pretrained(plain, best).eval(), AutoTokenizer.from_pretrained(best)
    with torch.inference_mode():
        expected = theirs(**tokenizer(texts, return_tensors="pt", padding=True)).logits.softmax(-1).amax(-1).numpy()
    export_model(best, ExportRequest(str(folder / "out")))
    for path in (best, str(folder / "out")):
        found = [row["probability"] for row in raytrain.load(path).predict(texts)]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_that_removes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is stopped early before it begins to."""
    base = tiny_encoder(tmp_path / "base")
    options = [f"model={{path: {base}, adapter: {ADAPTER}}}", "training.epochs=40", "training.eval_every_steps=1"]
    options += ["training.early_stopping={metric: loss, patience: 1, min_delta: 100}"]
    without_ray(monkeypatch, tmp_path / "runs").begin(None)
    result = run_training(tiny_run(tmp_path, "early", *options, num_rows=64))
    assert result.status is RunStatus.FAILED
    assert "has removed none of its" in str(result.reason)
