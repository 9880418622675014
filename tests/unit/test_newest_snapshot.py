"""P12: the snapshot that a group resumes from, chosen from what the nodes' holders keep."""

import itertools

import pytest

from raytrain.checkpoint.snapshot import PartInfo, Snapshot, newest_complete


def part(step: int, world_rank: int, world_size: int = 2, token: str = "t") -> PartInfo:
    """As a worker sends it: rank 0 alone knows the order of all samples."""
    state = {"step": step, "sample_order": {"version": 1} if world_rank == 0 else None}
    return PartInfo(step, token, world_rank, world_size, f"sha-{world_rank}", state)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_the_state_is_that_of_rank_0_whichever_part_came_first(order: tuple[int, ...]) -> None:
    inventories = [(f"holder-{rank}", [part(10, rank, 3)]) for rank in order]
    places = [(f"holder-{rank}", f"10-t-{rank}", f"sha-{rank}") for rank in range(3)]
    assert newest_complete(inventories, 0) == Snapshot(10, {"step": 10, "sample_order": {"version": 1}}, places)


def test_one_that_lacks_a_part_is_passed_over() -> None:
    kept = [part(10, 1), part(10, 0), part(20, 1), part(30, 0)]
    found = newest_complete([("a", kept)], 0)
    assert found is not None and found.step == 10


def test_parts_of_two_attempts_are_not_one() -> None:
    assert newest_complete([("a", [part(10, 0, token="t"), part(10, 1, token="u")])], 0) is None


def test_older_ones_than_the_checkpoint_are_of_no_use() -> None:
    inventories = [("a", [part(10, 0), part(10, 1)])]
    assert newest_complete(inventories, 10) is None
