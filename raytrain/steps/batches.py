"""How a step's micro-batches are dealt to the workers, and the seed of each.

A micro-batch is the same at every number of workers: its samples, its padding, and everything random in its forward
pass, such as dropout. It is computed as a whole by one worker. The alternative, masks keyed by sample and position,
would allow any grouping, but not the fused attention kernels, which draw their own numbers.

Pure arithmetic, no Ray or torch. This module is the only place where the world size matters.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

from raytrain.config import RunConfig


@dataclass(frozen=True)
class World:
    """The rank of this worker in the current worker group."""

    world_rank: int
    world_size: int


@dataclass(frozen=True)
class BatchPlan:
    """How each global batch is divided at one world size.

    Counts of micro-batches differ by at most one between workers, so every world size up to their number is valid.
    """

    global_batch_size: int
    num_micro_batches: int
    """Micro-batches of a full step, over all workers."""
    world_size: int

    @classmethod
    def of(cls, config: RunConfig, world_size: int) -> Self:
        """Divide the batches of a run at a world size. Raises ValueError like the constructor."""
        training = config.training
        return cls(training.global_batch_size, training.num_micro_batches, world_size)

    def __post_init__(self) -> None:
        """Raises ValueError when there are more workers than micro-batches."""
        if not 1 <= self.world_size <= self.num_micro_batches:
            raise ValueError(
                f"world size {self.world_size} is outside 1..{self.num_micro_batches} (the micro-batches of a step); "
                "set workers.max to at most that, or lower training.micro_batch_size"
            )

    def micro_batches_of(self, world_rank: int, num_groups: int) -> list[int]:
        """The numbers of the micro-batches that this worker computes in a step, in this order.

        Where there are groups for all workers, a worker has neighbouring ones, whose row groups it reads alone but for
        the first and the last. Else all read the same, and micro-batches of similar length are dealt in turn.

        Args:
            num_groups: See `Order.num_groups`.
        """
        if num_groups < self.world_size:
            return list(range(world_rank, self.num_micro_batches, self.world_size))
        per_group = self.num_micro_batches // num_groups
        start = world_rank * self.num_micro_batches // self.world_size
        stop = (world_rank + 1) * self.num_micro_batches // self.world_size
        # By group: the position g * per_group + i is the i-th longest of group g, which has the number i * groups + g.
        return sorted(place % per_group * num_groups + place // per_group for place in range(start, stop))

    @property
    def micro_steps(self) -> int:
        """Forward/backward passes per step, equal on all workers because ZeRO-3 gathers parameters in each pass. A
        worker with fewer micro-batches computes one without targets."""
        return -(-self.num_micro_batches // self.world_size)

    @property
    def samples_per_micro_batch(self) -> int:
        """Samples of the largest micro-batch."""
        return -(-self.global_batch_size // self.num_micro_batches)

    @property
    def max_samples_per_worker(self) -> int:
        """Samples of a full step on the worker with the most, at most."""
        return min(self.global_batch_size, self.micro_steps * self.samples_per_micro_batch)

    @property
    def min_samples_per_worker(self) -> int:
        """Samples of a full step on the worker with the fewest, at least."""
        return self.num_micro_batches // self.world_size * (self.global_batch_size // self.num_micro_batches)


def micro_batch_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of everything random in a forward pass, in [0, 2**63): a hash of the run's seed, the steps done before,
    and the micro-batch's number in its step."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
