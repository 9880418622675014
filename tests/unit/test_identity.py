"""P6, P11: a state is resumed from only with what it belongs to (state.md 11)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raytrain.errors import ConfigError
from raytrain.steps import order as order_module
from raytrain.steps.copies import Copies, count_cells
from raytrain.steps.order import Order
from raytrain.training import identity as identity_module
from raytrain.training.identity import Identity, check_data


def make_order(seed: int = 0) -> Order:
    return Order(np.arange(0, 201, 10), np.ones(200), seed=seed, global_batch_size=8, canonical_shards=4)


def state_of(order: Order, step: int, frozen: str | None = None) -> dict[str, Any]:
    return Identity("data", frozen, order).of(step)


@pytest.mark.parametrize("step", [0, 3, 24, 25, 26, 250])
def test_the_same_order_is_resumed(step: int) -> None:
    Identity("data", None, make_order()).check(state_of(make_order(), step), step)


def test_another_algorithm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(make_order(), 30)
    monkeypatch.setattr(identity_module, "ORDER_VERSION", 3)
    with pytest.raises(ConfigError, match=r"another version of raytrain \(its order has version 2, this one's 3\)"):
        Identity("data", None, make_order()).check(state, 30)


def balanced(per_epoch: int = 300) -> Order:
    plain, groups = make_order(), np.zeros(200, np.int64)
    starts = plain.row_group_starts
    return replace(plain, copies=Copies(starts, groups, count_cells(starts, groups, 1), [per_epoch], 0))


def test_copies_are_part_of_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state of a plain run says nothing of them, as it was before there were any; one with them has their version."""
    assert set(state_of(make_order(), 30)["sample_order"]) == {"version", "window_sha256"}
    state = state_of(balanced(), 30)
    Identity("data", None, balanced()).check(state, 30)
    for other in (make_order(), balanced(301)):
        with pytest.raises(ConfigError, match="another order of the samples"):
            Identity("data", None, other).check(state, 30)
    monkeypatch.setattr(identity_module, "COPIES_VERSION", 2)
    with pytest.raises(ConfigError, match="copies of samples version 1, this one's 2"):
        Identity("data", None, balanced()).check(state, 30)


def test_another_random_stream_of_numpy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy does not promise equal streams between versions; here the bit generator is another one."""
    state = state_of(make_order(), 30)
    philox = lambda seed: np.random.Generator(np.random.Philox(seed))  # noqa: E731
    monkeypatch.setattr(order_module.np.random, "default_rng", philox)
    with pytest.raises(ConfigError, match="probably by another version of numpy"):
        Identity("data", None, make_order()).check(state, 30)


@pytest.mark.parametrize("saved", [None, {}, {"version": 1}, {"version": 1, "window_sha256": 5}, 7])
def test_a_state_without_it_is_refused(saved: Any) -> None:
    with pytest.raises(ConfigError, match="another order of the samples"):
        Identity("data", None, make_order()).check({"sample_order": saved}, 30)


def test_other_frozen_weights_and_other_data_are_refused() -> None:
    state = state_of(make_order(), 30, frozen="a" * 64)
    with pytest.raises(ConfigError, match="frozen weights are not those of this model"):
        Identity("data", "b" * 64, make_order()).check(state, 30)
    with pytest.raises(ConfigError, match="have changed since this run's checkpoint of step 30"):
        check_data("other data", state, 30)
