"""Sizes of checkpoints and snapshots, in bytes."""

from raytrain.config import RunConfig

# Copies in the nodes' memory: the newest complete snapshot and the next one, each on the worker's node and on another.
SNAPSHOTS_KEPT = 2
SNAPSHOT_COPIES = 2


def checkpoint_bytes(num_trained: int, config: RunConfig) -> int:
    """Bytes of a checkpoint: for each trained parameter the fp32 master weight, AdamW's two moments, with
    `training.ema_decay` the average, and of an AdaLoRA adapter two averages of its importance."""
    adapter = config.model.adapter
    averages = (config.training.ema_decay is not None) + 2 * (adapter is not None and adapter.kind == "adalora")
    return num_trained * 4 * (3 + averages)
