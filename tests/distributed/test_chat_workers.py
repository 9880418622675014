"""P2 and P7 for conversations: the same losses at each number of workers, though answers differ in length."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from chat_templates import TINY_CHAT, chat_tokenizer
from launcher import run_workers
from tiny import context
from tiny_engine import make_engine

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.config.chat import ChatConfig
from raytrain.models.tokenizer import load_tokenizer
from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.tasks import make_task
from raytrain.training.evaluate import to_tensors

SAMPLES, MICRO_BATCHES, STEPS = 12, 4, 6
CPU = torch.device("cpu")


def rows_of(step: int) -> pa.Table:
    """Conversations of one to three answers, of 1 to 40 characters."""
    cells = []
    for sample in range(SAMPLES):
        number = step * SAMPLES + sample
        turns = []
        for turn in range(1 + number % 3):
            answer = {"role": "assistant", "content": "ab" * (1 + number % 20)}
            turns += [{"role": "user", "content": f"say {turn}"}, answer]
        cells.append(json.dumps(turns))
    return pa.table({"messages": cells})


def _losses(folder: str, stage: int) -> list[float]:
    """The loss of each step, of this worker's targets."""
    model_config = ModelConfig(config={**TINY_CHAT, "attention_dropout": 0.1}, tokenizer=folder)
    task: Any = make_task(ChatConfig.model_validate({"kind": "chat", "format": "messages"}), 250)
    tokenizer = load_tokenizer(model_config)
    torch.manual_seed(0)
    model = task.build_model(model_config, {}, TrainingConfig())
    engine = make_engine(stage, model=model, num_micro_steps=MICRO_BATCHES // dist.get_world_size())
    mine = BatchPlan(SAMPLES, MICRO_BATCHES, dist.get_world_size()).micro_batches_of(dist.get_rank(), 1)
    losses = []
    for step in range(STEPS):
        table, size = task.encode(rows_of(step), tokenizer, {}).table, SAMPLES // MICRO_BATCHES
        parts = [task.collate(table.slice(number * size, size), context(size)) for number in range(MICRO_BATCHES)]
        weight = sum(map(task.target_weight, parts))
        tensors = [to_tensors(parts[number], CPU) for number in mine]
        seeds = [micro_batch_seed(0, step, number) for number in mine]
        losses.append(engine.train_step(tensors, task.loss_sum, weight, 1e-2, seeds).loss_sum / weight)
    engine.close()
    return losses


@pytest.mark.slow
def test_the_same_losses_on_one_worker_and_on_two(tmp_path: Path) -> None:
    """With dropout, and ZeRO."""
    folder = chat_tokenizer(tmp_path)
    (alone,) = run_workers(_losses, 1, folder, 0)
    assert alone[-1] < alone[0] - 1
    for stage in (0, 2):
        both = [sum(parts) for parts in zip(*run_workers(_losses, 2, folder, stage), strict=True)]
        assert both == pytest.approx(alone, abs=1e-6)
