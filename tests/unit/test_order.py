"""P1, P2, P3, P4 and P6, as properties of the sample order and the batch plan; no Ray, no torch."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.steps.order import Order, evaluation_batches


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Orders over ragged row groups: tiny and large, batches that divide nothing, any number of canonical shards."""
    rows = draw(st.lists(st.integers(1, 40), min_size=1, max_size=40))
    batch = draw(st.integers(1, 97))
    shards = draw(st.sampled_from([d for d in range(1, batch + 1) if batch % d == 0]))
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    seed = draw(st.integers(0, 2**31))
    lengths = np.random.default_rng(seed).integers(1, 200, starts[-1])
    window = draw(st.sampled_from([1, 50, 1000, 16384]))
    return Order(
        starts,
        lengths,
        seed=seed,
        global_batch_size=batch,
        canonical_shards=shards,
        window_samples=window,
        samples_per_lane=draw(st.sampled_from([1, 30, 1024])),
        group_by_length=draw(st.booleans()),
        drop_last=draw(st.booleans()),
    )


def epoch_of(order: Order, epoch: int) -> list[np.ndarray]:
    return [order.step_samples(epoch, step) for step in range(order.steps_per_epoch)]


@given(orders(), st.integers(0, 5))
def test_an_epoch_is_a_permutation(order: Order, epoch: int) -> None:
    """P1: none dropped, none repeated, tail included; only the last step is smaller."""
    steps = epoch_of(order, epoch)
    ids = np.concatenate(steps) if steps else np.array([])
    assert all(len(step) == order.global_batch_size for step in steps[: order.full_steps])
    if order.drop_last:
        assert len(ids) == len(set(ids.tolist())) == order.full_steps * order.global_batch_size
    else:
        assert sorted(ids.tolist()) == list(range(order.num_samples))


@given(orders(), st.integers(0, 3), st.integers(1, 64), st.data())
@settings(max_examples=200)
def test_a_step_is_the_same_at_any_world_size(order: Order, epoch: int, micro: int, data: st.DataObject) -> None:
    """P2 and P3: each micro-batch of a step is computed by one worker and has the same samples in the same order,
    whatever the world size and wherever one seeks to; together they make up the step."""
    if order.steps_per_epoch == 0:
        return
    num = -(-order.global_batch_size // micro)
    plan = BatchPlan(order.global_batch_size, num, data.draw(st.integers(1, num)))
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    expected = order.micro_batches(epoch, step, num, range(num))
    assert sorted(np.concatenate(expected).tolist()) == sorted(order.step_samples(epoch, step).tolist())
    found: dict[int, list[int]] = {}
    for rank in range(plan.world_size):
        fresh = Order(**{name: getattr(order, name) for name in FIELDS})  # a worker that starts here knows nothing else
        mine = plan.micro_batches_of(rank, order.num_groups(num))
        parts = fresh.micro_batches(epoch, step, num, mine)
        assert len(parts) <= plan.micro_steps
        assert sum(map(len, parts)) <= plan.max_samples_per_worker
        assert step == order.full_steps or sum(map(len, parts)) >= plan.min_samples_per_worker
        found |= {which: part.tolist() for which, part in zip(mine, parts, strict=True)}
    assert [found[which] for which in range(num)] == [part.tolist() for part in expected]


@given(orders(), st.integers(1, 64))
@settings(max_examples=200)
def test_micro_batches_are_even(order: Order, micro: int) -> None:
    """Those of a full step have at most the configured samples, and none is empty."""
    num = -(-order.global_batch_size // micro)
    for step in range(order.full_steps)[:3]:
        sizes = [len(part) for part in order.micro_batches(0, step, num, range(num))]
        assert max(sizes) - min(sizes) <= 1
        assert 1 <= max(sizes) <= micro


FIELDS = (
    "row_group_starts",
    "lengths",
    "seed",
    "global_batch_size",
    "canonical_shards",
    "window_samples",
    "samples_per_lane",
    "group_by_length",
    "drop_last",
)


@given(st.integers(1, 64), st.integers(1, 512), st.integers(1, 64), st.data())
def test_every_micro_batch_has_one_worker(world_size: int, batch: int, micro: int, data: st.DataObject) -> None:
    """P3: any world size up to the number of micro-batches is valid, and the load is as even as they allow."""
    num = -(-batch // micro)
    if world_size > num:
        with pytest.raises(ValueError, match="micro-batches"):
            BatchPlan(batch, num, world_size)
        return
    plan = BatchPlan(batch, num, world_size)
    groups = data.draw(st.sampled_from([d for d in range(1, num + 1) if num % d == 0]))
    served = [plan.micro_batches_of(rank, groups) for rank in range(world_size)]
    assert sorted(which for of_one in served for which in of_one) == list(range(num))
    assert max(map(len, served)) - min(map(len, served)) <= 1
    assert max(map(len, served)) == plan.micro_steps
    assert plan.min_samples_per_worker >= 1


def test_seeds_differ_in_everything_that_they_depend_on() -> None:
    seeds = [micro_batch_seed(*which) for which in itertools.product(range(4), range(40), range(40))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert micro_batch_seed(7, 3, 2) == 3031920817279478444, "it is the same in every process and every release"


@given(st.integers(0, 300), st.integers(1, 17), st.integers(1, 9))
def test_evaluation_sees_each_sample_once(num_samples: int, batch_size: int, world_size: int) -> None:
    lengths = np.random.default_rng(num_samples).integers(1, 100, num_samples)
    shares = [evaluation_batches(lengths, batch_size, rank, world_size, 2) for rank in range(world_size)]
    seen = [int(i) for share in shares for batch in share for i in batch]
    assert sorted(seen) == list(range(num_samples))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert max(counts) == -(-num_samples // (batch_size * world_size))
    alone = evaluation_batches(lengths, batch_size, 0, 1, 2)
    dealt = [batch for share in shares for batch in share]
    assert all(np.array_equal(one, other) for one, other in zip(alone, dealt, strict=True)), "the same batches"


def test_evaluation_reads_a_split_once() -> None:
    """P5 for evaluations: only the windows in which one worker's part ends and the next one's begins are read twice."""
    lengths, window = reviews_like(100_000), 256 * 16
    read = []
    for world_rank in range(3):
        batches = evaluation_batches(lengths, 16, world_rank, 3)
        windows = [{int(i) // window for i in batch} for batch in batches]
        assert all(len(of_batch) == 1 for of_batch in windows)
        assert windows == sorted(windows, key=min), "one after the other"
        read += sorted(set.union(*windows))
    assert len(read) <= -(-100_000 // window) + 2


def reviews_like(num_samples: int, seed: int = 0) -> np.ndarray:
    """Lengths distributed as in the movie reviews: 27 tokens on average, a long tail."""
    return np.clip(np.random.default_rng(seed).gamma(4.5, 6.0, num_samples), 4, 128).astype(np.int32)


@pytest.mark.parametrize("num", [2, 4, 6, 32])
def test_padding_is_low(num: int) -> None:
    """Well under 10 % of what is computed on text like the movie reviews is padding."""
    lengths = reviews_like(8454)
    starts = np.append(np.arange(0, len(lengths), 16), len(lengths))
    order = Order(starts, lengths, seed=0, global_batch_size=32, canonical_shards=32)
    real = padded = 0
    for step in range(order.steps_per_epoch):
        for part in order.micro_batches(0, step, num, range(num)):
            if len(part):
                real += lengths[part].sum()
                padded += lengths[part].max() * len(part)
    assert 1 - real / padded < 0.05


@pytest.mark.parametrize(
    ("batch", "shards", "num", "world_size"),
    [(32, 32, 4, 1), (32, 32, 4, 2), (32, 32, 4, 3), (32, 32, 4, 4), (64, 64, 64, 7), (64, 16, 64, 3), (64, 16, 64, 7)],
)
def test_workers_of_large_data_read_their_own_lanes(batch: int, shards: int, num: int, world_size: int) -> None:
    """P5: a row group is read by one worker, or by two where it spans lanes of both."""
    num_samples = batch * 4096
    starts = np.arange(0, num_samples + 1, 64)
    order = Order(starts, np.full(num_samples, 20), seed=0, global_batch_size=batch, canonical_shards=shards)
    assert order.lanes == shards
    plan = BatchPlan(batch, num, world_size)
    readers = [
        {
            int(group)
            for step in range(order.steps_per_epoch)
            for part in order.micro_batches(0, step, num, plan.micro_batches_of(rank, order.num_groups(num)))
            for group in part // 64
        }
        for rank in range(world_size)
    ]
    # Workers share the row groups on the border of two lanes, and a lane where each has some of its micro-batches.
    shared = num if num <= shards else (world_size - 1) * (len(starts) - 1) / shards + shards
    assert sum(map(len, readers)) <= len(starts) - 1 + shared


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_workers_finish_together(world_size: int) -> None:
    """On small data, where micro-batches of a step differ in length: those of a round are alike."""
    lengths = reviews_like(2000)
    order = Order(np.arange(0, 2001, 16), lengths, seed=0, global_batch_size=48, canonical_shards=48)
    plan = BatchPlan(48, 12, world_size)
    work = np.zeros((order.full_steps, world_size))
    for step, rank in itertools.product(range(order.full_steps), range(world_size)):
        parts = order.micro_batches(0, step, 12, plan.micro_batches_of(rank, order.num_groups(12)))
        work[step, rank] = sum(lengths[part].max() * len(part) for part in parts)
    assert (work.max(axis=1) / work.mean(axis=1)).mean() < 1.05


def test_epochs_differ_and_batches_mix() -> None:
    """Grouping by length must not make the epochs alike, nor put neighbours of the files into one step."""
    lengths = reviews_like(8448)
    starts = np.arange(0, 8449, 16)
    order = Order(starts, lengths, seed=0, global_batch_size=32, canonical_shards=32)
    mates = [
        {(int(a), int(b)) for ids in epoch_of(order, epoch) for a in ids for b in ids if a < b} for epoch in (0, 1)
    ]
    # By chance alone about 31/8447 of the pairs come back; like lengths raise that some, sameness to 1.
    assert len(mates[0] & mates[1]) / len(mates[0]) < 0.1
    groups = [len(set((ids // 16).tolist())) for ids in epoch_of(order, 0)]
    assert np.mean(groups) > 24


def test_another_seed_is_another_order() -> None:
    starts, lengths = np.arange(0, 1025, 16), reviews_like(1024)
    orders = [Order(starts, lengths, seed=seed, global_batch_size=32, canonical_shards=32) for seed in (0, 1)]
    assert not np.array_equal(orders[0].step_samples(0, 0), orders[1].step_samples(0, 0))


def test_seeking_costs_the_same_everywhere() -> None:
    """P4: one window of a million rows is laid out, at the start as at the end. Counted in work, not in seconds."""
    num = 1_015_808  # a whole number of windows
    starts = np.append(np.arange(0, num, 64), num)
    touched = []
    for place in (0.01, 0.99):
        order = Order(starts, np.full(num, 20), seed=0, global_batch_size=256, canonical_shards=256)
        order.step_samples(0, int(order.steps_per_epoch * place))
        touched.append(sum(len(ids) for window in order._windows.values() for ids in window))
    assert touched[0] == touched[1] == 32768
    started_at_s = time.perf_counter()
    Order(starts, np.full(num, 20), seed=0, global_batch_size=256, canonical_shards=256).step_samples(7, 3000)
    assert time.perf_counter() - started_at_s < 30  # a hang, not a speed: the figure is in benchmarks/


@given(orders(), st.integers(0, 3))
def test_the_hash_of_a_window_changes_with_everything_that_the_order_depends_on(order: Order, epoch: int) -> None:
    if order.steps_per_epoch == 0:
        return
    assert order.window_hash(epoch, 0) == replace(order, _windows={}, _layouts={}).window_hash(epoch, 0)
    samples = np.concatenate(
        [order.step_samples(epoch, step) for step in range(order.steps_per_window)[:5] if step < order.steps_per_epoch]
    )
    other = replace(order, seed=order.seed + 1, _windows={}, _layouts={})
    others = np.concatenate(
        [other.step_samples(epoch, step) for step in range(order.steps_per_window)[:5] if step < order.steps_per_epoch]
    )
    if samples.tolist() != others.tolist():
        assert order.window_hash(epoch, 0) != other.window_hash(epoch, 0)


def test_the_random_streams_of_the_stages_are_different() -> None:
    """state.md 11: numpy pads seeds with zeros, so (s, e) and (s, e, 0) are one stream."""
    assert np.random.default_rng((5, 1)).random() == np.random.default_rng((5, 1, 0)).random()
    starts = np.arange(33)
    order = Order(starts, np.ones(32), 5, 1, 1, window_samples=32, samples_per_lane=1, group_by_length=False)
    layout = order._layout(1)._sequence
    groups = (layout._group_starts).tolist()
    steps = np.concatenate(epoch_of(order, 1)).tolist()
    assert groups != steps
