"""The workers that the trials of a sweep share."""
