"""Worker groups on Ray Train: when one starts, is resized, fails and is replaced."""
