"""The process group of one worker group, in processes that outlive it. No Ray in here.

A worker's process forms a group, trains, takes the group down, and forms the next one with other neighbours: what it
has imported, and the device that it has opened, stay. torch.distributed and DeepSpeed keep the group in globals, so
both are told that it is gone.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from raytrain.steps.batches import World

# How long the workers of a group wait for each other: processes that start on a loaded machine import for a minute.
FORM_TIMEOUT_S = 300.0
# The driver ends a group that hangs. Its workers find out by themselves only when the driver can't.
DRIVER_FIRST_S = 60.0
NEVER_S = 30 * 86400.0


def connect(world: World, address: str, listener: socket.socket | None) -> dist.Store:
    """The key-value store through which the workers find each other; rank 0's process holds it.

    Args:
        address: host:port of rank 0.
        listener: Rank 0's socket, which listens at that address; the others give None.

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
    """Form the group of all the workers of `world`, and take it down at the end of the `with` block.

    Args:
        backend: gloo or nccl.
        store: Shared by the workers, see `connect`.
        patience_s: Seconds in which something gets done in a group that does not hang; None: it is waited for.

    Raises:
        RuntimeError: The others did not come in time, or left.
    """
    # torch numbers a process's groups, and the number is part of the names under which workers find each other. One
    # that failed to form is counted, but nothing counts it down: the next group's workers would never meet.
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
    """End the process group, whether all went well in it or not."""
    deepspeed_comm: Any = sys.modules.get("deepspeed.comm.comm")
    if deepspeed_comm is None or deepspeed_comm.cdb is None:
        dist.destroy_process_group()
        return
    deepspeed_comm.destroy_process_group()  # forgets the groups that DeepSpeed has made of it, too
    deepspeed_comm.cdb = None
