"""Worker groups on Ray Train: how they start, are resized, fail and are replaced."""
