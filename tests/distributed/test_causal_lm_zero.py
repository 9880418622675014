"""P2, P7 and P10 for a language model with a tied head: the same losses at each world size and ZeRO stage, from each
checkpoint, and a head that is tied in what is saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny import TINY_GPT, context
from tiny_engine import make_engine

from raytrain.checkpoint.index import RangeIndex
from raytrain.checkpoint.manifest import read_sidecar
from raytrain.checkpoint.ranges import StorageRangeReader, write_ranges
from raytrain.checkpoint.store import sidecar_name, write_sidecar
from raytrain.config import CausalLmConfig, ModelConfig, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import load_ranges, owned_ranges
from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.training.evaluate import to_tensors

SAMPLES, MICRO_BATCHES, SAVED, NEXT = 12, 4, 3, 3
CASES = [(1, 0), (2, 1), (2, 3)]  # (workers, ZeRO stage)
MODEL = ModelConfig(path="unused")
CPU = torch.device("cpu")


def lm() -> Any:
    return make_task(CausalLmConfig(kind="causal_lm"), 32)


def model_of(seed: int = 0) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    fields = {name: value for name, value in TINY_GPT.items() if name != "model_type"}
    return GPT2LMHeadModel(GPT2Config(**fields, bos_token_id=256, eos_token_id=256))  # with dropout


def batch_of(step: int) -> pa.Table:
    """Texts of 2 to 30 tokens: targets differ in number from worker to worker."""
    rng = np.random.default_rng(step)
    ids = [rng.integers(0, 9, length).tolist() for length in rng.integers(2, 31, SAMPLES)]
    return pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32())), "num_bytes": [len(row) - 1 for row in ids]})


def train(engine: Engine, steps: range) -> list[float]:
    """The loss of each step, of this worker's targets."""
    task = lm()
    plan, losses = BatchPlan(SAMPLES, MICRO_BATCHES, dist.get_world_size()), []
    mine = plan.micro_batches_of(dist.get_rank(), 1)
    for step in steps:
        table, size = batch_of(step), SAMPLES // MICRO_BATCHES
        parts = [task.collate(table.slice(number * size, size), context(size)) for number in range(MICRO_BATCHES)]
        weight = sum(map(task.target_weight, parts))
        batches = [parts[number] for number in mine]
        seeds = [micro_batch_seed(0, step, number) for number in mine]
        tensors = [to_tensors(one, CPU) for one in batches]
        losses.append(engine.train_step(tensors, task.loss_sum, weight, 1e-2, seeds).loss_sum / weight)
    return losses


def _train_and_save(root: str, stages: list[int]) -> dict[int, list[float]]:
    """Save a checkpoint in the middle of the training, and the model at its end."""
    found = {}
    for stage in stages:
        engine = make_engine(stage, model=model_of(), num_micro_steps=2)
        losses = train(engine, range(SAVED))
        folder = Storage(f"{root}/{engine.world_size}-{stage}")
        name = f"zero-{engine.world_rank}.safetensors"
        write_sidecar(folder, engine.world_rank, "t", [write_ranges(folder, name, owned_ranges(engine))])
        found[stage] = losses + train(engine, range(SAVED, SAVED + NEXT))
        weights = engine.full_state_dict()
        if weights is not None:
            best = Path(f"{root}/model-{engine.world_size}-{stage}")
            best.mkdir()
            lm().save_model(engine.module, weights, str(best))
        engine.close()
    return found


def _load(root: str, stage: int) -> dict[Any, list[float]]:
    """The losses that follow each checkpoint of two workers, with a model that had other weights."""
    found = {}
    for workers, source in [case for case in CASES if case[0] == 2]:
        folder = Storage(f"{root}/{workers}-{source}")
        sidecars = [read_sidecar(folder.read_bytes(sidecar_name(rank))) for rank in range(workers)]
        index = RangeIndex.of_files({file.name: file.ranges for sidecar in sidecars for file in sidecar.files})
        engine = make_engine(stage, model=model_of(seed=9), num_micro_steps=MICRO_BATCHES)
        load_ranges(engine, StorageRangeReader(folder, index), SAVED)
        found[workers, source] = train(engine, range(SAVED, SAVED + NEXT))
        engine.close()
    return found


def _total(losses_of_workers: Any) -> list[float]:
    return [sum(parts) for parts in zip(*losses_of_workers, strict=True)]


def test_the_same_losses_and_a_tied_head_at_each_size_and_stage(tmp_path: Path) -> None:
    """With dropout, targets that differ in number from worker to worker, and nothing that ZeRO-3 keeps whole."""
    curves: dict[Any, list[float]] = {}
    for workers in (1, 2):
        stages = [stage for size, stage in CASES if size == workers]
        results = run_workers(_train_and_save, workers, str(tmp_path), stages)
        curves |= {(workers, stage): _total(result[stage] for result in results) for stage in stages}
    alone = curves[1, 0]
    assert alone[-1] < alone[0]
    for case, losses in curves.items():
        assert losses == pytest.approx(alone, abs=1e-6), case
    (loaded,) = run_workers(_load, 1, str(tmp_path), 0)
    for source, losses in loaded.items():
        assert losses == pytest.approx(alone[SAVED:], abs=2e-6), source
    for workers, stage in CASES:
        model = lm().load_model(str(tmp_path / f"model-{workers}-{stage}"), MODEL, {}, TrainingConfig())
        assert model.lm_head.weight is model.transformer.wte.weight
        first = lm().load_model(str(tmp_path / "model-1-0"), MODEL, {}, TrainingConfig())
        assert torch.allclose(model.lm_head.weight, first.lm_head.weight, atol=1e-5)
