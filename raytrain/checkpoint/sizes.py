"""Bytes of checkpoints and snapshots."""

# For each trained parameter a checkpoint holds the fp32 master weight and AdamW's two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12
# In the nodes' memory: the newest complete snapshot and one on its way, each on the worker's node and on another one.
SNAPSHOTS_KEPT = 2
SNAPSHOT_COPIES = 2
