"""What the tensors of a worker can have of a GPU's memory, or of a machine's."""

import os
from pathlib import Path

GIB = 2**30
# What the driver, cuBLAS and NCCL take before the first tensor, and what the allocator can't use between the others.
CONTEXT_BYTES = GIB
FRAGMENTED = 0.05
# Of the machine's memory; the rest is the system's, the data's and the object store's.
HOST_SHARE = 0.8
# A worker's process before its first tensor: Python, torch, Transformers, Ray.
PROCESS_BYTES = 700 * 2**20


def usable_of_gpu(memory_bytes: int) -> int:
    """Of a GPU's memory, as its driver reports it."""
    return max(0, int(memory_bytes * (1 - FRAGMENTED)) - CONTEXT_BYTES)


def usable_of_machine(num_workers: int) -> int:
    """Bytes of this machine's memory for each of `num_workers` workers on it."""
    return max(0, int(machine_bytes() * HOST_SHARE) // num_workers - PROCESS_BYTES)


def machine_bytes() -> int:
    """Memory of this machine, or of the container that it is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):  # another system, or no limit
            continue
        total = min(total, limit)
    return total
