"""Starting DeepSpeed in a process that may have had other engines before. No Ray."""

import importlib
import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def start_deepspeed(model: nn.Module, optimizer: Any, config: dict[str, Any], device: torch.device) -> Any:
    """A DeepSpeed engine. Collective."""
    choose_accelerator(device)
    # DeepSpeed requires the variable of its own launcher. The device itself is set by `device_rank`.
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    import deepspeed

    # DeepSpeed calls two collectives by names that torch 2.13 deprecates; users can't do anything about it.
    warnings.filterwarnings("ignore", r"`torch.distributed.(all_gather_into|reduce_scatter)_tensor`", FutureWarning)
    with _replaced("deepspeed.comm.torch", "build_shm_op", lambda: None):
        # DeepSpeed's shared-memory collectives for CPUs need a C++ compiler and a minute at the first start, and a
        # segment left behind by a killed group can hang the next one.
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    _restart_counters()
    with _replaced("deepspeed.runtime.bf16_optimizer", "see_memory_usage", lambda *_, **__: None):  # it prints
        engine, _, _, _ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=device.index or 0),
            model=model,
            optimizer=optimizer,
            config=config,
            dist_init_required=False,
        )
    return engine


def _restart_counters() -> None:
    """Reset DeepSpeed's global counters. ZeRO-3 numbers modules and parameters over the life of a process and compares
    the numbers between workers, which may have had different numbers of engines. An engine that failed inside a
    forward pass has also left its modules on a stack."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK, DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    Init.param_id = 0
    inspect.signature(DeepSpeedZeRoOffload._register_deepspeed_module).parameters["count"].default[0] = 0
    FWD_MODULE_STACK.clear()


def choose_accelerator(device: torch.device) -> None:
    """Set DeepSpeed's accelerator to the worker's device: a CPU worker may be on a machine with GPUs."""
    os.environ["DS_ACCELERATOR"] = device.type


@contextmanager
def _replaced(module_name: str, name: str, substitute: Any) -> Iterator[None]:
    """Replace an attribute of a module, given by name: as `import a.b as c`, deepspeed.comm.torch would be PyTorch."""
    module = importlib.import_module(module_name)
    original = getattr(module, name)
    setattr(module, name, substitute)
    try:
        yield
    finally:
        setattr(module, name, original)
