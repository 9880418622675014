"""Population-based bandits (PB2, Parker-Holder et al., 2020): the values of the next generation maximize the upper
confidence bound of a Gaussian process fitted to all past generations."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.tuning.space.space import Space, Values

LEAST_GAINS = 4
"""With fewer gains, the process is not fitted."""
CANDIDATES = 512


@dataclass(frozen=True)
class Gain:
    """The gain of a trial in one generation."""

    generation: int
    values: Values
    """The values that it trained with."""
    gain: float
    """Its metric at the end of the generation minus that at the start, negated if lower is better."""


def propose(
    space: Space, generation: int, gains: Sequence[Gain], number: int, doubt: float, rng: np.random.Generator
) -> list[Values]:
    """Propose values for `number` trials.

    The process is over the parameters, each scaled to [0, 1], and time in generations: old gains say less about what
    helps now. Values are chosen for one trial at a time, as if each had gained what was expected of it, so that they
    differ.

    Args:
        generation: Ordinal of the generation in which they will train.
        gains: At least LEAST_GAINS.
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
        with warnings.catch_warnings():  # with so few points, a length scale at its bound is good enough
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
