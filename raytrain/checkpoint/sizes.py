"""Sizes of checkpoints and snapshots, in bytes."""

# For each trained parameter a checkpoint holds the fp32 master weight and AdamW's two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12
# Copies in the nodes' memory: the newest complete snapshot and the next one, each on the worker's node and on another.
SNAPSHOTS_KEPT = 2
SNAPSHOT_COPIES = 2
