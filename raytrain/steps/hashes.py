"""A hash of numbers that is the same in every process and release. Pure arithmetic."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The step of splitmix64: what one adds between two of its numbers."""


def mixed(words: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", 2014), which is a
    permutation of 64-bit words. `words`: uint64, of any shape; the result too."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
