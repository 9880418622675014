"""2,000 workers that meet: at rank 0's key-value store, over gloo, and in a barrier of Ray Train; scale.py prints it.

Each worker is a thread (or a coroutine) that runs the code that a worker runs. Ray is not started.
"""

import asyncio
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from raytrain.engine.process_group import connect
from raytrain.engine.rendezvous import address_of, listen
from raytrain.steps.batches import World

WORKERS, PROCESSES = 2000, 4
GLOO_WORKERS = 64
IMPORT_S = 2.0  # rank 0 listens before it has imported torch; the others are there already


def _peers(ranks: range, address: str, results: Any) -> None:
    """Workers that connect to rank 0, say that they are there, and wait for the last one."""

    def meet(rank: int) -> None:
        store = connect(World(rank, WORKERS), address, None)
        if store.add("arrived", 1) == WORKERS - 1:
            store.set("all", "yes")
        store.wait(["all"])

    with ThreadPoolExecutor(len(ranks)) as threads:
        results.put(sum(1 for _ in threads.map(meet, ranks)))


def at_the_store() -> dict[str, float]:
    """All workers meet at rank 0's key-value store.

    torch looks up the name of each peer's address; where no name server answers, that alone takes 10 s, here too.
    """
    context = multiprocessing.get_context("fork")
    listener, results = listen("127.0.0.1"), context.Queue()
    bounds = [1 + (WORKERS - 1) * number // PROCESSES for number in range(PROCESSES + 1)]
    peers = [
        context.Process(target=_peers, args=(range(bounds[n], bounds[n + 1]), address_of(listener), results))
        for n in range(PROCESSES)
    ]
    started_at_s = time.perf_counter()
    for process in peers:
        process.start()
    time.sleep(IMPORT_S)
    before = _handles()
    store = connect(World(0, WORKERS), address_of(listener), listener)
    store.wait(["all"], timedelta(seconds=300))
    met_s, handles = time.perf_counter() - started_at_s, _handles() - before
    assert sum(results.get() for _ in peers) == WORKERS - 1
    for process in peers:
        process.join()
    return {
        f"{WORKERS} workers meet at the store, s": met_s,
        "... file handles of rank 0": handles,
    }


def over_gloo() -> dict[str, float]:
    """Process groups in threads: gloo connects each worker with each other one."""
    store, before = dist.HashStore(), _handles()
    groups: list[Any] = [None] * GLOO_WORKERS

    def form(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, GLOO_WORKERS, timedelta(seconds=300))

    threads = [threading.Thread(target=form, args=(rank,)) for rank in range(GLOO_WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {f"{GLOO_WORKERS} workers over gloo, file handles of each": (_handles() - before) / GLOO_WORKERS}


def in_a_barrier() -> dict[str, float]:
    """As in `ray.train.collective.broadcast_from_rank_zero`, which the controller serves."""
    from raytrain.elastic.ray_train import _new_synchronizer

    async def meet() -> None:
        synchronizer = _new_synchronizer()
        calls = (
            synchronizer.broadcast_from_rank_zero(
                world_rank=rank, world_size=WORKERS, data=rank, caller_method_name="meet"
            )
            for rank in reversed(range(WORKERS))
        )
        assert await asyncio.gather(*calls) == [0] * WORKERS

    started_at_s = time.perf_counter()
    asyncio.run(meet())
    return {f"{WORKERS} workers in a barrier of Ray Train, s": time.perf_counter() - started_at_s}


def _handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def meetings() -> dict[str, float]:
    """All of them."""
    return {**at_the_store(), **over_gloo(), **in_a_barrier()}
