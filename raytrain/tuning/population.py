"""Population-based training: who goes on from whose model, and with which values. A pure function. No Ray."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raytrain.tuning.domains import Domain
from raytrain.tuning.schedulers import Population
from raytrain.tuning.space import Space, Values, applies


@dataclass(frozen=True)
class Member:
    """A trial that has come to the end of a generation."""

    value: float
    """Its metric then, larger is better; minus infinity when it is no number."""
    values: Values


@dataclass(frozen=True)
class Exchange:
    """What becomes of a trial that goes on from another's model."""

    source: str
    """The other trial."""
    values: Values
    """Its own from now on."""


def exchange(space: Space, generation: int, members: Mapping[str, Member]) -> dict[str, Exchange]:
    """The worst trials and what becomes of them, by name.

    Args:
        space: Its scheduler is a Population.
        generation: Ordinal; with the space's seed it decides what is drawn.
        members: By name.
    """
    assert isinstance(space.scheduler, Population)
    ranked = sorted(members, key=lambda name: (-members[name].value, name))
    number = min(max(1, int(len(ranked) * space.scheduler.quantile)), len(ranked) // 2)
    best, worst = ranked[:number], ranked[len(ranked) - number :]
    rng = np.random.default_rng([space.seed, 1 + generation, 0x9B7])  # unlike those of draw_values
    changes = {}
    for name in worst:
        source = best[int(rng.integers(len(best)))]
        changes[name] = Exchange(source, _explore(space, members[source].values, space.scheduler.resample, rng))
    return changes


def _explore(space: Space, values: Values, resample: float, rng: np.random.Generator) -> Values:
    """Values near these."""
    near: Values = {}
    for key, domain in space.parameters.items():
        value = _move(domain, values, key, resample, rng)
        if applies(domain, near):
            near[key] = value
    return near


def _move(domain: Domain, values: Values, key: str, resample: float, rng: np.random.Generator) -> object:
    is_new = rng.random() < resample or key not in values
    return domain.draw(rng) if is_new else domain.move(values[key], rng)
