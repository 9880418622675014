"""Allocates a sweep's pool of workers to its trials: a pure function of the trials' states. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A live trial's request for workers."""

    trial: str
    min_workers: int
    max_workers: int
    rung: int = 0
    """Number of the scheduler's rungs that it has passed."""
    value: float | None = None
    """Its metric, negated if lower is better. None: unknown."""


def allocate(claims: Sequence[Claim], capacity: int) -> dict[str, int]:
    """Workers for each trial; 0: it waits.

    Every live trial has its minimum, older ones first, so that running trials keep running. The rest goes to the most
    promising trials (by rung, then by metric), each up to its maximum, or evenly as long as nothing is known of any.

    Args:
        claims: In the order in which the trials started.
        capacity: Number of workers that fit in the pool, which is never exceeded.
    """
    allocated = dict.fromkeys((claim.trial for claim in claims), 0)
    left = capacity
    for claim in claims:
        if claim.min_workers > left:
            break  # the next trial may be smaller, but letting it pass would starve this one
        allocated[claim.trial] = claim.min_workers
        left -= claim.min_workers
    live = [claim for claim in claims if allocated[claim.trial]]
    if all(claim.value is None for claim in live):
        return _deal(live, allocated, left)
    for claim in sorted(live, key=_promise, reverse=True):
        more = min(left, claim.max_workers - allocated[claim.trial])
        allocated[claim.trial] += more
        left -= more
    return allocated


def _promise(claim: Claim) -> tuple[int, bool, float]:
    """Sort key: the most promising trials last."""
    return claim.rung, claim.value is not None, claim.value or 0.0


def _deal(claims: Sequence[Claim], allocated: dict[str, int], left: int) -> dict[str, int]:
    """Deal workers one at a time to each trial in turn."""
    while left > 0:
        open_claims = [claim for claim in claims if allocated[claim.trial] < claim.max_workers]
        if not open_claims:
            break
        for claim in open_claims[:left]:
            allocated[claim.trial] += 1
        left -= min(left, len(open_claims))
    return allocated
