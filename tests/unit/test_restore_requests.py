"""P10: what a restore asks of storage: the files that overlap what a worker owns, in few reads. Real files, counted."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raytrain.checkpoint import ranges as ranges_module
from raytrain.checkpoint.index import FileRange, RangeIndex
from raytrain.checkpoint.manifest import Checkpoint
from raytrain.checkpoint.ranges import EXP_AVG, FP32, StateRange, StorageRangeReader, Wanted, write_ranges
from raytrain.checkpoint.store import CheckpointStore, part_name, write_sidecar
from raytrain.errors import CheckpointError
from raytrain.storage import Storage

WRITERS = 16
NUM_ELEMENTS = 1000
NAMES = [f"layer.{number}" for number in range(5)]


class CountingStorage(Storage):
    """Counts what is asked of it, in `asked`: (what, name of the file)."""

    def __init__(self, root: str, asked: list[tuple[str, str]]):
        super().__init__(root)
        self.asked = asked

    def at(self, *parts: str) -> Storage:
        return CountingStorage("/".join([self.root, *parts]), self.asked)

    def open_input(self, name: str) -> Any:
        self.asked.append(("open", name))
        return _Counted(super().open_input(name), name, self.asked)

    def read_bytes(self, name: str) -> bytes:
        self.asked.append(("read", name))
        return super().read_bytes(name)

    def size_bytes(self, name: str) -> int:
        self.asked.append(("size", name))
        return super().size_bytes(name)

    def of(self, what: str) -> list[str]:
        return [name for asked, name in self.asked if asked == what]


class _Counted:
    def __init__(self, file: Any, name: str, asked: list[tuple[str, str]]):
        self._file, self._name, self._asked = file, name, asked

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        self._asked.append(("read_at", self._name))
        return self._file.read_at(num_bytes, offset)

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def close(self) -> None:
        self._asked.append(("close", self._name))
        self._file.close()


def share(worker: int, workers: int) -> tuple[int, int]:
    return NUM_ELEMENTS * worker // workers, NUM_ELEMENTS * (worker + 1) // workers


def value(name: str, kind: str) -> torch.Tensor:
    return torch.arange(NUM_ELEMENTS) + 1000.0 * NAMES.index(name) + (0.5 if kind == EXP_AVG else 0.0)


@pytest.fixture
def storage(tmp_path: Path) -> CountingStorage:
    """A checkpoint of 16 workers, each of which has written its sixteenth of every tensor, as ZeRO-3 does."""
    store = CheckpointStore(Storage(str(tmp_path)))
    folder = store.folder(10)
    for rank in range(WRITERS):
        start, stop = share(rank, WRITERS)
        pieces = [StateRange(n, start, {kind: value(n, kind)[start:stop] for kind in (FP32, EXP_AVG)}) for n in NAMES]
        write_sidecar(folder, rank, "t", [write_ranges(folder, part_name(rank, WRITERS), pieces)])
    store.commit(10, WRITERS, {"step": 10}, "t")
    return CountingStorage(str(tmp_path), [])


def newest(storage: CountingStorage, worker: int, workers: int) -> Checkpoint:
    """The checkpoint, as one of several workers finds it: rank 0 lists what there is and tells the others."""
    listed = CheckpointStore(Storage(storage.root))._list()
    found = CheckpointStore(storage).newest_good(worker, workers, lambda value: [listed if value is None else value])
    assert found is not None
    return found


def load(storage: CountingStorage, worker: int, workers: int) -> StorageRangeReader:
    """What one of `workers` workers reads; each element is compared."""
    checkpoint = newest(storage, worker, workers)
    storage.asked.clear()
    start, stop = share(worker, workers)
    wanted = [Wanted(kind, name, start, torch.empty(stop - start)) for name in NAMES for kind in (FP32, EXP_AVG)]
    reader = StorageRangeReader(checkpoint.folder, checkpoint.index)
    reader.load(wanted)
    assert all(torch.equal(one.target, value(one.name, one.kind)[start:stop]) for one in wanted)
    return reader


@pytest.mark.parametrize("workers", [1, 2, 5, 16, 23])
def test_only_files_that_overlap_are_opened_and_each_once(storage: CountingStorage, workers: int) -> None:
    for worker in {0, workers // 2, workers - 1}:
        load(storage, worker, workers)
        start, stop = share(worker, workers)
        overlapping = [r for r in range(WRITERS) if share(r, WRITERS)[0] < stop and start < share(r, WRITERS)[1]]
        names = [part_name(rank, WRITERS) for rank in overlapping]
        assert storage.of("open") == storage.of("close") == names
        assert storage.of("read_at") == names  # all that is wanted of a file lies close together


def test_at_the_same_size_a_worker_reads_its_file_and_nothing_else(storage: CountingStorage) -> None:
    reader = load(storage, 3, WRITERS)
    assert storage.of("open") == [part_name(3, WRITERS)]
    start, stop = share(3, WRITERS)
    assert reader.bytes_read == 4 * (stop - start) * len(NAMES) * 2


def test_finding_a_checkpoint_asks_for_one_workers_share_of_the_files(storage: CountingStorage) -> None:
    """Not for the sizes of all files, nor for their headers: that is 512 x 512 requests in a large group."""
    newest(storage, 1, WRITERS)
    assert sorted(storage.of("read")) == ["manifest.json", "state.json"]
    assert len(storage.of("open")) == len(storage.of("size")) <= 2


def test_reads_are_bounded_and_gaps_are_read_only_while_they_are_small(
    storage: CountingStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read takes memory: what lies together is still read in pieces."""
    monkeypatch.setattr(ranges_module, "READ_BYTES", 256)
    load(storage, 3, WRITERS)
    assert len(storage.of("read_at")) == 10  # 62 or 63 elements of two kinds of five tensors
    monkeypatch.undo()
    checkpoint = CheckpointStore(storage).newest_good()
    assert checkpoint is not None
    counts = {}
    for gap_bytes in (0, 4 * NUM_ELEMENTS):
        storage.asked.clear()
        reader = StorageRangeReader(checkpoint.folder, checkpoint.index, gap_bytes)
        reader.load([Wanted(FP32, name, 0, torch.empty(10)) for name in NAMES])
        counts[gap_bytes] = (len(storage.of("read_at")), reader.bytes_read)
    assert counts[0] == (len(NAMES), 4 * 10 * len(NAMES))
    assert counts[4 * NUM_ELEMENTS][0] == 1 and counts[4 * NUM_ELEMENTS][1] > counts[0][1]


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_into_files_is_read_at_any_range(tmp_path: Path, seed: int) -> None:
    """Files of random workers with random ranges, in any order, with empty ones; reads of random size."""
    random = np.random.default_rng(seed)
    folder, files = Storage(str(tmp_path)), {}
    cuts = [0, *sorted(random.integers(0, NUM_ELEMENTS, 9).tolist()), NUM_ELEMENTS]
    pieces = [
        StateRange(name, start, {kind: value(name, kind)[start:stop] for kind in (FP32, EXP_AVG)})
        for name in NAMES
        for start, stop in itertools.pairwise(cuts)
    ]
    owners = random.integers(0, 4, len(pieces))
    for owner in range(4):
        mine = [pieces[number] for number in random.permutation(len(pieces)) if owners[number] == owner]
        files[f"{owner}"] = write_ranges(folder, f"{owner}", mine).ranges
    reader = StorageRangeReader(folder, RangeIndex.of_files(files), int(random.integers(0, 2000)))
    wanted = []
    for _ in range(30):
        name, kind = NAMES[random.integers(len(NAMES))], (FP32, EXP_AVG)[random.integers(2)]
        start, stop = sorted(random.integers(0, NUM_ELEMENTS + 1, 2).tolist())
        wanted.append(Wanted(kind, name, start, torch.empty(stop - start)))
    reader.load(wanted)
    for one in wanted:
        assert torch.equal(one.target, value(one.name, one.kind)[one.start : one.start + one.target.numel()])


CONTRADICTIONS: dict[str, Callable[[FileRange], FileRange]] = {
    "other kinds": lambda found: found._replace(kinds=[FP32]),
    "a kind more": lambda found: found._replace(kinds=[*found.kinds, "buffer"]),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_files_that_contradict_each_other_are_of_no_one_save(what: str) -> None:
    one = FileRange("w", [FP32, EXP_AVG], 0, 10, 8)
    with pytest.raises(CheckpointError, match=r"one file holds \['fp32', 'exp_avg'\] of w, another one"):
        RangeIndex.of_files({"a": [one], "b": [CONTRADICTIONS[what](one)]})
