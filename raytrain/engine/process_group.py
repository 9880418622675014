"""The process group of one worker group, in processes that outlive it. No Ray.

A worker's process forms a group, trains, takes the group down, and forms the next one with other peers, keeping its
imports and its open device. torch.distributed and DeepSpeed keep the group in globals, so both must be told that it
has ended.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from raytrain.steps.batches import World

# How long the workers of a group wait for each other: on a busy machine, a new process may import for a minute.
FORM_TIMEOUT_S = 300.0
# The driver ends a group that hangs. This is how its workers find out if the driver can't.
DRIVER_FIRST_S = 60.0
NEVER_S = 30 * 86400.0


def connect(world: World, address: str, listener: socket.socket | None) -> dist.Store:
    """The key-value store through which the workers find each other. It lives in rank 0's process.

    Args:
        address: host:port of rank 0.
        listener: Rank 0's socket, listening at that address. None on other ranks.

    Raises:
        torch.distributed.DistError: Rank 0 is gone.
    """
    host, _, port = address.rpartition(":")
    return dist.TCPStore(
        host,
        int(port),
        world.world_size,
        is_master=listener is not None,
        timeout=timedelta(seconds=FORM_TIMEOUT_S),
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener is not None else None,
    )


@contextmanager
def process_group(world: World, backend: str, store: dist.Store, patience_s: float | None = None) -> Iterator[None]:
    """Form the group of all workers of `world`, and take it down at the end of the `with` block.

    Args:
        backend: gloo or nccl.
        store: The workers' common store, see `connect`.
        patience_s: Seconds after which a collective counts as hanging. None: never.

    Raises:
        RuntimeError: The other workers did not join in time, or left.
    """
    # torch numbers the groups of a process, and the number is part of the keys by which workers find each other. A
    # group that failed to form is counted but never discounted, so the workers of the next group would not meet.
    dist.distributed_c10d._world.group_count = 0
    dist.init_process_group(
        backend,
        store=store,
        rank=world.world_rank,
        world_size=world.world_size,
        timeout=timedelta(seconds=collective_timeout_s(patience_s)),
    )
    try:
        yield
    finally:
        take_down()


def collective_timeout_s(patience_s: float | None) -> float:
    """How long a worker waits for the others in a collective; see `process_group`."""
    return NEVER_S if patience_s is None else patience_s + DRIVER_FIRST_S


def take_down() -> None:
    """End the process group, whether or not it failed."""
    deepspeed_comm: Any = sys.modules.get("deepspeed.comm.comm")
    if deepspeed_comm is None or deepspeed_comm.cdb is None:
        dist.destroy_process_group()
        return
    deepspeed_comm.destroy_process_group()  # also forgets the groups that DeepSpeed derived from it
    deepspeed_comm.cdb = None
