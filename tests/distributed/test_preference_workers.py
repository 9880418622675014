"""P2 and P7 for pairs: the same losses at each number of workers and ZeRO stage, with an adapter and without."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from chat_templates import TINY_CHAT, chat_tokenizer
from launcher import run_workers
from tiny import context
from tiny_engine import NOTHING_KEPT, make_engine

from raytrain.config import AdapterConfig, ModelConfig, PreferenceConfig, RewardConfig, TrainingConfig
from raytrain.models.tokenizer import load_tokenizer
from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.tasks import make_task
from raytrain.training.evaluate import to_tensors

PAIRS, MICRO_BATCHES, STEPS = 8, 4, 4
CPU = torch.device("cpu")
PREFERENCE = PreferenceConfig(kind="preference", beta=0.5)
CASES: list[tuple[Any, bool]] = [(PREFERENCE, False), (PREFERENCE, True), (RewardConfig(kind="reward"), True)]


def rows_of(step: int) -> pa.Table:
    """Answers of 1 to 20 characters, the better ones of other letters."""
    numbers = range(step * PAIRS, (step + 1) * PAIRS)
    return pa.table(
        {
            "prompt": [f"say {number}" for number in numbers],
            "chosen": ["ab" * (1 + number % 10) for number in numbers],
            "rejected": ["yz" * (1 + number * 3 % 10) for number in numbers],
        }
    )


def _losses(folder: str, stage: int) -> list[list[float]]:
    """For each case the loss of each step, of this worker's pairs."""
    return [_of_case(folder, stage, *case) for case in CASES]


def _of_case(folder: str, stage: int, section: Any, has_adapter: bool) -> list[float]:
    adapter = AdapterConfig(kind="lora", rank=4) if has_adapter else None
    config = ModelConfig(path=folder, adapter=adapter)
    task: Any = make_task(section, 250)
    tokenizer = load_tokenizer(config)
    torch.manual_seed(0)
    model = task.build_model(config, {}, TrainingConfig())
    tables = [task.encode(rows_of(step), tokenizer, {}).table for step in range(STEPS)]
    if section is PREFERENCE:
        base = task.build_model(ModelConfig(path=folder), {}, TrainingConfig()).eval()
        columns = [task.refer(base, to_tensors(task.collate(table, context(PAIRS)), CPU)) for table in tables]
        kind = pa.list_(pa.float32())
        tables = [
            table.append_column("reference", pa.array(column.tolist(), kind))
            for table, column in zip(tables, columns, strict=True)
        ]
    extra = {"deepspeed": NOTHING_KEPT} if stage == 3 else {}
    engine = make_engine(stage, model=model, num_micro_steps=MICRO_BATCHES // dist.get_world_size(), **extra)
    mine = BatchPlan(PAIRS, MICRO_BATCHES, dist.get_world_size()).micro_batches_of(dist.get_rank(), 1)
    losses = []
    for step, table in enumerate(tables):
        size = PAIRS // MICRO_BATCHES
        parts = [task.collate(table.slice(number * size, size), context(size)) for number in range(MICRO_BATCHES)]
        weight = sum(map(task.target_weight, parts))
        tensors = [to_tensors(parts[number], CPU) for number in mine]
        seeds = [micro_batch_seed(0, step, number) for number in mine]
        losses.append(engine.train_step(tensors, task.loss_sum, weight, 1e-2, seeds).loss_sum / weight)
    engine.close()
    return losses


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2)), 3])
def test_the_same_losses_on_one_worker_and_on_two(tmp_path: Path, stage: int) -> None:
    import transformers

    folder = chat_tokenizer(tmp_path)
    torch.manual_seed(5)
    raw = {key: value for key, value in TINY_CHAT.items() if key != "model_type"}
    config = transformers.LlamaConfig(**raw, initializer_range=0.2, pad_token_id=261)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (alone,) = run_workers(_losses, 1, folder, 0)
    for losses in alone[:2]:
        assert losses[0] == pytest.approx(0.693147, abs=1e-4), "it begins as its own reference"
    for losses in alone:
        assert losses[-1] < losses[0] - 0.05
    both = run_workers(_losses, 2, folder, stage)
    for case, losses in enumerate(alone):
        sums = [sum(parts) for parts in zip(*(worker[case] for worker in both), strict=True)]
        assert sums == pytest.approx(losses, abs=1e-4)
