"""How a step's samples are shared out: canonical shards to workers, a worker's samples to micro-batches.

Pure arithmetic, without Ray or torch. This and `data.order` are the only places where the world size matters, and
neither changes which samples a step trains on.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from raytrain.config import RunConfig


@dataclass(frozen=True)
class World:
    """Who this worker is in the current worker group."""

    world_rank: int
    world_size: int


@dataclass(frozen=True)
class BatchPlan:
    """The division of each global batch at one world size.

    A worker serves a run of neighbouring canonical shards. Shard counts differ by at most one between workers, so
    any world size up to `canonical_shards` is legal, also one that divides nothing.
    """

    global_batch_size: int
    micro_batch_size: int
    canonical_shards: int
    world_size: int

    @classmethod
    def of(cls, config: RunConfig, world_size: int) -> Self:
        """How a run's batches are divided at a world size. Raises ValueError like the constructor."""
        training = config.training
        return cls(training.global_batch_size, training.micro_batch_size, config.canonical_shards, world_size)

    def __post_init__(self) -> None:
        """Raises ValueError when there are more workers than canonical shards."""
        if not 1 <= self.world_size <= self.canonical_shards:
            raise ValueError(
                f"world size {self.world_size} is outside 1..{self.canonical_shards} (the canonical shards); "
                "set workers.max to at most that, or raise training.global_batch_size"
            )

    def shards_of(self, world_rank: int) -> range:
        """The canonical shards that this worker serves."""
        start = world_rank * self.canonical_shards // self.world_size
        stop = (world_rank + 1) * self.canonical_shards // self.world_size
        return range(start, stop)

    @property
    def samples_per_shard(self) -> int:
        """Samples that each canonical shard gives to a full step."""
        return self.global_batch_size // self.canonical_shards

    @property
    def max_samples_per_worker(self) -> int:
        """Samples of a full step on the worker that has most."""
        return -(-self.canonical_shards // self.world_size) * self.samples_per_shard

    @property
    def min_samples_per_worker(self) -> int:
        """Samples of a full step on the worker that has fewest."""
        return self.canonical_shards // self.world_size * self.samples_per_shard

    @property
    def micro_steps(self) -> int:
        """Forward/backward passes of a step, the same on every worker: ZeRO-3 gathers parameters in each of them."""
        return -(-self.max_samples_per_worker // self.micro_batch_size)


def split_micro_batches(ids: np.ndarray, lengths: np.ndarray, micro_steps: int) -> list[np.ndarray]:
    """Share a worker's samples of one step out to exactly `micro_steps` micro-batches, like lengths together.

    Args:
        ids: Sample ids, shape (n,).
        lengths: Tokens of those samples, shape (n,).
        micro_steps: Number of micro-batches.

    Returns:
        `micro_steps` arrays of ids, longest samples first (memory peaks at once), sizes differing by at most one;
        some are empty when n < micro_steps.
    """
    by_length = ids[np.argsort(-lengths, kind="stable")]
    return np.array_split(by_length, micro_steps)
