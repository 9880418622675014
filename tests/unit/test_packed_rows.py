"""Several samples in a row: each is computed as if it were alone, for every model that the probe lets pass."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from chat_templates import TINY_CHAT, chat_tokenizer
from families import enlarge, tiny_config
from tiny import context

from raytrain.config import CausalLmConfig, ModelConfig, RunConfig, TrainingConfig
from raytrain.config.chat import ChatConfig
from raytrain.data.items import EvalBatch, StepBatch
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED, Batch
from raytrain.tasks.packing import pack
from raytrain.training import packing
from raytrain.training.evaluate import to_tensors
from raytrain.training.packing import PackedSource, why_not_packed

CPU = torch.device("cpu")
KEEP_APART = ("gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj", "llama", "mistral", "modernbert-decoder")
KEEP_APART += ("olmo2", "phi3", "qwen2", "qwen3", "smollm3")
LEAK = ("bloom", "falcon", "mamba", "mpt", "opt")
LENGTHS = (23, 1, 38, 7, 2, 31)


def lm() -> Any:
    return make_task(CausalLmConfig(kind="causal_lm"), 40)


def samples(lengths: tuple[int, ...] = LENGTHS) -> pa.Table:
    rng = np.random.default_rng(0)
    ids = [rng.integers(4, 64, length).tolist() for length in lengths]
    return pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32())), "num_bytes": list(lengths)})


def model_of(family: str, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fields = {**tiny_config(family), **changes}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[fields.pop("model_type")](**fields)).eval()
    enlarge(model)
    return model


def collated(table: pa.Table) -> Batch:
    return lm().collate(table, context(len(table)))


def gradients(model: Any, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss: Any = sum(lm().loss_sum(model, to_tensors(batch, CPU)) for batch in batches)
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("one_row", [True, False])
def test_each_sample_is_in_a_row_once_with_its_own_targets(one_row: bool) -> None:
    batch = collated(samples())
    packed = pack(batch, one_row=one_row)
    rows, row_len = packed["input_ids"].shape
    assert (rows, row_len) == ((1, sum(LENGTHS)) if one_row else (3, max(LENGTHS)))
    found = []
    for ids, places, labels in zip(*(packed[name] for name in ("input_ids", "position_ids", "labels")), strict=True):
        starts = [*np.flatnonzero(places == 0), row_len]
        for start, stop in itertools.pairwise(starts):
            assert places[start:stop].tolist() == list(range(stop - start))
            assert labels[stop - 1] == IGNORED  # else it would be the first token of the next sample
            assert labels[start : stop - 1].tolist() in (ids[start + 1 : stop].tolist(), [IGNORED] * (stop - start - 1))
            found.append(ids[start:stop].tolist())
    assert sorted(one for one in found if any(one)) == sorted(samples()["input_ids"].to_pylist())
    assert lm().target_weight(packed) == lm().target_weight(batch) == sum(LENGTHS) - len(LENGTHS)


@pytest.mark.parametrize("family", KEEP_APART)
def test_packed_is_alone_in_loss_and_gradient(family: str) -> None:
    # In a config of GPT-J and GPT-2 dropout is on; the model is in eval mode.
    model, batch = model_of(family), collated(samples())
    assert why_not_packed(model, lm(), CPU, one_row=False, may_be_random=True) is None
    assert not model.training
    model.eval()
    alone, wanted = gradients(model, [collated(samples().slice(row, 1)) for row in range(len(LENGTHS))])
    scale = max(float(one.abs().max()) for one in wanted.values())
    for one_row in (True, False):
        loss, found = gradients(model, [pack(batch, one_row=one_row)])
        assert loss == pytest.approx(alone, rel=1e-5)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            assert float((gradient - wanted[name]).abs().max()) < 1e-5 * scale, name


@pytest.mark.parametrize("family", LEAK)
@pytest.mark.parametrize("one_row", [True, False])
def test_a_model_that_attends_across_samples_is_found(family: str, one_row: bool) -> None:
    model = model_of(family)
    reason = why_not_packed(model, lm(), CPU, one_row=one_row, may_be_random=True)
    assert reason is not None
    assert reason.startswith(type(model).__name__)


def test_the_probe_finds_a_mask_of_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, Transformers does not look at positions, and attends across samples without a warning."""
    model, task = model_of("llama"), lm()

    def with_mask(batch: Batch, *, one_row: bool) -> Batch:
        packed = pack(batch, one_row=one_row)
        return {**packed, "attention_mask": np.ones_like(packed["input_ids"])}

    monkeypatch.setattr(task, "packed", with_mask)
    for one_row in (True, False):
        assert "apart" in (why_not_packed(model, task, CPU, one_row=one_row, may_be_random=True) or "")


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_probe_decides_alike_in_bf16(family: str) -> None:
    model = model_of(family).to(torch.bfloat16)
    reason = why_not_packed(model, lm(), CPU, one_row=False, may_be_random=True)
    assert (reason is None) == (family == "llama")


def test_random_numbers_are_found_wherever_they_are_drawn() -> None:
    """In Llama dropout is no module: it is drawn inside the attention."""
    model = model_of("llama", attention_dropout=0.1)
    assert "random" in (why_not_packed(model, lm(), CPU, one_row=False, may_be_random=False) or "")
    assert why_not_packed(model, lm(), CPU, one_row=False, may_be_random=True) is None


def test_an_adapter_is_packed_as_its_base() -> None:
    peft = pytest.importorskip("peft")
    for family in ("llama", "bloom"):
        model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules="all-linear"), model_of(family))
        reason = why_not_packed(model, lm(), CPU, one_row=False, may_be_random=False)
        assert (reason is None) == (family == "llama"), reason


def test_answers_of_chats_have_the_same_loss_packed(tmp_path: Any) -> None:
    folder = chat_tokenizer(tmp_path)
    task: Any = make_task(ChatConfig.model_validate({"kind": "chat", "format": "prompt_completion"}), 250)
    config = ModelConfig(config=TINY_CHAT, tokenizer=folder)
    rows = pa.table({"prompt": ["a", "say it", "what"] * 2, "completion": ["x" * (1 + 17 * i) for i in range(6)]})
    table = task.encode(rows, load_tokenizer(config), {}).table
    torch.manual_seed(0)
    model = task.build_model(config, {}, TrainingConfig()).eval()
    batch = task.collate(table, context(len(table)))
    packed = task.packed(batch, one_row=False)
    assert len(packed["input_ids"]) < len(batch["input_ids"])
    with torch.no_grad():
        losses = [float(task.loss_sum(model, to_tensors(one, CPU))) for one in (batch, packed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def config_of(**training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x",
            "task": {"kind": "causal_lm"},
            "model": {"path": "unused"},
            "data": {"train": {"path": "unused"}},
            "training": training,
        }
    )


@pytest.mark.parametrize(
    ("family", "changes", "how", "is_packed"),
    [
        ("llama", {}, "auto", True),
        ("llama", {}, "on", True),
        ("llama", {}, "off", False),
        ("llama", {"attention_dropout": 0.1}, "auto", False),
        ("llama", {"attention_dropout": 0.1}, "on", True),
        ("opt", {"dropout": 0.0}, "auto", False),
        ("opt", {"dropout": 0.0}, "on", None),
    ],
)
def test_what_is_packed_and_what_is_said(
    family: str, changes: dict[str, Any], how: str, is_packed: bool | None
) -> None:
    engine: Any = SimpleNamespace(module=model_of(family, **changes), device=CPU)
    events: list[dict[str, Any]] = []
    log: Any = SimpleNamespace(event=lambda kind, **fields: events.append(fields))
    control: Any = SimpleNamespace(gather=lambda value: [None, value])  # beside a worker that has nothing to say
    source = _Source([])
    if is_packed is None:
        with pytest.raises(ConfigError, match="training.packing=on: OPTForCausalLM does not keep samples in one row"):
            packing.packed_source(source, config_of(packing=how), lm(), engine, control, log)
        return
    found = packing.packed_source(source, config_of(packing=how), lm(), engine, control, log)
    assert isinstance(found, PackedSource) == is_packed
    assert [(event["is_used"], event["one_row"]) for event in events] == ([] if how == "off" else [(is_packed, False)])
    assert all((event["reason"] is None) == is_packed for event in events)


def test_options_that_do_not_fit_the_task_are_refused() -> None:
    raw = config_of(packing="on").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ValueError, match="training.packing=on is for task.kind=causal_lm and chat"):
        RunConfig.model_validate({**raw, "task": {"kind": "masked_lm"}})
    raw["data"]["balance"] = {"by": "topic"}
    with pytest.raises(ValueError, match="task.cut=stream"):
        RunConfig.model_validate({**raw, "task": {"kind": "causal_lm", "cut": "stream"}})


class _Source:
    """Two micro-batches, and one without samples."""

    def __init__(self, parts: list[Batch]):
        self.parts = parts

    def next_step(self) -> StepBatch:
        batches = [*self.parts, lm().blank(self.parts[0])]
        return StepBatch(0, 0, batches, [0, 1, 2], 1.0, np.arange(6), 102, 0)

    def evaluation(self, split: str) -> Iterator[EvalBatch]:
        yield from ()


@pytest.mark.parametrize("how", ["auto", "on"])
def test_a_source_packs_where_rows_are_saved_and_counts_their_padding(how: str) -> None:
    config = config_of(global_batch_size=6, micro_batch_size=3, packing=how)
    even = collated(samples((9, 8, 7)))
    source = PackedSource(_Source([collated(samples((20, 12, 8))), even]), lm(), config, one_row=False)
    step = source.next_step()
    first, second, blank = step.micro_batches
    assert first["input_ids"].shape == (2, 20)
    assert ("position_ids" in second) == (how == "on")  # no row would be saved
    assert second["input_ids"].shape == (3, 9)
    assert lm().target_weight(blank) == 0
    assert len(blank["input_ids"]) == 1
    assert step.num_padded_tokens == 2 * 20 + 3 * 9


def test_every_probed_length_has_its_case() -> None:
    lengths = np.array(packing.PROBE_LENGTHS)
    packed = pack(packing._probe_samples(64), one_row=False)
    assert packed["input_ids"].shape == (3, lengths.max())
    assert (packed["token"] == 0).any()
