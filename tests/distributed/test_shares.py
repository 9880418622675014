"""Replicated state after a restore: complete on every worker, with few collectives of bounded size."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import make_engine, make_model

from raytrain.checkpoint.ranges import FP32, MOMENTS, Wanted
from raytrain.engine.shares import gather_shares, share_of
from raytrain.engine.zero_state import load_ranges, owned_ranges

# Of three workers: less than one element each, one each, a rest, none, and one that needs more than one bucket.
SIZES = [1, 2, 3, 4, 0, 7, 1000, 31]
BUCKETS = [12, 60, 600, 1 << 20]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_worker_has_every_element(world_size: int) -> None:
    for found in run_workers(_gathered, world_size):
        for bucket_bytes in BUCKETS:
            assert found[bucket_bytes]["is_complete"], f"buckets of {bucket_bytes} bytes"


def test_collectives_are_few_and_bounded() -> None:
    [first, *_] = run_workers(_gathered, 3)
    for bucket_bytes in BUCKETS:
        sizes = first[bucket_bytes]["sizes"]
        assert max(sizes) <= bucket_bytes
        padded = sum(3 * -(-size // 3) for size in SIZES)
        assert sum(sizes) == 4 * padded  # each element once, and at most a padding of two elements per tensor
        assert len(sizes) == -(-padded // 3 // (bucket_bytes // 12))


def test_a_restore_without_zero_takes_one_collective_and_no_broadcast() -> None:
    """One per tensor and worker is 1.7 million for the LoRA of a 70B model on 512 workers."""
    for found in run_workers(_restored, 3):
        assert found == {"all_gather_into_tensor": 1, "is_restored": True}


def test_shares_cover_each_element_once() -> None:
    for num_elements in range(40):
        for world_size in (1, 2, 3, 7, 64):
            shares = [share_of(num_elements, rank, world_size) for rank in range(world_size)]
            assert [i for start, stop in shares for i in range(start, stop)] == list(range(num_elements))


class _Counted:
    """Counts the calls of torch.distributed's collectives, with the bytes of what they fill."""

    def __init__(self) -> None:
        self.calls: dict[str, list[int]] = {}
        for name in ("all_gather_into_tensor", "all_gather", "broadcast"):
            setattr(dist, name, self._counting(name, getattr(dist, name)))

    def _counting(self, name: str, collective: Any) -> Any:
        def call(result: Any, *args: Any, **options: Any) -> Any:
            self.calls.setdefault(name, []).append(result.nbytes)
            return collective(result, *args, **options)

        return call


def _gathered() -> dict[int, dict[str, Any]]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    counted, found = _Counted(), {}
    for bucket_bytes in BUCKETS:
        full = [torch.arange(size, dtype=torch.float32) + 1000 * size for size in SIZES]
        tensors = [torch.full((size,), -1.0) for size in SIZES]
        for tensor, wanted in zip(tensors, full, strict=True):
            start, stop = share_of(tensor.numel(), rank, world_size)
            tensor[start:stop] = wanted[start:stop]
        counted.calls.clear()
        gather_shares(tensors, rank, world_size, bucket_bytes)
        is_complete = all(torch.equal(tensor, wanted) for tensor, wanted in zip(tensors, full, strict=True))
        sizes = counted.calls.get("all_gather_into_tensor", [])
        found[bucket_bytes] = {"is_complete": is_complete, "sizes": sizes}
    return found


class _Numbers:
    """A reader of a checkpoint in which each element is its own position."""

    def load(self, wanted: Any) -> None:
        for one in wanted:
            assert isinstance(one, Wanted)
            one.target.copy_(torch.arange(one.start, one.start + one.target.numel()))


def _restored() -> dict[str, Any]:
    engine = make_engine(0, model=make_model(seed=dist.get_rank()))
    counted = _Counted()
    load_ranges(engine, _Numbers(), optimizer_step=3)
    calls = {name: len(sizes) for name, sizes in counted.calls.items()}
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    is_restored = all(torch.equal(p.flatten(), torch.arange(p.numel()).float()) for p in trained)
    for piece in owned_ranges(engine):
        for kind in (FP32, *MOMENTS):
            if kind in piece.tensors:
                end = piece.start + len(piece.tensors[kind])
                is_restored &= torch.equal(piece.tensors[kind], torch.arange(piece.start, end).float())
    engine.close()
    return {**calls, "is_restored": is_restored}
