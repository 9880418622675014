"""Snapshots: complete or not used, checked before they are trusted, bounded in number."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raytrain.checkpoint.ranges import FP32, StateRange, StorageRangeReader, encode_ranges
from raytrain.checkpoint.sizes import SNAPSHOTS_KEPT
from raytrain.checkpoint.snapshot import Holders, PartInfo, SnapshotKeeper, fits_in_store
from raytrain.checkpoint.snapshot_files import MemoryFiles, damaged, index_of, write_as_checkpoint
from raytrain.checkpoint.store import CheckpointStore
from raytrain.elastic.worker_errors import code_of
from raytrain.errors import FailureCode
from raytrain.steps.batches import World
from raytrain.storage import Storage

pytestmark = pytest.mark.usefixtures("local_ray")
WEIGHTS = torch.arange(100, dtype=torch.float32)


@pytest.fixture
def holders() -> Iterator[Holders]:
    holders = Holders(f"test-{uuid.uuid4().hex[:8]}")
    yield holders
    holders.close()


def here() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def give(holders: Holders, step: int, world_size: int, ranks: Any, token: str = "a") -> None:
    """What workers of these ranks do at a step: each gives its share of the weights away."""
    name = holders.place([here()])[here()]
    for world_rank in sorted(ranks, reverse=True):  # the state is that of rank 0, whenever it comes
        keeper = SnapshotKeeper(World(world_rank, world_size), token, lambda: (name, name))
        share = np.array_split(np.arange(100), world_size)[world_rank]
        piece = StateRange("w", int(share[0]), {FP32: WEIGHTS[torch.from_numpy(share)] + step})
        state = {"step": step} if world_rank == 0 else {"only": "rank 0 knows it all"}
        keeper.begin(step, state, encode_ranges([piece]))
        assert keeper._busy is not None
        keeper._busy.result(timeout=60)
        keeper.close()


def test_a_complete_one_is_found_and_read_at_any_world_size(holders: Holders) -> None:
    give(holders, 20, 3, range(3))
    snapshot = holders.newest(after_step=0)
    assert snapshot is not None
    assert (snapshot.step, snapshot.state) == (20, {"step": 20})
    files = MemoryFiles(snapshot)
    reports = {name: report for rank in range(2) for name, report in files.check(World(rank, 2)).items()}
    assert sorted(reports) == sorted(files.names) and not damaged(reports)
    reader = StorageRangeReader(files, index_of(reports))
    assert torch.equal(reader.read(FP32, "w", 0, 100), WEIGHTS + 20)
    assert torch.equal(reader.read(FP32, "w", 30, 70), WEIGHTS[30:70] + 20)


def test_an_incomplete_one_is_passed_over(holders: Holders) -> None:
    give(holders, 20, 2, range(2))
    give(holders, 40, 2, [0])
    snapshot = holders.newest(after_step=0)
    assert snapshot is not None
    assert snapshot.step == 20


def test_parts_of_two_attempts_make_no_snapshot(holders: Holders) -> None:
    give(holders, 20, 2, [0], token="a")
    give(holders, 20, 2, [1], token="b")
    assert holders.newest(after_step=0) is None


def test_one_that_is_not_newer_than_the_checkpoint_is_not_wanted(holders: Holders) -> None:
    give(holders, 20, 1, [0])
    assert holders.newest(after_step=20) is None
    assert holders.newest(after_step=19) is not None


def test_memory_is_bounded(holders: Holders) -> None:
    import ray

    for step in range(20, 200, 20):
        give(holders, step, 2, range(2))
    actor = ray.get_actor(holders.place([here()])[here()])
    inventory: list[PartInfo] = ray.get(actor.inventory.remote())
    assert sorted({info.step for info in inventory}) == [160, 180]
    assert len(inventory) == 2 * SNAPSHOTS_KEPT


def test_an_older_step_after_a_crash_counts_as_newer(holders: Holders) -> None:
    """The run went back: what was kept of the time before must not push the new ones out."""
    for step, token in ((60, "a"), (80, "a"), (40, "b"), (60, "b")):
        give(holders, step, 1, [0], token=token)
    import ray

    actor = ray.get_actor(holders.place([here()])[here()])
    assert {(info.step, info.token) for info in ray.get(actor.inventory.remote())} == {(40, "b"), (60, "b")}


def test_a_damaged_part_is_named(holders: Holders) -> None:
    import ray

    give(holders, 20, 2, range(2))
    actor = ray.get_actor(holders.place([here()])[here()])
    bad = PartInfo(20, "a", 1, 2, "0" * 64, {"step": 20})
    ray.get(actor.keep.remote(bad, [], [ray.put(np.zeros(10, dtype=np.uint8))]))
    snapshot = holders.newest(after_step=0)
    assert snapshot is not None
    files = MemoryFiles(snapshot)
    assert [len(damaged(files.check(World(rank, 2)))) for rank in range(2)] == [0, 1]


def test_a_worker_fetches_only_what_it_owns(holders: Holders, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a resize from four workers to two: of the other two parts nothing is fetched, not even opened."""
    give(holders, 20, 4, range(4))
    snapshot = holders.newest(after_step=0)
    assert snapshot is not None
    files = MemoryFiles(snapshot)
    index = index_of(files.check(World(0, 1)))
    fetched: list[tuple[str, int]] = []
    open_input = MemoryFiles.open_input

    def counted(files: MemoryFiles, name: str) -> Any:
        part = open_input(files, name)
        read_at = part.read_at

        def counting(num_bytes: int, offset: int) -> np.ndarray:
            data = read_at(num_bytes, offset)
            fetched.append((name, data.nbytes))
            return data

        part.read_at = counting  # type: ignore[method-assign]
        return part

    monkeypatch.setattr(MemoryFiles, "open_input", counted)
    reader = StorageRangeReader(files, index)
    assert torch.equal(reader.read(FP32, "w", 0, 40), WEIGHTS[:40] + 20)
    assert fetched == [(files.names[0], 25 * 4), (files.names[1], 15 * 4)]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_part_that_is_lost_between_check_and_load_is_a_lost_peer(holders: Holders, is_known: bool) -> None:
    """Not a failure of storage, which would be held against the run. `is_known`: this worker has asked that node."""
    import ray

    give(holders, 20, 1, [0])
    snapshot = holders.newest(after_step=0)
    assert snapshot is not None
    files = MemoryFiles(snapshot)
    index = index_of(files.check(World(0, 1)))
    actor = ray.get_actor(holders.place([here()])[here()])
    ray.kill(actor)  # returns at once: a process that is about to end may still answer
    with pytest.raises(ray.exceptions.RayActorError):
        while True:
            ray.get(actor.inventory.remote(), timeout=30)
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        StorageRangeReader(files if is_known else MemoryFiles(snapshot), index).read(FP32, "w", 0, 100)
    assert code_of(caught.value) is FailureCode.PEER_LOST


def test_it_becomes_a_checkpoint_that_any_number_of_workers_can_load(
    holders: Holders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(holders, 20, 3, range(3))
    snapshot = holders.newest(after_step=0)
    assert snapshot is not None
    store = CheckpointStore(Storage(str(tmp_path)))
    monkeypatch.setattr(
        "raytrain.checkpoint.snapshot_files.READ_BYTES", 64
    )  # of each part only this much is here at a time
    write_as_checkpoint(snapshot, store)
    checkpoint = store.newest_good()
    assert checkpoint is not None and checkpoint.step == 20 and checkpoint.world_size == 3
    reader = StorageRangeReader(checkpoint.folder, checkpoint.index)
    assert torch.equal(reader.read(FP32, "w", 10, 90), WEIGHTS[10:90] + 20)


def test_a_holder_that_is_gone_is_forgotten_and_replaced(holders: Holders) -> None:
    import ray

    give(holders, 20, 1, [0])
    name = holders.place([here()])[here()]
    actor = ray.get_actor(name)
    ray.kill(actor)  # returns at once: a process that is about to end may still answer
    with pytest.raises(ray.exceptions.RayActorError):
        while True:
            ray.get(actor.inventory.remote(), timeout=30)
    assert holders.newest(after_step=0) is None
    assert holders.place([here()])[here()] != name
    give(holders, 40, 1, [0])
    assert holders.newest(after_step=0) is not None


def test_nodes_are_let_go_of(holders: Holders) -> None:
    give(holders, 20, 1, [0])
    holders.keep_only([here()])
    assert holders.newest(after_step=0) is not None
    holders.keep_only(["another"])
    assert holders.newest(after_step=0) is None


def test_what_does_not_fit_is_known_before() -> None:
    """12 bytes of 22.7M parameters, two workers on the node: 136 MB a part, in twelve copies."""
    assert fits_in_store(136_000_000, 2, 4e9)
    assert not fits_in_store(136_000_000, 2, 3e9)
