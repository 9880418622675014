"""Sums that do not depend on their order, for training.exactness=bitwise. No Ray, no DeepSpeed.

Adding floating-point numbers in another order rounds differently, and the number of workers decides the order. So each
micro-batch's gradient is converted to fixed point, int64 multiples of 2**-exponent, and those are added: integer
addition is associative, whichever worker adds first and whatever algorithm a collective uses. (Reproducible summation
by Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", 2013, does it in floating point; integers have more
bits to the byte, and gloo and NCCL both sum them.)
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# A gradient that is smaller than this part of AdamW's epsilon moves a weight by less than this part of the rate. Each
# micro-batch's is rounded to half of that.
PART_OF_EPSILON = 2**-10
# Elements converted at once: on a CPU the temporary tensors stay in its cache, which makes it seven times as fast.
_CPU_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 24
# Elements per worker that are sent at once; each such block travels in 32 bits if its sums fit into them.
_BLOCK = 1 << 20
# float64 adds this many integers of up to 2**40 exactly.
_ROW = 4096
_SQUARE_BITS = 40
_GOLDEN = 0x1E3779B97F4A7C15  # odd


def exponent_for(epsilon: float) -> int:
    """The exponent of the fixed-point numbers: their unit is 2**-exponent. `epsilon`: of AdamW."""
    return math.ceil(-math.log2(epsilon * PART_OF_EPSILON))


def largest_sum(exponent: int) -> float:
    """The largest gradient that the sums can hold."""
    return 2.0 ** (62 - exponent)


def add_fixed_point(total: Tensor, gradient: Tensor, scale: float) -> None:
    """Add round(gradient * scale) to `total`.

    Args:
        total: int64, 1-D.
        gradient: Floating point, as many elements in any shape.
        scale: Units per 1, divided by the loss scale.
    """
    for part, sums in zip(_chunks(gradient.detach().reshape(-1)), _chunks(total), strict=True):
        sums.add_(part.to(torch.float32).mul(scale).round_().to(torch.int64))


def to_fixed_point(gradient: Tensor, scale: float, out: Tensor) -> None:
    """Write round(gradient * scale) to `out`; see `add_fixed_point`."""
    for part, fixed in zip(_chunks(gradient.detach().reshape(-1)), _chunks(out), strict=True):
        fixed.copy_(part.to(torch.float32).mul(scale).round_())


def to_float(total: Tensor, exponent: int, out: Tensor) -> None:
    """Convert fixed-point numbers to the nearest fp32 numbers. `total`, `out`: 1-D, of equal size."""
    for sums, part in zip(_chunks(total), _chunks(out), strict=True):
        part.copy_(sums)
        part.mul_(2.0**-exponent)


def largest_of(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """The largest absolute value in some tensors, fp32 on their device, and inf if one is not finite."""
    bounds = [bound.float() for t in tensors if t.numel() for bound in torch.aminmax(t.detach())]
    if not bounds:
        return torch.zeros((), device=device)
    return torch.stack(bounds).abs().max().nan_to_num(nan=math.inf, posinf=math.inf)


def reduce_to_owners(rows: Tensor) -> Tensor:
    """Fixed-point numbers of each worker's share, summed over all workers: this worker's. Collective.

    Args:
        rows: int64, shape (world size, n): what this worker adds to each worker's share.

    Returns:
        int64, shape (n,).
    """
    world_size = dist.get_world_size()
    if world_size == 1:
        return rows[0]
    own = torch.empty_like(rows[0])
    blocks = list(rows.split(_BLOCK, dim=1))
    for block, dtype, sums in zip(blocks, _narrowest(blocks), own.split(_BLOCK), strict=True):
        sent = block.to(dtype).contiguous()
        if dist.get_backend() == "nccl":
            received = torch.empty_like(sent[0])
            dist.reduce_scatter_tensor(received, sent)
            sums.copy_(received)
            continue
        # gloo's reduce-scatter takes twice the time of sending each worker its share and adding there.
        parts = torch.empty_like(sent)
        dist.all_to_all_single(parts, sent)
        torch.sum(parts, 0, dtype=torch.int64, out=sums)
    return own


def global_norm(shares: Sequence[Tensor], device: torch.device) -> float:
    """The L2 norm over all workers' shares, the same bits however the elements are shared. Collective.

    Squares are added as integers, in units of the largest square / 2**40: an element that is a millionth of the
    largest one still counts.

    Args:
        shares: This worker's elements, fp32, finite. Each element is in one worker's share.
    """
    bound = largest_of(shares, device)
    dist.all_reduce(bound, dist.ReduceOp.MAX)
    largest = float(bound)
    if largest == 0.0:
        return 0.0
    exponent = math.frexp(largest)[1]  # all elements are below 2**exponent
    halves = torch.zeros(2, dtype=torch.int64, device=device)
    for share in shares:
        for part in _chunks(share):
            squares = part.double().mul_(2.0 ** (_SQUARE_BITS // 2 - exponent)).square_().trunc_()
            sums = _sums_of_rows(squares)
            halves[0] += (sums >> 32).sum()
            halves[1] += (sums & 0xFFFFFFFF).sum()
    dist.all_reduce(halves)
    high, low = halves.tolist()
    return math.ldexp(math.sqrt((high << 32) + low), exponent - _SQUARE_BITS // 2)


def sum_of_bits(tensor: Tensor, name: str, start: int) -> Tensor:
    """A checksum that adds up: the sum, modulo 2**64, of the bits of each element times a number that belongs to its
    place. Not collective.

    Args:
        tensor: fp32, 1-D: elements of the parameter `name` from `start` on.

    Returns:
        int64, of shape (), on the tensor's device.
    """
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in _chunks(tensor.detach()):
        places = torch.arange(start, start + len(part), dtype=torch.int64, device=part.device)
        total += places.mul_(_GOLDEN).add_(seed).mul_(part.view(torch.int32)).sum()
        start += len(part)
    return total


def _sums_of_rows(integers: Tensor) -> Tensor:
    """Exact sums of groups of elements. `integers`: float64, 1-D, whole numbers of at most 2**40. Returns int64."""
    whole = len(integers) // _ROW * _ROW
    sums = [integers[:whole].view(-1, _ROW).sum(1), integers[whole:].sum().reshape(1)]
    return torch.cat(sums).to(torch.int64)


def _narrowest(blocks: Sequence[Tensor]) -> list[torch.dtype]:
    """The dtype in which each block is sent, such that no sum overflows: the same on all workers. Collective."""
    extremes = [torch.stack(torch.aminmax(block)).double().abs().max() for block in blocks]
    bounds = torch.stack(extremes)
    dist.all_reduce(bounds)
    return [torch.int32 if bound < 2**31 else torch.int64 for bound in bounds.tolist()]


def _chunks(flat: Tensor) -> Iterator[Tensor]:
    return iter(flat.split(_GPU_CHUNK if flat.is_cuda else _CPU_CHUNK))
