"""Population-based bandits (PB2, Parker-Holder et al., 2020): the values of the next generation are those from which a
Gaussian process over all past generations expects most, with its doubt added."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.tuning.space.space import Space, Values

LEAST_GAINS = 4
"""Fewer say nothing of a range."""
CANDIDATES = 512


@dataclass(frozen=True)
class Gain:
    """What a trial has gained in a generation."""

    generation: int
    values: Values
    """With which it trained."""
    gain: float
    """Its metric at the generation's end, less that at its beginning; larger is better."""


def propose(
    space: Space, generation: int, gains: Sequence[Gain], number: int, doubt: float, rng: np.random.Generator
) -> list[Values]:
    """Values for so many trials.

    The process is over the parameters, each scaled to [0, 1], and time, in generations: old gains say less of what
    helps now. The trials' values are chosen one after the other, as if each had gained what was expected of it, so
    that they differ.

    Args:
        generation: Ordinal of the one in which they will train.
        gains: LEAST_GAINS of them or more.
        doubt: Standard deviations that are added to the mean.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    def encode(values: Values, when: int) -> list[float]:
        return [*(domain.unit(values[key]) for key, domain in space.parameters.items()), float(when)]

    points = [encode(gain.values, gain.generation) for gain in gains]
    heights = [gain.gain for gain in gains]
    scales = np.array([0.3] * len(space.parameters) + [3.0])
    bounds = [(0.05, 5.0)] * len(space.parameters) + [(0.5, 50.0)]
    kernel = ConstantKernel() * RBF(scales, bounds) + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, normalize_y=True)
    chosen: list[Values] = []
    for _ in range(number):
        with warnings.catch_warnings():  # a scale at its bound is as good as any with so few points
            warnings.simplefilter("ignore")
            process.fit(points, heights)
        candidates = [{key: domain.draw(rng) for key, domain in space.parameters.items()} for _ in range(CANDIDATES)]
        encoded = [encode(values, generation) for values in candidates]
        mean, deviation = process.predict(encoded, return_std=True)
        best = int(np.argmax(mean + doubt * deviation))
        chosen.append(candidates[best])
        points.append(encoded[best])
        heights.append(float(mean[best]))
        process.set_params(kernel=process.kernel_, optimizer=None)
    return chosen
