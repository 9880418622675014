"""Copies in the order of the samples: P1 as an exact multiset, P2 to P5 and P9 with balance and mixtures; no Ray."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raytrain.steps.batches import BatchPlan
from raytrain.steps.copies import Copies, CopiesLayout, copies_of, count_cells, ids_of, whole_counts
from raytrain.steps.order import Order


def make_copies(rows: list[int], groups: np.ndarray, per_epoch: list[int], seed: int) -> Copies:
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    return Copies(starts, groups, count_cells(starts, groups, len(per_epoch), chunk_samples=50), per_epoch, seed)


@st.composite
def copies(draw: st.DrawFn) -> Copies:
    """Ragged row groups whose samples are of up to five groups, mixed or sorted, some of them without a sample, and
    any number of copies."""
    rows = draw(st.lists(st.integers(1, 30), min_size=1, max_size=25))
    num_groups, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    groups = random.choice(num_groups, sum(rows), p=random.dirichlet(np.full(num_groups, 0.5)))
    groups = np.sort(groups) if draw(st.booleans()) else groups
    occurring = np.bincount(groups, minlength=num_groups) > 0
    counts = [draw(st.integers(0, 400)) if occurs else 0 for occurs in occurring]
    return make_copies(rows, groups, counts, seed)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Orders with copies: tiny and large windows and batches, any number of canonical shards."""
    found = draw(copies())
    batch = draw(st.integers(1, 60))
    return Order(
        found.row_group_starts,
        np.random.default_rng(found.seed).integers(1, 200, int(found.row_group_starts[-1])),
        seed=found.seed,
        global_batch_size=batch,
        canonical_shards=draw(st.sampled_from([d for d in range(1, batch + 1) if batch % d == 0])),
        window_samples=draw(st.sampled_from([1, 50, 1000, 16384])),
        samples_per_lane=draw(st.sampled_from([1, 30, 1024])),
        group_by_length=draw(st.booleans()),
        drop_last=False,
        copies=found,
    )


def ranks_of(found: Copies) -> np.ndarray:
    """The rank of each sample in its group, by the definition: by place in the cell, then by cell."""
    starts, groups = found.row_group_starts, np.asarray(found.groups)
    ids = np.arange(starts[-1])
    cell = np.searchsorted(
        found.cell_keys, (np.searchsorted(starts, ids, side="right") - 1) * len(found.per_epoch) + groups
    )
    place, ranks = found.positions(ids, cell), np.empty(len(ids), np.int64)
    for group, of_group in enumerate(found.ranks):
        if of_group is None:
            continue
        order_of_cell = {int(c): i for i, c in enumerate(of_group.cells)}
        members = sorted(ids[groups == group], key=lambda i: (place[i], order_of_cell[int(cell[i])]))
        ranks[members] = np.arange(len(members))
    return ranks


@given(copies(), st.integers(0, 7))
def test_each_sample_comes_as_often_as_the_formula_says(found: Copies, epoch: int) -> None:
    """P1: the epoch is this multiset and no other. The sums and the copies' numbers follow from it."""
    groups = np.asarray(found.groups)
    n, m = np.bincount(groups, minlength=len(found.per_epoch))[groups], np.array(found.per_epoch)[groups]
    wanted = (m * (epoch + 1) + ranks_of(found)) // n - (m * epoch + ranks_of(found)) // n
    entries = CopiesLayout(found, epoch).entries(0, found.num_samples)
    assert np.bincount(ids_of(entries), minlength=len(groups)).tolist() == wanted.tolist()
    assert np.bincount(groups, wanted, len(found.per_epoch)).tolist() == list(found.per_epoch)
    numbers = Counter(zip(ids_of(entries).tolist(), copies_of(entries).tolist(), strict=True))
    assert numbers == Counter((i, copy) for i, count in enumerate(wanted) for copy in range(count))


@given(copies(), st.integers(1, 12))
@settings(max_examples=40)
def test_over_epochs_the_samples_of_a_group_come_equally_often(found: Copies, epochs: int) -> None:
    seen = np.zeros(int(found.row_group_starts[-1]), np.int64)
    for epoch in range(epochs):
        seen += np.bincount(ids_of(CopiesLayout(found, epoch).entries(0, found.num_samples)), minlength=len(seen))
    for group in np.unique(np.asarray(found.groups)):
        of_group = seen[np.asarray(found.groups) == group]
        assert of_group.max() - of_group.min() <= 1


@given(orders(), st.integers(0, 5))
def test_an_epoch_of_steps_has_exactly_the_copies(order: Order, epoch: int) -> None:
    """P1 for whole steps: none dropped, none repeated beyond its copies, the smaller last step included."""
    assert order.copies is not None
    steps = [order.micro_batches(epoch, step, 1, [0])[0] for step in range(order.steps_per_epoch)]
    assert all(len(step) == order.global_batch_size for step in steps[: order.full_steps])
    wanted = CopiesLayout(order.copies, epoch).entries(0, order.num_samples)
    assert sorted(np.concatenate([*steps, np.empty(0, int)]).tolist()) == sorted(wanted.tolist())


@given(orders(), st.integers(0, 3), st.integers(1, 64), st.integers(1, 7), st.data())
@settings(max_examples=150)
def test_a_step_is_the_same_at_any_world_size_and_wherever_one_resumes(
    order: Order, epoch: int, micro: int, world_size: int, data: st.DataObject
) -> None:
    """P2 to P4: workers that start at any step and know nothing of the steps before compute the same entries."""
    assume(order.steps_per_epoch > 0)
    num = -(-order.global_batch_size // micro)
    plan = BatchPlan(order.global_batch_size, num, min(world_size, num))
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    for earlier in range(max(0, step - 3), step):
        order.micro_batches(epoch, earlier, num, range(num))
    expected = [part.tolist() for part in order.micro_batches(epoch, step, num, range(num))]
    found: dict[int, list[int]] = {}
    for rank in range(plan.world_size):
        fresh = replace(order, copies=replace(order.copies), _layouts={}, _windows={})
        mine = plan.micro_batches_of(rank, order.num_groups(num))
        found |= dict(zip(mine, map(np.ndarray.tolist, fresh.micro_batches(epoch, step, num, mine)), strict=True))
    assert [found[which] for which in range(num)] == expected


@given(copies(), st.integers(0, 3))
def test_what_is_read_is_at_most_the_epoch_and_the_data(found: Copies, epoch: int) -> None:
    """P5: rows of all visits."""
    layout, rows = CopiesLayout(found, epoch), np.diff(found.row_group_starts)
    assert rows[layout._row_group].sum() <= found.num_samples + rows.sum()
    assert layout.num_visits <= found.num_samples


def imbalanced(num: int, *, is_sorted: bool, seed: int = 0) -> np.ndarray:
    """Three labels at 20 : 4 : 1; sorted in chunks of 4096, as PREPARE does."""
    labels = np.random.default_rng(seed).choice(3, num, p=[0.8, 0.16, 0.04])
    return np.concatenate([np.sort(labels[i : i + 4096]) for i in range(0, num, 4096)]) if is_sorted else labels


@pytest.mark.parametrize(("is_sorted", "most"), [(True, 0.02), (False, 0.04)])
def test_every_window_has_the_proportions_of_the_epoch(is_sorted: bool, most: float) -> None:
    labels = imbalanced(400_000, is_sorted=is_sorted)
    found = make_copies([64] * (len(labels) // 64), labels, [150_000, 150_000, 100_000], 0)
    order = Order(found.row_group_starts, labels, 0, 32, 32, window_samples=32_000, copies=found)
    shares = []
    for window in range(order.full_steps // order.steps_per_window):
        ids = ids_of(np.concatenate(order._window(1, window)))
        shares.append(np.bincount(labels[ids], minlength=3) / len(ids))
    assert len(shares) == 12
    assert np.abs(np.array(shares) - [0.375, 0.375, 0.25]).max() < most


def test_copies_of_a_sample_are_spread_over_the_epoch() -> None:
    """Where labels are sorted in chunks: each tenth of the epoch has the samples that have ten copies about once."""
    labels = imbalanced(100_000, is_sorted=True)
    rare = int((labels == 2).sum())
    found = make_copies([64] * (100_000 // 64) + [32], labels, [50_000, 16_000, 10 * rare], 0)
    layout = CopiesLayout(found, 0)
    entries = layout.entries(0, found.num_samples)
    tenths = np.arange(len(entries)) * 10 // len(entries)
    for tenth in range(10):
        ids = ids_of(entries[tenths == tenth])
        assert np.unique(ids[labels[ids] == 2]).size > 0.8 * rare


def test_all_orders_without_copies_are_what_they_were() -> None:
    """A run that was begun before there were copies resumes: ORDER_VERSION 2, the hashes of version 0.1."""
    starts = np.r_[0, np.cumsum(np.array([7, 16, 3, 16, 16, 9] * 40))]
    lengths = (np.arange(starts[-1]) * 7919) % 120 + 3
    found = []
    for options in ({}, {"group_by_length": False, "drop_last": True}):
        order, digest = Order(starts, lengths, 11, 24, 12, 600, 100, **options), hashlib.sha256()
        for epoch in (0, 3):
            for step in range(order.steps_per_epoch):
                for part in order.micro_batches(epoch, step, 6, range(6)):
                    digest.update(part.astype("<i8").tobytes())
        found.append((digest.hexdigest()[:16], order.window_hash(1, 40)[:16]))
    assert found == [("46669ff81c747478", "ba312c91ade9ba9a"), ("7668f70ea3cee725", "c69cd9f5b910c440")]


def test_the_copies_are_those_of_every_release() -> None:
    """A run that resumes in another process, or with another release, continues in the same order."""
    labels = imbalanced(5000, is_sorted=False)
    found = make_copies([40] * 125, labels, [100, 2000, 1500], 7)
    order = Order(found.row_group_starts, labels + 5, 7, 24, 12, copies=found)
    assert order.window_hash(2, 40)[:16] == "d3166b13635f2d42"


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=40), st.integers(0, 10**9))
def test_whole_counts(weights: list[float], total: int) -> None:
    """Largest remainder: the sum is exact, and each is its share rounded up or down."""
    if not any(weights):
        with pytest.raises(ValueError, match="weight"):
            whole_counts(weights, total)
        return
    counts = whole_counts(weights, total)
    assert sum(counts) == total
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6 * total
        assert count >= 0 and (weight > 0 or count == 0)


def test_whole_counts_by_hand() -> None:
    assert whole_counts([1, 1, 1], 10) == [4, 3, 3]
    assert whole_counts([3, 1, 0], 7) == [5, 2, 0]
    assert whole_counts([0.5, 0.3, 0.2], 5) == [3, 1, 1]


def test_seeking_lays_out_one_window() -> None:
    """P4: at the start as at the end; counted in samples whose group is read, not in seconds."""

    class Counted:
        def __init__(self, groups: np.ndarray):
            self.groups, self.read = groups, 0

        def __getitem__(self, ids: np.ndarray) -> np.ndarray:
            self.read += len(ids)
            return self.groups[ids]

    groups = Counted(imbalanced(1 << 20, is_sorted=True))
    starts = np.arange(0, (1 << 20) + 1, 64)
    cells, read = count_cells(starts, groups, 3), []
    for place in (0.01, 0.99):
        order = Order(starts, groups.groups, 0, 256, 256, copies=Copies(starts, groups, cells, [350_000] * 3, 0))
        groups.read = 0
        order.step_samples(0, int(order.steps_per_epoch * place))
        read.append(groups.read)
    assert max(read) < 4 * 32768, "the window's row groups, and those that each lane has in part"
