"""Prepares a new worker's process while the others still train, so that it can join them at once."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain.config import RunConfig
from raytrain.engine.engine import Engine, detect_precision
from raytrain.engine.process_group import process_group
from raytrain.sizing.zero_stage import AUTO, UNKNOWN_MEMORY
from raytrain.steps.batches import World
from raytrain.tasks import make_task
from raytrain.training.device import backend_of, device_of


def warm_up(config: RunConfig, *, use_gpu: bool) -> None:
    """Import the modules that are imported late, read the model's files once, open the device, and take one step with
    an engine of one parameter in a process group of one.

    May raise any exception. A worker that is not warm only takes longer to start, and reports the error then.
    """
    import ray.data

    import raytrain.training.worker  # noqa: F401

    if ray.is_initialized():  # not executed: Ray Data imports many modules on first use
        ray.data.from_items([{"item": ""}]).map_batches(_same)

    device = device_of(config, use_gpu=use_gpu)
    task = make_task(config.task, config.data.max_length)
    task.build_model(config.model, task.assumed_state(), config.training)
    precision = detect_precision(config.training.precision, device)
    with process_group(World(0, 1), backend_of(use_gpu=use_gpu), dist.HashStore()):
        stage = UNKNOWN_MEMORY if config.training.zero_stage == AUTO else config.training.zero_stage
        training = config.training.model_copy(update={"zero_stage": stage})
        engine = Engine(nn.Linear(1, 1), training, precision=precision, device=device, num_micro_steps=1)
        engine.train_step([{"x": torch.ones(1, 1, device=device)}], _sum, 1, 0.0)
        engine.close()


def _same(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _sum(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    weight = next(model.parameters())
    return model(batch["x"].to(weight.dtype)).float().sum()
