"""The ranges that a search space may give to a config key. No Ray, no torch."""

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from raytrain.config import Section

MOVES = (0.8, 1.2)
"""Factors that a number is multiplied by when it is perturbed (Jaderberg et al., 2017)."""


class Domain(Section):
    """Base of all domains."""

    when: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """The key is varied only while each of these other keys of the space, which must precede it, has one of these
    values; otherwise it keeps the config's value."""

    def ends(self) -> list[Any]:
        """Values that must all be valid: the smallest and the largest, or every listed one."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        raise NotImplementedError

    def move(self, value: Any, rng: np.random.Generator) -> Any:
        """A value near this one."""
        raise NotImplementedError

    def unit(self, value: Any) -> float:
        """The position of a value in the range, from 0 to 1; NaN when it is not one of the listed values."""
        raise NotImplementedError


class Range(Domain):
    """Base of the domains between two numbers."""

    low: float
    """Least value."""
    high: float
    """Largest value."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self

    def ends(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.high]

    def move(self, value: Any, rng: np.random.Generator) -> Any:
        """See Domain."""
        return min(max(self.low, value * MOVES[rng.integers(2)]), self.high)

    def unit(self, value: Any) -> float:
        """See Domain."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


class Listed(Domain):
    """Base of the domains that list their values."""

    values: Annotated[list[Any], Field(min_length=1)]
    """Any values that are valid for the key."""

    def ends(self) -> list[Any]:
        """See Domain."""
        return self.values

    def draw(self, rng: np.random.Generator) -> Any:
        """See Domain."""
        return self.values[int(rng.integers(len(self.values)))]

    def move(self, value: Any, rng: np.random.Generator) -> Any:
        """See Domain."""
        return self.values[_beside(self.values.index(value), len(self.values), rng)]

    def unit(self, value: Any) -> float:
        """See Domain."""
        return self.values.index(value) / max(1, len(self.values) - 1) if value in self.values else math.nan


class Uniform(Range):
    """A number between two bounds, uniformly distributed."""

    kind: Literal["uniform"]

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        return float(rng.uniform(self.low, self.high))


class LogUniform(Range):
    """A number between two bounds, uniformly distributed in its logarithm."""

    kind: Literal["loguniform"]
    low: Annotated[float, Field(gt=0.0)]
    """Least value."""

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))

    def unit(self, value: Any) -> float:
        """See Domain."""
        return math.log(value / self.low) / math.log(self.high / self.low) if self.high > self.low else 0.5


class QUniform(Range):
    """A multiple of a step between two bounds."""

    kind: Literal["quniform"]
    step: Annotated[float, Field(gt=0.0)]
    """Values are `low` and every `step` above it."""

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        return self.low + self.step * int(rng.integers(0, self._num_steps + 1))

    def ends(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.low + self.step * self._num_steps]

    def move(self, value: Any, rng: np.random.Generator) -> float:
        """See Domain."""
        return self.low + self.step * _beside(round((value - self.low) / self.step), self._num_steps + 1, rng)

    @property
    def _num_steps(self) -> int:
        return int((self.high - self.low) / self.step + 1e-9)


class RandInt(Range):
    """An integer between two bounds, both included."""

    kind: Literal["randint"]
    low: int
    """Least value."""
    high: int
    """Largest value."""

    def draw(self, rng: np.random.Generator) -> int:
        """See Domain."""
        return int(rng.integers(self.low, self.high + 1))

    def move(self, value: Any, rng: np.random.Generator) -> int:
        """See Domain. Moves by at least 1."""
        factor = MOVES[rng.integers(2)]
        moved = round(value * factor)
        if moved == value:
            moved += 1 if factor > 1 else -1
        return min(max(self.low, moved), self.high)


class Normal(Range):
    """A normally distributed number; values outside of the bounds are drawn again."""

    kind: Literal["normal"]
    mean: float
    """Mean of the distribution."""
    deviation: Annotated[float, Field(gt=0.0)]
    """Standard deviation."""

    @model_validator(mode="after")
    def _mean_is_inside(self) -> Self:
        if not self.low <= self.mean <= self.high:
            raise ValueError(f"mean {self.mean:g} is not between low {self.low:g} and high {self.high:g}")
        return self

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        while True:
            value = float(rng.normal(self.mean, self.deviation))
            if self.low <= value <= self.high:
                return value


class Choice(Listed):
    """One of several values, with equal probability."""

    kind: Literal["choice"]


class Grid(Listed):
    """Tries every value, in combination with every value of the other grids; other kinds are drawn for each
    combination."""

    kind: Literal["grid"]


AnyDomain = Annotated[Uniform | LogUniform | QUniform | RandInt | Normal | Choice | Grid, Field(discriminator="kind")]


def _beside(place: int, number: int, rng: np.random.Generator) -> int:
    """The index before or after `place`, among `number` of them."""
    return min(max(0, place + (-1, 1)[rng.integers(2)]), number - 1)
