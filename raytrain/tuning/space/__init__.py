"""Search spaces: what a sweep tries."""
