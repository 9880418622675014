"""Sizes of checkpoints and snapshots, in bytes."""

from raytrain.config import TrainingConfig

# Copies in the nodes' memory: the newest complete snapshot and the next one, each on the worker's node and on another.
SNAPSHOTS_KEPT = 2
SNAPSHOT_COPIES = 2


def checkpoint_bytes(num_trained: int, training: TrainingConfig) -> int:
    """Bytes of a checkpoint: for each trained parameter the fp32 master weight, AdamW's two moments, and with
    `training.ema_decay` the average."""
    return num_trained * (12 if training.ema_decay is None else 16)
