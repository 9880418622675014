"""Population-based training: who goes on from whose model, and with which values. A pure function. No Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.tuning.population.pb2 import LEAST_GAINS, Gain, propose
from raytrain.tuning.space.domains import Domain
from raytrain.tuning.space.schedulers import Bandits, Generational, Population
from raytrain.tuning.space.space import Space, Values, applies


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


RESAMPLE = 0.25
"""Of Bandits, while they know too little."""


def exchange(
    space: Space, generation: int, members: Mapping[str, Member], gains: Sequence[Gain] = ()
) -> dict[str, Exchange]:
    """The worst trials and what becomes of them, by name.

    Args:
        space: Its scheduler is Generational.
        generation: Ordinal of the one that has ended; with the space's seed it decides what is drawn.
        members: By name.
        gains: Of all generations but the first; of use to Bandits.
    """
    scheduler = space.scheduler
    assert isinstance(scheduler, Generational)
    ranked = sorted(members, key=lambda name: (-members[name].value, name))
    number = min(max(1, int(len(ranked) * scheduler.quantile)), len(ranked) // 2)
    best, worst = ranked[:number], ranked[len(ranked) - number :]
    rng = np.random.default_rng([space.seed, 1 + generation, 0x9B7])  # unlike those of draw_values
    sources = [best[int(rng.integers(len(best)))] for _ in worst]
    if isinstance(scheduler, Bandits) and len(gains) >= LEAST_GAINS:
        values = propose(space, generation + 1, gains, len(worst), scheduler.doubt, rng)
    else:
        resample = scheduler.resample if isinstance(scheduler, Population) else RESAMPLE
        values = [_explore(space, members[source].values, resample, rng) for source in sources]
    return {name: Exchange(*change) for name, change in zip(worst, zip(sources, values, strict=True), strict=True)}


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
