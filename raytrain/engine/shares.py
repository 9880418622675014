"""Replicated tensors of which each worker fills a share, completed with few collectives. No Ray.

One collective per tensor and worker would take 13 minutes for a LoRA of a 70B model on 512 workers: 1.7 million
broadcasts of a few hundred bytes. Here the shares of many tensors travel together, in buckets.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 256 << 20  # gathered; a worker sends its share of that


class _Columns(NamedTuple):
    """Columns [start, stop) of a tensor that is laid out with one row per worker."""

    tensor: Tensor
    width: int
    """Columns of the whole layout; the last rows may be incomplete or missing."""
    start: int
    stop: int


def share_of(num_elements: int, world_rank: int, world_size: int) -> tuple[int, int]:
    """[start, stop) of a worker's share of a flat tensor. The shares of the last workers may be smaller, or empty."""
    width = _width(num_elements, world_size)
    return min(world_rank * width, num_elements), min((world_rank + 1) * width, num_elements)


def gather_shares(
    tensors: Sequence[Tensor], world_rank: int, world_size: int, bucket_bytes: int = BUCKET_BYTES
) -> None:
    """Complete tensors of which each worker has filled its share. Collective.

    Args:
        tensors: 1-D, of one dtype and device; the same shapes in the same order on all workers.
        world_rank, world_size: This worker's rank and the number of workers.
        bucket_bytes: The most that is gathered at once.
    """
    if world_size == 1:
        return
    for bucket in _buckets(tensors, world_size, bucket_bytes):
        row = _send(bucket, world_rank)
        gathered = row.new_empty(world_size * row.numel())
        dist.all_gather_into_tensor(gathered, row)
        _receive(bucket, gathered.view(world_size, -1))


def _buckets(tensors: Sequence[Tensor], world_size: int, bucket_bytes: int) -> Iterator[list[_Columns]]:
    """Columns of all tensors, in groups of at most `bucket_bytes` over all workers."""
    bucket: list[_Columns] = []
    room = 0
    for tensor in tensors:
        width, start = _width(tensor.numel(), world_size), 0
        while start < width:
            if room == 0:
                if bucket:
                    yield bucket
                bucket, room = [], max(1, bucket_bytes // (world_size * tensor.element_size()))
            stop = min(width, start + room)
            bucket.append(_Columns(tensor, width, start, stop))
            start, room = stop, room - (stop - start)
    if bucket:
        yield bucket


def _send(bucket: list[_Columns], world_rank: int) -> Tensor:
    """This worker's row of a bucket, padded where its share is smaller."""
    row = bucket[0].tensor.new_zeros(sum(columns.stop - columns.start for columns in bucket))
    offset = 0
    for tensor, width, start, stop in bucket:
        part = tensor[world_rank * width + start : world_rank * width + stop]
        row[offset : offset + part.numel()] = part
        offset += stop - start
    return row


def _receive(bucket: list[_Columns], rows: Tensor) -> None:
    """Put the rows of all workers, shape (workers, columns), into the tensors."""
    offset = 0
    for tensor, width, start, stop in bucket:
        received = rows[:, offset : offset + stop - start]
        complete = tensor.numel() // width
        tensor[: complete * width].view(complete, width)[:, start:stop] = received[:complete]
        rest = tensor[complete * width + start : complete * width + stop]
        if rest.numel():
            rest[:] = received[complete, : rest.numel()]
        offset += stop - start


def _width(num_elements: int, world_size: int) -> int:
    return -(-num_elements // world_size)
