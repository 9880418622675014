"""Training an adapter: the same losses at every number of workers and every ZeRO stage, and small checkpoints."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny import TINY_BERT, tiny_tokenizer
from tiny_engine import NOTHING_KEPT, assemble, dealt_micro_batches
from torch import Tensor, nn

from raytrain.checkpoint.ranges import StateRange
from raytrain.config import ModelConfig, OptimizerConfig, Precision, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import load_ranges, num_trained, owned_ranges
from raytrain.models.build import build_with_head
from raytrain.steps.batches import micro_batch_seed

LABELS, MICRO_BATCHES, RATE = ["a", "b", "c"], 4, 1e-2
LORA = {"rank": 3, "dropout": 0.3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained encoder without a head or a pooler."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("base")
    tiny_tokenizer(folder)
    torch.manual_seed(3)
    BertForMaskedLM(BertConfig(**{**TINY_BERT, "initializer_range": 0.2})).save_pretrained(folder)
    return str(folder)


def new_model(base: str, adapter: dict[str, Any] | None, training: TrainingConfig | None = None) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"path": base, "adapter": adapter})
    return build_with_head("AutoModelForSequenceClassification", config, LABELS, training or TrainingConfig())


def new_engine(base: str, adapter: dict[str, Any], stage: int, checkpoints: bool = False) -> Engine:
    training = TrainingConfig(
        global_batch_size=12,
        micro_batch_size=3,
        zero_stage=stage,
        dropout=0.1,
        gradient_checkpointing=checkpoints,
        optimizer=OptimizerConfig(learning_rate=RATE),
        deepspeed=NOTHING_KEPT if stage == 3 else {},
    )
    model = new_model(base, adapter, training)
    micro_steps = MICRO_BATCHES // dist.get_world_size()
    return Engine(
        model, training, precision=Precision.FP32, device=torch.device("cpu"), num_micro_steps=micro_steps
    )


def batch_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    input_ids = torch.randint(5, 40, (12, 6), generator=generator)
    return {"input_ids": input_ids, "labels": input_ids[:, 0] % len(LABELS)}


def loss_sum(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits.float()
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum", ignore_index=-100)


def train(engine: Engine, steps: range) -> list[float]:
    """The mean loss of each step, over all workers."""
    losses = []
    for step in steps:
        batch = batch_of(step % 2)
        mine, numbers = dealt_micro_batches(batch, MICRO_BATCHES)
        seeds = [micro_batch_seed(0, step, number) for number in numbers]
        found = engine.train_step(mine, loss_sum, len(batch["labels"]), RATE, seeds)
        total = torch.tensor(found.loss_sum, dtype=torch.float64)
        dist.all_reduce(total)
        losses.append(float(total) / len(batch["labels"]))
    return losses


class Held:
    """What all workers have saved, in memory."""

    def __init__(self, saved: list[list[StateRange]]):
        self._saved = saved

    def load(self, wanted: Any) -> None:
        whole: dict[str, dict[str, Tensor]] = {}
        for one in wanted:
            if one.kind not in whole:
                whole[one.kind] = assemble(self._saved, one.kind)
            one.target.copy_(whole[one.kind][one.name][one.start : one.start + one.target.numel()])


def trained_and_saved(base: str, adapter: dict[str, Any], stage: int) -> tuple[list[float], list[StateRange], int]:
    """(losses of 6 steps, what this worker saves after 3, trained elements)."""
    engine = new_engine(base, adapter, stage)
    with contextlib.closing(engine):
        losses = train(engine, range(3))
        saved, count = owned_ranges(engine), num_trained(engine)
        return losses + train(engine, range(3, 6)), saved, count


def continued(base: str, adapter: dict[str, Any], stage: int, saved: list[list[StateRange]]) -> list[float]:
    engine = new_engine(base, adapter, stage)
    with contextlib.closing(engine):
        load_ranges(engine, Held(saved), 3)
        return train(engine, range(3, 6))


@pytest.mark.parametrize(
    "adapter", [LORA, pytest.param({**LORA, "dora": True, "also_train": ["LayerNorm"]}, marks=pytest.mark.slow)]
)
def test_losses_do_not_depend_on_stage_or_size(base: str, adapter: dict[str, Any]) -> None:
    found = {(size, stage): run_workers(trained_and_saved, size, base, adapter, stage) for size, stage in CASES}
    first = found[CASES[0]][0][0]
    assert first[-1] < first[1] - 0.05, "it learns"
    for case, workers in found.items():
        assert workers[0][0] == pytest.approx(first, abs=1e-6), case
        saved = [ranges for _, ranges, _ in workers]
        num_saved = sum(tensor.numel() for ranges in saved for one in ranges for tensor in one.tensors.values())
        assert num_saved == 3 * workers[0][2], "the base is not saved"
    for (_, stage), (size, other) in CROSSINGS:
        saved = [ranges for _, ranges, _ in found[2, stage]]
        again = run_workers(continued, size, base, adapter, other, saved)
        assert again[0] == pytest.approx(first[3:], abs=1e-6), (stage, size, other)


CASES = [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
CROSSINGS = [((2, 3), (1, 1)), ((2, 1), (2, 3)), ((2, 0), (1, 2))]
