"""The ranges that a search space may give to a config key. No Ray, no torch."""

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from raytrain.config import Section


def _in_order(domain: Any) -> Any:
    if domain.low > domain.high:
        raise ValueError(f"low {domain.low:g} is above high {domain.high:g}")
    return domain


class Domain(Section):
    """Base of the ranges."""

    when: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """The key is tried only while each of these other keys of the space, which stand before it, has one of these
    values; otherwise it keeps the config's value."""

    def ends(self) -> list[Any]:
        """Values that must all be valid: the least and the largest, or all that there are."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        raise NotImplementedError


class Uniform(Domain):
    """A number between two, each as likely."""

    kind: Literal["uniform"]
    low: float
    """Least value."""
    high: float
    """Largest value."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        return _in_order(self)

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        return float(rng.uniform(self.low, self.high))

    def ends(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.high]


class LogUniform(Domain):
    """A number between two, each order of magnitude as likely."""

    kind: Literal["loguniform"]
    low: Annotated[float, Field(gt=0.0)]
    """Least value."""
    high: float
    """Largest value."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        return _in_order(self)

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))

    def ends(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.high]


class QUniform(Domain):
    """A multiple of a step between two numbers."""

    kind: Literal["quniform"]
    low: float
    """Least value."""
    high: float
    """Largest value."""
    step: Annotated[float, Field(gt=0.0)]
    """Values are `low` and every `step` above it."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        return _in_order(self)

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        return self.low + self.step * int(rng.integers(0, self._num_steps + 1))

    def ends(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.low + self.step * self._num_steps]

    @property
    def _num_steps(self) -> int:
        return int((self.high - self.low) / self.step + 1e-9)


class RandInt(Domain):
    """An integer between two, both included."""

    kind: Literal["randint"]
    low: int
    """Least value."""
    high: int
    """Largest value."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        return _in_order(self)

    def draw(self, rng: np.random.Generator) -> int:
        """See Domain."""
        return int(rng.integers(self.low, self.high + 1))

    def ends(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.high]


class Normal(Domain):
    """A number around a mean, cut off at two bounds."""

    kind: Literal["normal"]
    mean: float
    """Middle of the distribution."""
    deviation: Annotated[float, Field(gt=0.0)]
    """Standard deviation."""
    low: float
    """Least value: smaller ones are drawn again."""
    high: float
    """Largest value: larger ones are drawn again."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.low <= self.mean <= self.high:
            raise ValueError(f"mean {self.mean:g} is not between low {self.low:g} and high {self.high:g}")
        return _in_order(self)

    def draw(self, rng: np.random.Generator) -> float:
        """See Domain."""
        while True:
            value = float(rng.normal(self.mean, self.deviation))
            if self.low <= value <= self.high:
                return value

    def ends(self) -> list[Any]:
        """See Domain."""
        return [self.low, self.high]


class Choice(Domain):
    """One of several values, each as likely."""

    kind: Literal["choice"]
    values: Annotated[list[Any], Field(min_length=1)]
    """Any values that the key may have."""

    def draw(self, rng: np.random.Generator) -> Any:
        """See Domain."""
        return self.values[int(rng.integers(len(self.values)))]

    def ends(self) -> list[Any]:
        """See Domain."""
        return self.values


class Grid(Domain):
    """Each of several values, with each value of the other grids; all other kinds are drawn for each combination."""

    kind: Literal["grid"]
    values: Annotated[list[Any], Field(min_length=1)]
    """Any values that the key may have."""

    def ends(self) -> list[Any]:
        """See Domain."""
        return self.values


AnyDomain = Annotated[Uniform | LogUniform | QUniform | RandInt | Normal | Choice | Grid, Field(discriminator="kind")]
