"""A worker's device: which one it is, and how much memory it has."""

import torch

from raytrain.config import RunConfig
from raytrain.sizing.usable import usable_of_gpu, usable_of_machine


def backend_of(*, use_gpu: bool) -> str:
    """The backend of the process group that reduces the gradients."""
    return "nccl" if use_gpu else "gloo"


def device_of(config: RunConfig, *, use_gpu: bool) -> torch.device:
    """This worker's device."""
    if use_gpu:
        # Ray shows each worker only its own GPU, except in a user's TorchTrainer, which selects one of several.
        return torch.device("cuda", torch.cuda.current_device())
    # torch uses all cores by default, and several workers would compete for them.
    torch.set_num_threads(config.workers.cpus)
    return torch.device("cpu")


def usable_bytes(device: torch.device, workers_here: int) -> int:
    """The memory that this worker's tensors can use: of its GPU, which others may use too, or of the machine."""
    if device.type != "cuda":
        return usable_of_machine(workers_here)
    free, total = torch.cuda.mem_get_info(device)
    return min(usable_of_gpu(total), free + torch.cuda.memory_reserved(device))
