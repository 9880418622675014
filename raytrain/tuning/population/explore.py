"""Population-based training: which trials continue from which models, and with which values. Pure. No Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.tuning.population.pb2 import LEAST_GAINS, Gain, propose
from raytrain.tuning.space.domains import Domain
from raytrain.tuning.space.schedulers import Bandits, Generational, Population
from raytrain.tuning.space.space import Space, Values, applies


@dataclass(frozen=True)
class Member:
    """A trial that has reached the end of a generation."""

    value: float
    """Its metric, negated if lower is better. Minus infinity if it is not a number."""
    values: Values


@dataclass(frozen=True)
class Exchange:
    """The new model and values of a trial."""

    source: str
    """The trial whose model it continues from."""
    values: Values
    """Its values from now on."""


RESAMPLE = 0.25
"""Probability to resample a value in Bandits, until there are enough gains."""


def exchange(
    space: Space, generation: int, members: Mapping[str, Member], gains: Sequence[Gain] = ()
) -> dict[str, Exchange]:
    """Decide which of the worst trials are replaced. Returns trial name -> exchange.

    Args:
        space: Its scheduler is Generational.
        generation: Ordinal of the generation that has ended. With the space's seed it determines the random values.
        members: Trial name -> its state.
        gains: Gains of all generations but the first. Used by Bandits.
    """
    scheduler = space.scheduler
    assert isinstance(scheduler, Generational)
    ranked = sorted(members, key=lambda name: (-members[name].value, name))
    number = min(max(1, int(len(ranked) * scheduler.quantile)), len(ranked) // 2)
    best, worst = ranked[:number], ranked[len(ranked) - number :]
    rng = np.random.default_rng([space.seed, 1 + generation, 0x9B7])  # a different stream from draw_values
    sources = [best[int(rng.integers(len(best)))] for _ in worst]
    if isinstance(scheduler, Bandits) and len(gains) >= LEAST_GAINS:
        values = propose(space, generation + 1, gains, len(worst), scheduler.doubt, rng)
    else:
        resample = scheduler.resample if isinstance(scheduler, Population) else RESAMPLE
        values = [_explore(space, members[source].values, resample, rng) for source in sources]
    return {name: Exchange(*change) for name, change in zip(worst, zip(sources, values, strict=True), strict=True)}


def _explore(space: Space, values: Values, resample: float, rng: np.random.Generator) -> Values:
    """Perturb the values."""
    near: Values = {}
    for key, domain in space.parameters.items():
        value = _move(domain, values, key, resample, rng)
        if applies(domain, near):
            near[key] = value
    return near


def _move(domain: Domain, values: Values, key: str, resample: float, rng: np.random.Generator) -> object:
    is_new = rng.random() < resample or key not in values
    return domain.draw(rng) if is_new else domain.move(values[key], rng)
