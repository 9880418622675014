"""The exponential moving average of the trained weights, sharded as their masters are. No Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raytrain.engine.shards import Shard, shards, spread


class Average:
    """average = d * average + (1 - d) * weights after each update, with d = min(decay, (1 + n) / (10 + n)) in the n-th
    update, so that the first weights are soon forgotten. Each worker has the average of the elements that it owns."""

    num_updates = 0
    """Updates that the average is over."""

    def __init__(self, engine: Any, decay: float):
        self._engine, self._decay = engine, decay
        self._averages = {shard.name: shard.master.clone() for shard in shards(engine)}

    def of(self, shard: Shard) -> Tensor:
        """The average of a shard's elements, 1-D, fp32; writing to it changes it. Not collective."""
        return self._averages[shard.name]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an update. Not collective."""
        self.num_updates += 1
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        for shard in shards(self._engine):
            # Products and a sum, which are rounded alike wherever in a tensor an element lies, as a `lerp_` is not.
            self.of(shard).mul_(decay).add_(shard.master * (1.0 - decay))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which the model's weights are the average. No step and no save may be in it. Collective.

        After an error in it the weights stay the average: the group is about to end, and collectives would hang.
        """
        self._exchange()
        yield
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for shard in shards(self._engine):
            weights, average = shard.master, self.of(shard)
            held = weights.clone()
            weights.copy_(average)
            average.copy_(held)
        spread(self._engine, ())
