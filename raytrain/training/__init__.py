"""The training loop of one worker, and everything it needs."""
