"""Every architecture that Transformers can classify with: padding, labels and the longest sample.

The families are those of Transformers' own registry, so that one it gains is tried by itself.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from families import ALL, AUTO_CLASSES, FAMILIES, NOT_TINY, enlarge, is_long_tail, tiny_config
from tiny import context, tiny_tokenizer
from torch import nn

from raytrain.config import ModelConfig, RunConfig, TrainingConfig
from raytrain.models.adapter import add_adapter, load_adapter, merged, save_adapter
from raytrain.models.build import READS_PADDING, head_of
from raytrain.sizing.shape import shape_on_meta
from raytrain.tasks import Task, make_task
from raytrain.tasks.base import IGNORED
from raytrain.training.trainer import to_tensors

LABELS = ["a", "b", "c"]
STATE = {"labels": LABELS}
MOST_PARAMETERS = 3_000_000
CPU = torch.device("cpu")
LENGTHS = (9, 5, 7)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_tokenizer(tmp_path_factory.mktemp("words"))


def task_of(kind: str, max_length: int = 16) -> Any:
    return make_task(run_of(kind, {}, "", max_length).task, max_length)


def run_of(kind: str, config: dict[str, Any], tokenizer: str, max_length: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "family",
            "model": {"config": config or {"model_type": "bert"}, "tokenizer": tokenizer or "unused"},
            "task": {"kind": f"{kind}_classification", "labels": LABELS},
            "data": {"train": {"path": "unused"}, "max_length": max_length},
        }
    )


def samples(kind: str) -> pa.Table:
    """As the tokenizer makes them: [CLS], words, [SEP]."""
    generator = np.random.default_rng(0)
    rows = [[2, *generator.integers(5, 30, length - 2).tolist(), 3] for length in LENGTHS]
    if kind == "sequence":
        return pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32())), "labels": pa.array([2, 0, 1])})
    labels = [[IGNORED, *generator.integers(0, 3, len(row) - 2).tolist(), IGNORED] for row in rows]
    columns = {"input_ids": rows, "labels": labels, "sentence_lengths": [[len(row) - 2] for row in rows]}
    return pa.table({name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()})


def build(task: Task, model: ModelConfig, labels: list[str] = LABELS) -> nn.Module:
    torch.manual_seed(0)
    return task.build_model(model, {"labels": labels}, TrainingConfig(dropout=0.0)).eval()


def losses(task: Task, model: nn.Module, parts: list[pa.Table]) -> list[float]:
    found = []
    for part in parts:
        torch.manual_seed(0)  # some architectures draw hashes
        with torch.no_grad():
            found.append(task.loss_sum(model, to_tensors(task.collate(part, context(len(part))), CPU)).item())
    return found


CASES = [
    pytest.param(kind, family, marks=[pytest.mark.slow] if is_long_tail(kind, family) else [], id=f"{kind}-{family}")
    for kind, family in FAMILIES
]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_family(tmp_path: Path, words: str, kind: str, family: str) -> None:
    config = tiny_config(family)
    shape = shape_on_meta(run_of(kind, config, words, 16), task_of(kind), STATE)  # its longest sample fits
    assert shape.num_parameters <= MOST_PARAMETERS, "tests/unit/families.py needs a rule for its sizes"
    task = task_of(kind)
    model: Any = build(task, ModelConfig(config=config, tokenizer=words))
    enlarge(model)
    table = samples(kind)
    alone = losses(task, model, [table.slice(i, 1) for i in range(len(LENGTHS))])
    together = losses(task, model, [table])[0]
    if family not in READS_PADDING:
        assert together == pytest.approx(sum(alone), rel=1e-4), "padding changes the loss"
    model.save_pretrained(tmp_path)
    permuted: Any = build(task, ModelConfig(path=str(tmp_path), tokenizer=words), ["c", "a", "b"])
    with torch.no_grad():
        calls = []
        for each in (model, permuted):
            torch.manual_seed(0)
            calls.append(each(input_ids=torch.tensor([[2, 7, 8, 9, 3]])).logits)
    torch.testing.assert_close(calls[1], calls[0][..., [2, 0, 1]], rtol=1e-4, atol=1e-5)


WITH_ADAPTER = ("albert", "distilbert", "gpt2", "t5", "xlnet")  # heads and linear layers of different kinds
ADAPTED = [
    pytest.param(kind, name, marks=[] if kind == "sequence" and name in WITH_ADAPTER else [pytest.mark.slow])
    for kind, name in FAMILIES
    if name != "ibert"  # has no linear layers but its own
]


@pytest.mark.parametrize(("kind", "family"), ADAPTED)
def test_an_adapter_of_a_family(tmp_path: Path, words: str, kind: str, family: str) -> None:
    """A new one changes nothing; a trained one is the same when it is merged, or saved and loaded."""
    task, table, config = task_of(kind), samples(kind), ModelConfig(config=tiny_config(family), tokenizer=words)
    head = head_of(build(task, config), getattr(transformers, AUTO_CLASSES[kind]))
    adapter = ModelConfig.model_validate({"path": "base", "adapter": {"rank": 2}})
    model, other = (add_adapter(build(task, config), adapter, head).eval() for _ in range(2))
    plain, new = (losses(task, one, [table])[0] for one in (build(task, config), model))
    assert new == pytest.approx(plain, abs=1e-6)
    for parameter in [p for p in model.parameters() if p.requires_grad]:
        parameter.data += 0.2 * torch.randn_like(parameter)
    save_adapter(model, model.state_dict(), str(tmp_path))
    load_adapter(other, str(tmp_path))
    trained, whole, loaded = (losses(task, one, [table])[0] for one in (model, merged(model), other))
    assert abs(trained - plain) > 1e-4
    assert loaded == trained and whole == pytest.approx(trained, rel=1e-4)


@pytest.mark.parametrize("family", READS_PADDING)
def test_a_family_that_reads_padding(words: str, family: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each is listed for a reason, and a user is told."""
    kind = "sequence" if family.startswith("t5gemma") else "token"
    task = task_of(kind)
    with caplog.at_level("WARNING", logger="raytrain"):
        model = build(task, ModelConfig(config=tiny_config(family), tokenizer=words))
    assert f"models of type {family} compute with the padding" in caplog.text
    enlarge(model)
    table = samples(kind)
    alone = losses(task, model, [table.slice(i, 1) for i in range(len(LENGTHS))])
    assert losses(task, model, [table])[0] != pytest.approx(sum(alone), rel=1e-4)


def test_those_left_out_are_families() -> None:
    assert set(NOT_TINY) <= {family for _, family in ALL}
    assert len(FAMILIES) > 0.9 * len(ALL)
