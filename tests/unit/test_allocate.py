"""P14's policy: who gets how many workers."""

from hypothesis import given
from hypothesis import strategies as st

from raytrain.tuning.pool.allocate import Claim, allocate
from raytrain.tuning.pool.broker import rungs_passed

CLAIMS = st.lists(
    st.builds(
        Claim,
        trial=st.uuids().map(str),
        min_workers=st.integers(1, 4),
        max_workers=st.integers(4, 9),
        rung=st.integers(0, 3),
        value=st.none() | st.floats(-1, 1),
    ),
    max_size=8,
    unique_by=lambda claim: claim.trial,
)


@given(claims=CLAIMS, capacity=st.integers(0, 40))
def test_within_bounds(claims: list[Claim], capacity: int) -> None:
    """Never above the capacity, never below a live trial's minimum, never above its maximum; nothing idle that a live
    trial could use."""
    allocated = allocate(claims, capacity)
    assert set(allocated) == {claim.trial for claim in claims}
    assert sum(allocated.values()) <= capacity
    for claim in claims:
        assert allocated[claim.trial] == 0 or claim.min_workers <= allocated[claim.trial] <= claim.max_workers
    live = [claim for claim in claims if allocated[claim.trial]]
    if any(allocated[claim.trial] < claim.max_workers for claim in live):
        assert sum(allocated.values()) == capacity


@given(claims=CLAIMS, capacity=st.integers(0, 40))
def test_nobody_starves(claims: list[Claim], capacity: int) -> None:
    """Those that wait are the youngest, and wait for no one's more than the minimum."""
    allocated = allocate(claims, capacity)
    waiting = [index for index, claim in enumerate(claims) if allocated[claim.trial] == 0]
    if waiting:
        assert waiting == list(range(waiting[0], len(claims)))
        needed = sum(claim.min_workers for claim in claims[: waiting[0] + 1])
        assert needed > capacity


@given(claims=CLAIMS, capacity=st.integers(0, 40))
def test_one_that_comes_takes_from_nobodys_minimum(claims: list[Claim], capacity: int) -> None:
    before = allocate(claims, capacity)
    after = allocate([*claims, Claim("new", 1, 9)], capacity)
    assert all(after[claim.trial] > 0 for claim in claims if before[claim.trial] > 0)


def test_evenly_while_nothing_is_known() -> None:
    assert allocate([Claim("a", 1, 4), Claim("b", 1, 4), Claim("c", 1, 4)], 8) == {"a": 3, "b": 3, "c": 2}


def test_the_most_promising_first() -> None:
    """By rung, then by metric."""
    claims = [Claim("a", 1, 4, 0, 0.9), Claim("b", 1, 4, 1, 0.7), Claim("c", 1, 4, 1, 0.8), Claim("d", 1, 4)]
    assert allocate(claims, 7) == {"a": 1, "b": 1, "c": 4, "d": 1}
    assert allocate(claims, 9) == {"a": 1, "b": 3, "c": 4, "d": 1}


def test_rungs() -> None:
    assert [rungs_passed(step, 10, 3.0) for step in (9, 10, 29, 30, 89, 90, 270)] == [0, 1, 1, 2, 2, 3, 4]
    assert [rungs_passed(epochs, 0.5, 3.0) for epochs in (0.49, 0.5, 1.5, 4.6)] == [0, 1, 2, 3]
