"""One worker's training."""
