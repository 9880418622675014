"""P11 (one writer): at most one command trains a run, and one that has lost the run writes nothing more to it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import s3_bucket

from raytrain.checkpoint.fence import Fence, holders, lease_name, newest_token
from raytrain.checkpoint.store import CheckpointStore, Saved
from raytrain.errors import ConfigError, TakenOverError
from raytrain.runs import lease as lease_module
from raytrain.runs.lease import Lease
from raytrain.storage import Storage
from raytrain.training import records
from raytrain.training.records import JsonlWriter


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, fifty times as fast."""
    monkeypatch.setattr(lease_module, "RENEW_EVERY_S", 0.1)
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 0.6)
    monkeypatch.setattr(lease_module, "POLL_S", 0.05)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as uri:
        yield uri


@pytest.fixture
def on_disk(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture(params=["file system", "object store"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """For what an object store does in another way: create, renew, list."""
    if request.param == "file system":
        found: Storage = request.getfixturevalue("on_disk")
        return found
    monkeypatch.setattr(lease_module, "RENEW_EVERY_S", 0.4)  # each write is three requests
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 5.0)  # a loaded machine renews late
    return Storage(f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}")


def write(run: Storage, token: int = 1, **fields: Any) -> None:
    body = {"host": "elsewhere", "pid": 7, "owner": "theirs", "renewed_at_s": time.time(), **fields}
    run.write_bytes(lease_name(token), json.dumps(body).encode())


def read(run: Storage) -> Any:
    while True:
        try:
            _, [name] = holders(run)
            return run.read_json(name)
        except (OSError, ValueError):  # it is being replaced: the size that was asked for first is another one
            continue


def test_it_is_renewed_and_released(run: Storage) -> None:
    with Lease(run):
        first = read(run)["renewed_at_s"]
        deadline_s = time.monotonic() + 20
        while read(run)["renewed_at_s"] == first:
            assert time.monotonic() < deadline_s
    assert read(run)["released"]
    said: list[str] = []
    with Lease(run, said.append) as lease:
        assert lease.token == 2
    assert not said


def test_a_run_that_is_being_trained_is_refused(run: Storage) -> None:
    said: list[str] = []
    with Lease(run), pytest.raises(ConfigError, match="is being trained by process"), Lease(run, said.append):
        pass
    assert "to see whether it is still alive" in said[0]


def test_one_that_died_elsewhere_is_waited_for_and_succeeded(run: Storage) -> None:
    """As when a pod is started again: the owner can't be asked, but does not renew."""
    write(run, renewed_at_s=time.time() - 60)
    started_at_s = time.monotonic()
    with Lease(run) as lease:
        assert time.monotonic() - started_at_s >= 2 * lease_module.RENEW_EVERY_S
        assert read(run)["pid"] == os.getpid()
        lease.check_now()


def test_one_that_died_here_is_succeeded_at_once(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    script = "import time; from raytrain.runs.lease import Lease; from raytrain.storage import Storage; "
    script += f"Lease(Storage({str(tmp_path)!r})).__enter__(); print('held', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    owner.kill()
    owner.wait()
    said: list[str] = []
    with Lease(run, said.append):
        assert read(run)["pid"] == os.getpid()
    assert not said


@pytest.mark.parametrize("behind_s", [0.0, 30.0, 10_000.0])
def test_one_that_lives_is_not_robbed_whatever_its_clock_says(on_disk: Storage, behind_s: float) -> None:
    """Its number and its host's name may be ours, too: containers share them."""
    is_over = threading.Event()

    def keep_renewing() -> None:
        while not is_over.wait(lease_module.RENEW_EVERY_S):
            write(on_disk, host=socket.gethostname(), pid=os.getpid(), renewed_at_s=time.time() - behind_s)

    write(on_disk, renewed_at_s=time.time() - behind_s)
    owner = threading.Thread(target=keep_renewing)
    owner.start()
    try:
        with pytest.raises(ConfigError, match="is being trained by"), Lease(on_disk):
            pass
    finally:
        is_over.set()
        owner.join()


def test_a_clock_that_is_ahead_does_not_lock_the_run(on_disk: Storage) -> None:
    write(on_disk, renewed_at_s=time.time() + 10_000)
    with Lease(on_disk):
        assert read(on_disk)["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"[" * 200_000])
def test_garbage_is_waited_for_like_a_dead_owner(on_disk: Storage, content: bytes) -> None:
    """It may be a lease that is being written in this moment."""
    on_disk.write_bytes(lease_name(4), content)
    with Lease(on_disk) as lease:
        assert read(on_disk)["pid"] == os.getpid()
        assert lease.token == 5


def test_of_many_commands_in_one_moment_one_enters(run: Storage) -> None:
    barrier, entered, refused = threading.Barrier(6), [], []
    is_over = threading.Event()

    def begin() -> None:
        barrier.wait()
        try:
            with Lease(run) as lease:
                entered.append(lease.token)
                is_over.wait(20)
        except ConfigError:
            refused.append(1)
        if len(refused) == 5:
            is_over.set()

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 1 and len(refused) == 5


class TestFenced:
    """A driver that was suspended, and its successor."""

    def test_it_learns_of_its_successor(self, run: Storage) -> None:
        with Lease(run) as lease:
            write(run, lease.token + 1)
            deadline_s = time.monotonic() + 20
            with pytest.raises(TakenOverError, match="another command has taken"):
                while time.monotonic() < deadline_s:
                    lease.check()
                    time.sleep(0.02)
        assert read(run)["owner"] == "theirs" and not read(run).get("released")

    @pytest.mark.parametrize(
        "change",
        [
            lambda run: run.write_bytes("x", b"mine"),
            lambda run: run.commit_bytes("x", b"mine"),
            lambda run: run.at("checkpoints").commit_bytes("x", b"mine"),
            lambda run: run.at("a").at("b").write_bytes("x", b"mine"),
            lambda run: run.create("x", b"mine"),
            lambda run: run.delete("there"),
            lambda run: run.move("there", "x"),
            lambda run: run.copy("folder", "x"),
            lambda run: CheckpointStore(run.at("checkpoints"), token=1).clear_for_save(10, 0),
        ],
    )
    def test_each_change_is_refused(self, run: Storage, change: Any) -> None:
        run.write_bytes("there", b"theirs")
        run.write_bytes("folder/file", b"theirs")
        run.write_bytes("checkpoints/step_00000010-0001/manifest.json", b"theirs")
        write(run, 3)
        before = files_of(run)
        guarded = run.guarded(Fence(run, 2).check)
        with pytest.raises(TakenOverError):
            change(guarded)
        assert files_of(run) == before

    def test_its_log_lines_end(self, run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "CHECK_EVERY_S", 0.0)
        write(run, 2)
        writer = JsonlWriter(run.guarded(Fence(run, 2).check), "metrics.jsonl")
        writer.write({"step": 1})
        writer.sync()
        write(run, 3)
        with pytest.raises(TakenOverError):
            writer.write({"step": 2})
            writer.sync()
        assert run.read_bytes("metrics.jsonl") == b'{"step": 1}\n'

    def test_it_can_start_no_further_group(self, run: Storage) -> None:
        with Lease(run) as lease:
            assert [lease.advance(), lease.advance()] == [2, 3]
            write(run, 4)
            with pytest.raises(TakenOverError):
                lease.advance()
        assert newest_token(run) == 4

    def test_a_folder_that_was_deleted_is_not_written_to(self, on_disk: Storage) -> None:
        with Lease(on_disk) as lease:
            on_disk.delete("lease")
            with pytest.raises(TakenOverError, match="or its folder was deleted"):
                lease.check_now()

    def test_a_write_that_was_on_its_way_changes_no_file_of_the_successor(self, tmp_path: Path) -> None:
        """Both save the same step, the old group last; the successor's checkpoint is the newest, and whole."""
        root = Storage(str(tmp_path))
        old, new = (CheckpointStore(root, token=token, resumed_step=0) for token in (1, 2))
        from test_checkpoint_store import save

        save(new, 10)
        save(old, 10)
        save(old, 20)
        assert [saved for saved in new.candidates() if saved.token == 2] == [Saved(2, 10)]
        found = new.newest_good()
        assert found is not None and found.folder.path_of() == new.folder(10).path_of()

    def test_groups_of_one_trainer_take_over_without_waiting(self, on_disk: Storage) -> None:
        """A user's own Ray Train trainer: its controller decides that the last group is gone."""
        write(on_disk, owner="trainer")
        said: list[str] = []
        with Lease(on_disk, said.append, owner="trainer") as lease:
            assert lease.token == 2
        assert not said


def files_of(run: Storage, folder: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name in run.list_names(folder):
        path = f"{folder}/{name}".lstrip("/")
        try:
            run.size_bytes(path)
            found[path] = run.read_bytes(path)
        except FileNotFoundError:
            found |= files_of(run, path)
    return found


def test_a_token_that_was_created_without_an_answer_is_its_own(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage may do what it is asked, and its answer be lost: the next attempt finds the file there."""
    asked: list[str] = []

    def create(storage: Storage, name: str, data: bytes) -> str | None:
        found = original(storage, name, data)
        asked.append(name)
        if asked.count(name) == 1:
            raise OSError(5, "no answer")
        return found

    original = Storage.create
    monkeypatch.setattr(Storage, "create", create)
    with Lease(run) as lease:
        assert lease.token == 1
        assert lease.advance() == 2
        lease.check_now()
        assert [newest_token(run), len(holders(run)[1])] == [2, 1]
    assert asked == [lease_name(1)] * 2 + [lease_name(2)] * 2


def test_a_claimant_that_gives_up_while_it_is_read_is_not_waited_for(
    run: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On an object store two that see each other both delete their files: a third waited two minutes for one."""
    gone: list[str] = []

    def read_bytes(storage: Storage, name: str) -> bytes:
        if not gone:
            gone.append(name)
            storage.delete(name)
        return original(storage, name)

    def create(storage: Storage, name: str, data: bytes) -> str | None:
        if gone:
            return created(storage, name, data)
        storage.write_bytes(name, b"{}")
        return None

    original, created = Storage.read_bytes, Storage.create
    monkeypatch.setattr(Storage, "read_bytes", read_bytes)
    monkeypatch.setattr(Storage, "create", create)
    with Lease(run) as lease:
        assert lease.token == 1
    assert gone and not caplog.records
