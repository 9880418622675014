"""P7 for images: the same losses at one and two workers and at each ZeRO stage, changes of images included; and in
bf16, where the model takes other numbers than the batch has."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import make_engine
from tiny_images import LABELS, encoded, image_config, make_image

from raytrain.config import Precision
from raytrain.models.images import load_image_processor
from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.tasks import make_task
from raytrain.tasks.base import BatchContext
from raytrain.training.evaluate import to_tensors

SAMPLES, MICRO_BATCHES, STEPS = 8, 4, 4
STATE = {"labels": LABELS}


def _losses(stages: list[int], precision: Precision) -> dict[int, list[float]]:
    """By ZeRO stage, the loss of each step, of this worker's samples."""
    config = image_config(Path("/tmp"), random_flip=True, random_crop=0.5)
    task: Any = make_task(config.task, 128)
    cells = [encoded(make_image(number)) for number in range(SAMPLES)]
    rows = pa.table({"image": cells, "label": [LABELS[1 - number % 2] for number in range(SAMPLES)]})
    samples = task.encode(rows, load_image_processor(config.model), STATE).table
    mine = BatchPlan(SAMPLES, MICRO_BATCHES, dist.get_world_size()).micro_batches_of(dist.get_rank(), 1)
    size, found = SAMPLES // MICRO_BATCHES, {}
    for stage in stages:
        torch.manual_seed(0)
        model = task.build_model(config.model, STATE, config.training)
        engine = make_engine(stage, model=model, num_micro_steps=len(mine), precision=precision)
        found[stage] = []
        for step in range(STEPS):
            ids = [np.arange(number * size, (number + 1) * size) for number in mine]
            contexts = [BatchContext(STATE, "train", one, step, np.zeros(size, np.int64), 0, 0) for one in ids]
            batches = [
                to_tensors(task.collate(samples.take(pa.array(one)), context), torch.device("cpu"))
                for one, context in zip(ids, contexts, strict=True)
            ]
            seeds = [micro_batch_seed(0, step, number) for number in mine]
            told = engine.train_step(batches, task.loss_sum, float(SAMPLES), 1e-2, seeds)
            found[stage].append(told.loss_sum / SAMPLES)
    return found


def test_losses_do_not_depend_on_workers_and_stages() -> None:
    alone = np.array(run_workers(_losses, 1, [0], Precision.FP32)[0][0])
    assert alone[-1] < alone[0]
    halves = run_workers(_losses, 2, [0, 1, 3], Precision.FP32)
    for stage in (0, 1, 3):
        assert np.abs(sum(np.array(one[stage]) for one in halves) - alone).max() < 1e-5
    half = run_workers(_losses, 2, [1, 3], Precision.BF16)
    for stage in (1, 3):
        assert np.abs(sum(np.array(one[stage]) for one in half) - alone).max() < 0.1
