"""How the samples of a step are divided: canonical shards over workers, a worker's samples over micro-batches.

Pure arithmetic, no Ray or torch. This module and `steps.order` are the only places where the world size matters, and
neither changes which samples a step trains on.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from raytrain.config import RunConfig


@dataclass(frozen=True)
class World:
    """The rank of this worker in the current worker group."""

    world_rank: int
    world_size: int


@dataclass(frozen=True)
class BatchPlan:
    """How each global batch is divided at one world size.

    A worker serves consecutive canonical shards. Shard counts differ by at most one between workers, so every world
    size up to `canonical_shards` is valid, even one that does not divide the number of shards.
    """

    global_batch_size: int
    micro_batch_size: int
    canonical_shards: int
    world_size: int

    @classmethod
    def of(cls, config: RunConfig, world_size: int) -> Self:
        """Divide the batches of a run at a world size. Raises ValueError like the constructor."""
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
        """Samples that each canonical shard contributes to a full step."""
        return self.global_batch_size // self.canonical_shards

    @property
    def max_samples_per_worker(self) -> int:
        """Samples of a full step on the worker with the most."""
        return -(-self.canonical_shards // self.world_size) * self.samples_per_shard

    @property
    def min_samples_per_worker(self) -> int:
        """Samples of a full step on the worker with the fewest."""
        return self.canonical_shards // self.world_size * self.samples_per_shard

    @property
    def micro_steps(self) -> int:
        """Forward/backward passes per step, equal on all workers because ZeRO-3 gathers parameters in each pass."""
        return -(-self.max_samples_per_worker // self.micro_batch_size)


def split_micro_batches(ids: np.ndarray, lengths: np.ndarray, micro_steps: int) -> list[np.ndarray]:
    """Split a worker's samples of one step into exactly `micro_steps` micro-batches of similar lengths.

    Args:
        ids: Sample ids, shape (num_samples,).
        lengths: Tokens of those samples, shape (num_samples,).
        micro_steps: Number of micro-batches.

    Returns:
        `micro_steps` arrays of ids, longest samples first so that memory peaks in the first micro-batch. Sizes differ
        by at most one; some arrays are empty when num_samples < micro_steps.
    """
    # (num_samples,), longest first
    by_length = ids[np.argsort(-lengths, kind="stable")]
    # micro_steps arrays of shape (num_samples / micro_steps,), rounded up in the first ones and down in the rest
    return np.array_split(by_length, micro_steps)
