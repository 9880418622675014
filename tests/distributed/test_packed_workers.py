"""P2 and P7 for packed samples: the losses of padded ones, at each number of workers and ZeRO stage, and what the probe
of the model says there."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny import context
from tiny_engine import make_engine

from raytrain.config import CausalLmConfig
from raytrain.models import token_losses
from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.tasks import make_task
from raytrain.training.evaluate import to_tensors
from raytrain.training.packing import why_not_packed

SAMPLES, MICRO_BATCHES, STEPS = 12, 4, 4
CPU = torch.device("cpu")
ONCE = token_losses.LARGE_ELEMENTS, token_losses.HEAD_ELEMENTS
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PADDED, PACKED, CHUNKED = "padded", "packed", "packed, and few logits at a time"
# (workers, ZeRO stage, dropout, how)
CASES = [
    (1, 0, 0.0, PADDED),
    (2, 1, 0.0, CHUNKED),
    (2, 3, 0.0, PACKED),
    (1, 0, 0.2, PACKED),
    (2, 3, 0.2, PACKED),
]


def model_of(dropout: float) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, intermediate_size=32, attention_dropout=dropout, tie_word_embeddings=True)
    )


def leaking_model() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0))


def batch_of(step: int) -> pa.Table:
    rng = np.random.default_rng(step)
    ids = [rng.integers(0, 9, length).tolist() for length in rng.integers(1, 31, SAMPLES)]
    return pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32())), "num_bytes": [len(row) for row in ids]})


def _losses(stage: int, dropout: float, how: str) -> list[float]:
    """The loss of each step, of this worker's targets."""
    task: Any = make_task(CausalLmConfig(kind="causal_lm"), 32)
    workers, size = dist.get_world_size(), SAMPLES // MICRO_BATCHES
    engine = make_engine(stage, model=model_of(dropout), num_micro_steps=MICRO_BATCHES // workers)
    assert why_not_packed(engine.module, task, CPU, one_row=False, may_be_random=True) is None
    is_random = why_not_packed(engine.module, task, CPU, one_row=False, may_be_random=False) is not None
    assert is_random == (dropout > 0)
    token_losses.LARGE_ELEMENTS, token_losses.HEAD_ELEMENTS = (0, 10 * 64) if how == CHUNKED else ONCE
    mine, losses = BatchPlan(SAMPLES, MICRO_BATCHES, workers).micro_batches_of(dist.get_rank(), 1), []
    for step in range(STEPS):
        table = batch_of(step)
        parts = [task.collate(table.slice(number * size, size), context(size)) for number in range(MICRO_BATCHES)]
        weight = sum(map(task.target_weight, parts))
        batches = [parts[number] for number in mine]
        if how != PADDED:
            batches = [task.packed(batch, one_row=False) for batch in batches]
        seeds = [micro_batch_seed(0, step, number) for number in mine]
        tensors = [to_tensors(one, CPU) for one in batches]
        losses.append(engine.train_step(tensors, task.loss_sum, weight, 1e-2, seeds).loss_sum / weight)
    assert (engine.module.get_output_embeddings() in token_losses._HAS_LAST_WORD) == (how == CHUNKED)
    engine.close()
    return losses


def _work(cases: list[tuple[int, float, str]]) -> dict[Any, list[float]]:
    """The losses of each case; a model that leaks is found by all workers, and can be trained afterwards."""
    found = {case: _losses(*case) for case in cases}
    if dist.get_world_size() == 1:
        return found
    task: Any = make_task(CausalLmConfig(kind="causal_lm"), 32)
    engine = make_engine(3, model=leaking_model(), num_micro_steps=1)
    assert "apart" in (why_not_packed(engine.module, task, CPU, one_row=False, may_be_random=False) or "")
    batch = to_tensors(task.collate(batch_of(0), context(SAMPLES)), CPU)
    engine.train_step([batch], task.loss_sum, 100.0, 1e-2, [0])
    engine.close()
    return found


def test_packed_samples_have_the_same_losses_at_each_size_and_stage() -> None:
    curves: dict[Any, list[float]] = {}
    for workers in (1, 2):
        cases = [case[1:] for case in CASES if case[0] == workers]
        results = run_workers(_work, workers, cases)
        for case in cases:
            curves[workers, *case] = [sum(parts) for parts in zip(*(result[case] for result in results), strict=True)]
    alone, with_dropout = curves[CASES[0]], curves[CASES[3]]
    assert alone[-1] < alone[0]
    assert with_dropout != pytest.approx(alone, abs=1e-4)
    for (workers, stage, dropout, how), losses in curves.items():
        wanted = with_dropout if dropout else alone
        assert losses == pytest.approx(wanted, abs=2e-6), (workers, stage, dropout, how)
