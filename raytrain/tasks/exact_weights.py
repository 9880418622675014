"""Weights of the loss whose sums are the same in any order."""

import numpy as np


def exact_weights(weights: np.ndarray) -> np.ndarray:
    """Weights rounded to multiples of 2**-10, float32, above 0: sums of them in float64 don't depend on their order."""
    return (np.maximum(np.round(np.asarray(weights, np.float64) * 1024), 1) / 1024).astype(np.float32)
