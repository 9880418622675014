"""When AdaLoRA removes ranks (Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
2023): a pure function of the applied updates. No torch."""

from dataclasses import dataclass

from raytrain.config import RunConfig
from raytrain.errors import ConfigError


@dataclass(frozen=True)
class RankSchedule:
    """The ranks of all adapted layers together, from first to last."""

    first_rank: int
    """Of each layer."""
    last_rank: int
    """On average over the layers, at the end."""
    begin: int
    """Up to this applied update no rank is removed."""
    end: int
    """At this update the last ones are; later ones change no rank."""
    every: int
    """Updates between two removals."""
    orthogonality: float
    """Factor of the penalty that keeps each layer's vectors orthogonal."""

    def budget(self, update: int, num_layers: int) -> int | None:
        """Ranks that remain, over all layers, when some are removed after this update (from 1); None: none are."""
        if update == self.end:
            return self.last_rank * num_layers
        if not self.begin < update < self.end or update % self.every:
            return None
        first, last = self.first_rank * num_layers, self.last_rank * num_layers
        left = 1.0 - (update - self.begin) / (self.end - self.begin)
        return int((first - last) * left**3 + last)

    def left(self, update: int, num_layers: int) -> int:
        """Ranks that are left after this update, over all layers."""
        if update >= self.end:
            return self.last_rank * num_layers
        newest = self.budget(update - update % self.every, num_layers)
        return self.first_rank * num_layers if newest is None else newest


def rank_schedule(config: RunConfig, total_steps: int) -> RankSchedule | None:
    """The schedule of a run with `model.adapter.kind: adalora`, else None.

    Raises ConfigError when the run's steps have no room for it, or an option does not work with it.
    """
    adapter = config.model.adapter
    if adapter is None or adapter.kind != "adalora":
        return None
    offload = config.training.deepspeed.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none":
        raise ConfigError(
            "training.deepspeed.zero_optimization.offload_optimizer does not work with model.adapter.kind=adalora, "
            "which adds to the gradients before the update; an adapter's optimizer state is small: leave it out"
        )
    allocation = adapter.allocation
    begin, end = int(allocation.begin * total_steps), int(allocation.end * total_steps)
    if end - begin < max(allocation.every, 1):
        raise ConfigError(
            f"model.adapter.allocation: of {total_steps} steps those from {begin} to {end} are for removing ranks, "
            f"once every {allocation.every}, which has no room: train for more steps, or lower "
            "model.adapter.allocation.every"
        )
    return RankSchedule(adapter.first_rank, adapter.rank, begin, end, allocation.every, allocation.orthogonality)
