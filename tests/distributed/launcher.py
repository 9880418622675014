"""Real worker processes over gloo or NCCL, for tests of what needs a process group and no Ray."""

import multiprocessing as mp
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

# A fork server imports the heavy packages once; each worker is then forked from it in milliseconds.
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["MKL_CBWR"] = "AUTO,STRICT"  # as in the workers of a bitwise run; MKL reads it once in a process
_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "deepspeed", "transformers.models.bert.modeling_bert", "pyarrow.fs"])


def run_workers(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0, backend: str = "gloo"
) -> list[Any]:
    """Call `fn(*args)` in `world_size` new processes that form a group.

    Args:
        fn: A function at the top of a module, so that it can be pickled; its result too.
        world_size: Number of processes.
        args: Passed to each of them.
        timeout_s: For all of it; the processes are killed after that.
        backend: nccl: each rank computes on the GPU of its number.

    Returns:
        The results, by rank. Raises AssertionError with the traceback of the first worker that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = os.path.join(folder, "rendezvous")
        pipes, processes = [], []
        for rank in range(world_size):
            receiving, sending = _CONTEXT.Pipe(duplex=False)
            # What the fork server has preloaded is DeepSpeed for CPUs.
            context = _CONTEXT if backend == "gloo" else mp.get_context("spawn")
            place = (rank, world_size, rendezvous, backend)
            process = context.Process(target=_work, args=(fn, *place, sending, args), daemon=True)
            process.start()
            sending.close()
            pipes.append(receiving)
            processes.append(process)
        try:
            return _collect(pipes, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection], deadline_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(open_pipes, timeout=max(0.0, deadline_s - time.monotonic()))
        assert ready, f"workers {sorted(set(range(len(pipes))) - set(results))} did not finish in time"
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                is_good, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise AssertionError(f"worker {rank} died") from None
            assert is_good, f"worker {rank} failed:\n{value}"
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _work(
    fn: Callable[..., Any],
    rank: int,
    world_size: int,
    rendezvous: str,
    backend: str,
    pipe: Connection,
    args: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    try:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            backend,
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        # By value: torch would pass tensors as file descriptors, which die with this process.
        pipe.send_bytes(pickle.dumps((True, fn(*args))))
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        pipe.close()
        # A plain exit can hang in the group's teardown when another worker is already gone.
        os._exit(0)
