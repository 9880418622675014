"""The memory that is available to the tensors of a worker, on a GPU or in host memory."""

import os
from pathlib import Path

GIB = 2**30
# Used by the driver, cuBLAS and NCCL before the first tensor; and the fraction lost to fragmentation.
CONTEXT_BYTES = GIB
FRAGMENTATION = 0.05
# Fraction of the machine's memory for workers; the rest is for the system, the data and the object store.
HOST_SHARE = 0.8
# A worker process before its first tensor: Python, torch, Transformers, Ray.
PROCESS_BYTES = 700 * 2**20


def usable_of_gpu(memory_bytes: int) -> int:
    """Bytes available of a GPU's memory, as its driver reports it."""
    return max(0, int(memory_bytes * (1 - FRAGMENTATION)) - CONTEXT_BYTES)


def usable_of_machine(num_workers: int) -> int:
    """Bytes of this machine's memory available to each of `num_workers` workers."""
    return max(0, int(machine_bytes() * HOST_SHARE) // num_workers - PROCESS_BYTES)


def machine_bytes() -> int:
    """Memory of this machine, or the limit of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):  # not Linux, or without a limit
            continue
        total = min(total, limit)
    return total
