"""Checkpoints of any world size: ranges of state, the store, the writer."""
