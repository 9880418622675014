"""Several commands that need the same prepared store at once: none removes the new store of another one."""

import hashlib
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.data.lengths import encode_index, index_name
from raytrain.data.prepared import Manifest, Part, PreparedStore, SplitInfo
from raytrain.data.store_folder import put_in_place, verified_or_removed
from raytrain.storage import Storage

NAME = "0123456789abcdef0123"


def make_store(folder: Path) -> Path:
    (folder / "train").mkdir(parents=True)
    part = folder / "train" / "part.parquet"
    pq.write_table(pa.table({"input_ids": [[1, 2, 3]], "labels": [0]}), part)
    index, index_sha256 = encode_index(np.array([3]))
    (folder / index_name("train")).write_bytes(index)
    parts = [Part("train/part.parquet", [1], part.stat().st_size, hashlib.sha256(part.read_bytes()).hexdigest())]
    manifest = Manifest(NAME, {}, 0, {"train": SplitInfo(1, 3, 0, 0, parts, index_sha256)}, "c")
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Storage:
    """A cache whose only store is damaged."""
    store = make_store(tmp_path / NAME)
    (store / "train" / "part.parquet").write_bytes(b"damaged")
    return Storage(str(tmp_path))


def renew(cache: Storage, attempt: str) -> None:
    """As `prepare` does it."""
    if verified_or_removed(cache, NAME) is None:
        make_store(Path(cache.path_of(attempt)))
        put_in_place(cache, attempt, NAME)


def test_a_damaged_store_is_replaced(cache: Storage) -> None:
    renew(cache, "one.tmp")
    PreparedStore(cache.path_of(NAME)).verify()
    assert cache.list_names() == [NAME]


def test_a_store_that_was_replaced_while_the_old_one_was_read_stays(
    cache: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow command reads the damaged one to its end after a fast one has put a new store in its place."""
    verify, has_read, may_continue = PreparedStore.verify, threading.Event(), threading.Event()

    def slow_verify(store: PreparedStore) -> None:
        try:
            verify(store)
        finally:
            if threading.current_thread() is slow and not has_read.is_set():
                has_read.set()
                may_continue.wait(20)

    monkeypatch.setattr(PreparedStore, "verify", slow_verify)
    slow = threading.Thread(target=renew, args=(cache, "slow.tmp"))
    slow.start()
    assert has_read.wait(20)
    renew(cache, "fast.tmp")
    new = cache.stamp(f"{NAME}/manifest.json")
    may_continue.set()
    slow.join()
    assert cache.stamp(f"{NAME}/manifest.json") == new
    assert cache.list_names() == [NAME]


def test_a_store_that_was_replaced_just_before_the_rename_is_put_back(cache: Storage) -> None:
    class Late(Storage):
        """Sees the damaged store once more when it is replaced already."""

        looks = 0

        def stamp(self, name: str) -> tuple[int, ...] | None:
            self.looks += 1
            seen = super().stamp(name)
            if self.looks == 2:
                shutil.rmtree(self.path_of(NAME))
                make_store(Path(self.path_of(NAME)))
            return seen

    late = Late(cache.path_of())
    assert verified_or_removed(late, NAME) is not None
    PreparedStore(cache.path_of(NAME)).verify()
    assert cache.list_names() == [NAME]


def test_of_many_at_once_one_store_stays(cache: Storage) -> None:
    (Path(cache.path_of(NAME)) / "manifest.json").unlink()  # partly deleted
    barrier, done = threading.Barrier(8), []

    def begin(number: int) -> None:
        barrier.wait()
        renew(cache, f"{number}.tmp")
        done.append(number)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))
    assert cache.list_names() == [NAME]
    PreparedStore(cache.path_of(NAME)).verify()
