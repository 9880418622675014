"""P10, P11, P13 of the store: a checkpoint exists once committed, damage is found, the newest good one is loaded."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raytrain import retries
from raytrain.checkpoint import manifest as manifest_module
from raytrain.checkpoint import store as store_module
from raytrain.checkpoint.manifest import Checkpoint, FileEntry, write_hashed
from raytrain.checkpoint.store import CheckpointStore, Saved, write_sidecar
from raytrain.checkpoint.writer import CheckpointWriter
from raytrain.errors import CheckpointError
from raytrain.steps.batches import World
from raytrain.storage import Storage

TOKEN = "attempt-0"


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> CheckpointStore:
    """A store with nothing in it, impatient enough for tests."""
    monkeypatch.setattr(store_module, "SIDECAR_PATIENCE_S", 0.3)
    monkeypatch.setattr(retries, "RETRY_DELAYS_S", (0.01, 0.01))
    return CheckpointStore(Storage(str(tmp_path / "checkpoints")))


def content(step: int, world_rank: int) -> bytes:
    return random.Random(f"{step}/{world_rank}").randbytes(4000 + world_rank)


def write_part(store: CheckpointStore, step: int, world_rank: int, world_size: int, token: str = TOKEN) -> None:
    """What a worker's thread does."""
    folder = store.folder(step)
    store.clear_for_save(step, world_rank)
    data = content(step, world_rank)
    name = f"zero-{world_rank:05d}-of-{world_size:05d}.safetensors"
    write_sidecar(folder, world_rank, token, [write_hashed(folder, name, [data[:1000], memoryview(data)[1000:]])])


def save(store: CheckpointStore, step: int, world_size: int = 2, token: str = TOKEN) -> None:
    for world_rank in range(world_size):
        write_part(store, step, world_rank, world_size, token)
    store.commit(step, world_size, {"step": step}, token)
    store.tidy_up(step)


def steps_in(store: CheckpointStore) -> list[int]:
    return [saved.step for saved in store.candidates()]


def group(store: CheckpointStore, token: int, resumed_step: int | None = None) -> CheckpointStore:
    """The store as a later worker group has it."""
    return CheckpointStore(Storage(store.root.root), 2, token, resumed_step)


def path_in(store: CheckpointStore, step: int, name: str) -> Path:
    return Path(store.folder(step).local_path(name))


def names_in(store: CheckpointStore, step: int) -> list[str]:
    return store.folder(step).list_names()


def assert_whole(checkpoint: Checkpoint | None, step: int, world_size: int = 2) -> None:
    """The checkpoint of `step`, every byte as `save` wrote it."""
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state["step"], checkpoint.world_size) == (step, step, world_size)
    for rank in range(world_size):
        name = f"zero-{rank:05d}-of-{world_size:05d}.safetensors"
        assert checkpoint.folder.read_bytes(name) == content(step, rank)


class TestSaveAndLoad:
    def test_no_checkpoint_means_a_fresh_start(self, store):
        assert store.newest_good() is None
        assert steps_in(store) == []

    def test_what_was_saved_is_loaded(self, store):
        save(store, 10)
        assert_whole(store.newest_good(), 10)

    def test_a_committed_folder_holds_only_what_its_manifest_lists(self, store):
        save(store, 10)
        listed = {entry.name for entry in store.open(Saved(0, 10)).files}
        assert set(names_in(store, 10)) == listed | {"manifest.json"}

    def test_newest_first(self, store):
        save(store, 9)
        save(store, 10)
        assert steps_in(store) == [10, 9]
        assert_whole(store.newest_good(), 10)

    @pytest.mark.parametrize("world_size", [1, 2, 3, 7])
    def test_workers_together_verify_each_file_once(self, store, world_size):
        save(store, 10, world_size=3)
        checkpoint = store.open(Saved(0, 10))
        shares = [checkpoint.files_to_verify(rank, world_size) for rank in range(world_size)]
        assert sorted(entry.name for share in shares for entry in share) == sorted(e.name for e in checkpoint.files)

    def test_state_that_json_cannot_hold_is_refused_at_once(self, store):
        writer = CheckpointWriter(store, World(0, 1), TOKEN)
        writer.begin(1, lambda folder: [])
        writer.wait()
        with pytest.raises(ValueError, match=r"not JSON compliant"):
            writer.commit({"loss": float("nan")})
        writer.close()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


TENSORS = "zero-00001-of-00002.safetensors"
DAMAGES = {
    "truncated tensors": (TENSORS, truncate, "bytes"),
    "truncated state": ("state.json", truncate, "bytes"),
    "truncated manifest": ("manifest.json", truncate, "manifest.json was changed"),
    "flipped bit in tensors": (TENSORS, flip_bit, f"{TENSORS} was changed"),
    "flipped bit in state": ("state.json", flip_bit, "state.json was changed"),
    "flipped bit in manifest": ("manifest.json", flip_bit, "manifest.json was changed"),
    "empty manifest": ("manifest.json", lambda path: path.write_bytes(b""), "manifest.json was changed"),
    "missing tensors": (TENSORS, Path.unlink, f"{TENSORS} is missing"),
    "missing state": ("state.json", Path.unlink, "state.json is missing"),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_the_newest_good_one_is_loaded_and_the_reason_told(self, store, damage):
        name, inflict, reason = DAMAGES[damage]
        save(store, 10)
        save(store, 20)
        inflict(path_in(store, 20, name))
        reports = []
        assert_whole(store.newest_good(report=lambda *report: reports.append(report)), 10)
        assert len(reports) == 1 and reports[0][0] == 20
        assert reason in reports[0][1]

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_all_damaged_is_an_error_that_says_what_to_do(self, store, damage):
        name, inflict, reason = DAMAGES[damage]
        save(store, 10)
        save(store, 20)
        for step in (10, 20):
            inflict(path_in(store, step, name))
        with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints") as error:
            store.newest_good()
        assert reason in str(error.value)
        assert "step_00000010" in str(error.value) and "step_00000020" in str(error.value)
        assert "backup" in str(error.value) and "another name" in str(error.value)

    def test_a_missing_manifest_means_that_there_is_no_checkpoint(self, store):
        save(store, 10)
        save(store, 20)
        path_in(store, 20, "manifest.json").unlink()
        assert_whole(store.newest_good(report=lambda *report: pytest.fail("not a damage")), 10)
        path_in(store, 10, "manifest.json").unlink()
        assert store.newest_good() is None

    def test_every_single_bit_of_the_manifest_counts(self, store):
        save(store, 10, world_size=1)
        path = path_in(store, 10, "manifest.json")
        good = path.read_bytes()
        for position in range(len(good)):
            for bit in (0, 5):
                data = bytearray(good)
                data[position] ^= 1 << bit
                path.write_bytes(data)
                with pytest.raises(CheckpointError):
                    store.open(Saved(0, 10))

    def test_a_damaged_state_is_never_handed_out(self, store):
        save(store, 10)
        flip_bit(path_in(store, 10, "state.json"))
        with pytest.raises(CheckpointError, match=r"state.json was changed"):
            store.open(Saved(0, 10))

    def test_a_copy_under_another_step_is_not_loaded(self, store):
        save(store, 10)
        os.rename(store.folder(10).local_path(), store.folder(30).local_path())
        with pytest.raises(CheckpointError, match=r"copy of step 10"):
            store.open(Saved(0, 30))

    @pytest.mark.parametrize("version", [1, manifest_module.FORMAT_VERSION + 1])
    def test_another_format_is_refused(self, store, monkeypatch, version):
        monkeypatch.setattr(manifest_module, "FORMAT_VERSION", version)
        save(store, 10)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=rf"format {version}, and this raytrain reads"):
            store.open(Saved(0, 10))

    def test_a_manifest_that_was_sealed_as_format_1_did_is_not_called_damaged(self, store):
        save(store, 10)
        old = b'{\n "checksum": "0",\n "files": [],\n "format_version": 1\n}'
        path_in(store, 10, "manifest.json").write_bytes(old)
        with pytest.raises(CheckpointError, match=r"it has format 1, and"):
            store.open(Saved(0, 10))

    def test_damage_in_one_workers_share_is_seen_by_all(self, store):
        save(store, 10, world_size=3)
        save(store, 20, world_size=3)
        flip_bit(path_in(store, 20, "zero-00001-of-00003.safetensors"))
        found = run_workers(2, lambda rank, gather: store.newest_good(rank, 2, gather))
        for checkpoint in found:
            assert_whole(checkpoint, 10, world_size=3)

    def test_all_damaged_raises_on_every_worker(self, store):
        save(store, 10)
        flip_bit(path_in(store, 10, TENSORS))

        def load(rank, gather):
            with pytest.raises(CheckpointError):
                store.newest_good(rank, 2, gather)
            return "raised"

        assert run_workers(2, load) == ["raised", "raised"]


def run_workers(world_size: int, work) -> list:
    """Run `work(rank, gather)` on threads that gather through a barrier."""
    barrier = threading.Barrier(world_size, timeout=10)
    slots, results = [None] * world_size, [None] * world_size

    def run(rank: int) -> None:
        def gather(value):
            slots[rank] = value
            barrier.wait()
            values = list(slots)
            barrier.wait()
            return values

        results[rank] = work(rank, gather)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Crash(Exception):
    """Stands for the process's end."""


class CrashingStorage(Storage):
    """Raises Crash before its n-th change, and for ever after; n is counted over all folders of the same run."""

    def __init__(self, root: str, budget: list[int]):
        super().__init__(root)
        self.budget = budget

    def at(self, *parts: str) -> Storage:
        return CrashingStorage("/".join([self.root, *parts]), self.budget)

    def _spend(self) -> None:
        if self.budget[0] == 0:
            raise Crash
        self.budget[0] -= 1

    def open_output(self, name):
        self._spend()
        return super().open_output(name)

    def write_bytes(self, name, data):  # two moments: before the file is there, and when it is half written
        self._spend()
        super().write_bytes(name, data[: len(data) // 2])
        super().write_bytes(name, data)

    def delete(self, name):
        if self.exists(name):
            self._spend()
        super().delete(name)


class TestCrash:
    """The protocol is stopped before each of its changes to storage in turn."""

    def crash_at(self, store, moment: int, step: int, world_size: int) -> bool:
        """Save, and crash before change number `moment`; False when the save needs fewer changes."""
        crashing = CheckpointStore(CrashingStorage(store.root.root, [moment]), store.keep_last)
        try:
            save(crashing, step, world_size, token="doomed")
        except Crash:
            return True
        return False

    @pytest.mark.parametrize("world_size", [1, 2, 3])
    def test_at_every_moment_the_newest_committed_one_is_whole(self, tmp_path, monkeypatch, world_size):
        monkeypatch.setattr(store_module, "SIDECAR_PATIENCE_S", 0)
        results = []
        for moment in range(1000):
            store = CheckpointStore(Storage(str(tmp_path / f"{moment}")), keep_last=1)
            save(store, 10)
            is_crashed = self.crash_at(store, moment, 20, world_size)
            checkpoint = store.newest_good(report=lambda *report: pytest.fail(f"damaged: {report}"))
            results.append(checkpoint.step)
            assert_whole(checkpoint, checkpoint.step, 2 if checkpoint.step == 10 else world_size)
            save(store, 20)  # the next attempt redoes the step over what is left
            assert_whole(store.newest_good(), 20)
            assert set(names_in(store, 20)) == {e.name for e in store.open(Saved(0, 20)).files} | {"manifest.json"}
            if not is_crashed:
                break
        assert results[0] == 10 and results[-1] == 20 and results == sorted(results)
        assert len(results) > 3 + 3 * world_size

    def test_overwriting_a_committed_step_falls_back_while_it_is_torn(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store_module, "SIDECAR_PATIENCE_S", 0)
        for moment in range(1000):
            store = CheckpointStore(Storage(str(tmp_path / f"{moment}")))
            save(store, 10)
            save(store, 20, world_size=3)
            is_crashed = self.crash_at(store, moment, 20, world_size=2)
            checkpoint = store.newest_good(report=lambda *report: pytest.fail(f"damaged: {report}"))
            if moment == 0:
                assert_whole(checkpoint, 20, world_size=3)
            elif checkpoint.step == 20:
                assert_whole(checkpoint, 20, world_size=2)
            else:
                assert_whole(checkpoint, 10)
            if not is_crashed:
                return
        pytest.fail("the save never ended")

    @pytest.mark.parametrize("old_world_size", [1, 2, 3, 4])
    def test_leftovers_of_another_attempt_are_not_mixed_in(self, store, old_world_size):
        for rank in range(old_world_size):  # all wrote, nobody committed
            write_part(store, 10, rank, old_world_size, token="old")
        with pytest.raises(CheckpointError, match=r"earlier attempt|missing"):
            store.commit(10, 2, {"step": 10}, TOKEN)
        assert steps_in(store) == []
        write_part(store, 10, 0, 2)  # one of two workers is done
        with pytest.raises(CheckpointError, match=r"zero-00001.json .*(earlier attempt|missing)"):
            store.commit(10, 2, {"step": 10}, TOKEN)
        write_part(store, 10, 1, 2)
        store.commit(10, 2, {"step": 10}, TOKEN)
        store.tidy_up(10)
        assert_whole(store.newest_good(), 10)
        assert len(names_in(store, 10)) == 4

    def test_a_worker_that_saves_the_step_again_is_not_done_until_it_is(self, store):
        for rank in range(2):
            write_part(store, 10, rank, 2)
        store.clear_for_save(10, 1)
        with pytest.raises(CheckpointError, match=r"zero-00001.json is missing"):
            store.commit(10, 2, {"step": 10}, TOKEN)

    def test_a_checkpoint_that_is_half_deleted_does_not_count(self, store):
        class HalfDeleting(Storage):
            def at(self, *parts):
                return HalfDeleting("/".join([self.root, *parts]))

            def delete(self, name):
                if name.startswith("step_"):
                    super().delete(f"{name}/state.json")
                    raise Crash
                super().delete(name)

        save(store, 10)
        save(store, 20)
        with pytest.raises(Crash):
            CheckpointStore(HalfDeleting(store.root.root), keep_last=1).retain(20)
        assert steps_in(store) == [20]

    def test_a_file_cut_short_before_the_commit_is_not_committed(self, store):
        write_part(store, 10, 0, 1)
        truncate(path_in(store, 10, "zero-00000-of-00001.safetensors"))
        with pytest.raises(CheckpointError, match=r"incomplete"):
            store.commit(10, 1, {"step": 10}, TOKEN)
        assert steps_in(store) == []

    def test_sidecars_of_many_workers_are_read_at_once(self, store):
        """A commit must not take 512 requests one after the other."""
        for rank in range(8):
            write_part(store, 10, rank, 8)
        together = threading.Barrier(4, timeout=10)

        class Waiting(Storage):
            def at(self, *parts):
                return Waiting("/".join([self.root, *parts]))

            def read_bytes(self, name):
                if name.startswith("zero-"):
                    together.wait()
                return super().read_bytes(name)

        CheckpointStore(Waiting(store.root.root)).commit(10, 8, {"step": 10}, TOKEN)
        assert_whole(store.newest_good(), 10, world_size=8)

    def test_killed_process(self, store):
        """Real: SIGKILL at random moments of a process that saves without pause."""
        source = (
            "import sys; from raytrain.checkpoint.store import *; from raytrain.storage import Storage\n"
            "store = CheckpointStore(Storage(sys.argv[1]), keep_last=2)\n"
            "for step in range(int(sys.argv[2]), 10**6):\n"
            "    store.clear_for_save(step, 0); folder = store.folder(step)\n"
            "    data = step.to_bytes(8, 'big') * 2_000_00\n"
            "    write_sidecar(folder, 0, 't', [write_hashed(folder, 'zero', [data[:8], data[8:]])])\n"
            "    store.commit(step, 1, {'step': step}, 't'); store.tidy_up(step); print(step, flush=True)\n"
        )
        step = 1
        for delay_s in (0.0, 0.013, 0.031, 0.057, 0.083):
            process = subprocess.Popen(
                [sys.executable, "-c", source, store.root.root, str(step)], stdout=subprocess.PIPE, text=True
            )
            printed = int(process.stdout.readline())
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            rest = process.communicate()[0].split()
            checkpoint = store.newest_good(report=lambda *report: pytest.fail(f"damaged: {report}"))
            assert checkpoint.step in (int(rest[-1]) if rest else printed, (int(rest[-1]) if rest else printed) + 1)
            assert checkpoint.folder.read_bytes("zero")[:8] == checkpoint.step.to_bytes(8, "big")
            step = checkpoint.step + 1


class TestRetention:
    @pytest.mark.parametrize("keep_last", [1, 2, 3])
    def test_keeps_the_newest(self, store, keep_last):
        store.keep_last = keep_last
        for step in range(10, 70, 10):
            save(store, step)
        assert steps_in(store) == [60, 50, 40, 30, 20, 10][:keep_last]
        assert len(store.root.list_names()) == keep_last

    def test_removes_older_leftovers_and_leaves_newer_folders_alone(self, store):
        write_part(store, 5, 0, 2)
        write_part(store, 15, 0, 2)
        later = group(store, token=1, resumed_step=5)
        save(later, 10, world_size=1)  # the run went back from 15; a worker then begins 17 before 10 is tidied up
        write_part(later, 17, 1, 2)
        later.retain(10)
        assert store.root.list_names() == ["step_00000010-0001", "step_00000017-0001"]

    def test_leftovers_do_not_count_as_checkpoints(self, store):
        save(store, 10)
        write_part(store, 15, 0, 2)
        save(store, 20)
        assert steps_in(store) == [20, 10]

    def test_after_falling_back_the_damaged_ones_do_not_crowd_out_the_good(self, store):
        for step in (10, 20):
            save(store, step)
        store.keep_last = 3
        save(store, 30)
        for step in (20, 30):
            flip_bit(path_in(store, step, TENSORS))
        assert store.newest_good().step == 10
        later = group(store, token=1, resumed_step=10)
        save(later, 12)
        assert steps_in(later) == [12, 30, 20, 10], "the damaged ones stay until there are two newer checkpoints"
        assert_whole(later.newest_good(), 12)
        save(later, 14)
        assert steps_in(later) == [14, 12]
        assert_whole(group(store, token=2).newest_good(), 14)

    def test_other_names_in_the_folder_are_left_alone(self, store):
        store.root.write_bytes("notes.txt", b"mine")
        store.root.write_bytes("step_backup/x", b"mine")
        for step in (10, 20, 30):
            save(store, step)
        assert {"notes.txt", "step_backup"} < set(store.root.list_names())

    def test_tidying_up_never_fails_a_save(self, store, monkeypatch, caplog):
        def refuse(*args):
            raise PermissionError(13, "not yours")

        monkeypatch.setattr(store, "retain", refuse)
        save(store, 10)
        assert_whole(store.newest_good(), 10)
        assert "not yours" in caplog.text


def write_one(world_rank: int, step: int):
    def write(folder: Storage) -> list[FileEntry]:
        return [write_hashed(folder, f"zero-{world_rank:05d}-of-00002.safetensors", [content(step, world_rank)])]

    return write


def entry(name: str = "state.json", num_bytes: object = 2, sha256: object = "a" * 64) -> dict:
    return {"name": name, "num_bytes": num_bytes, "sha256": sha256}


def index(**changed) -> dict:
    """An index of one tensor with one range, of which something is wrong."""
    piece = {"start": 0, "stop": 2, "file": 0, "offset": 0} | changed
    return {"w": {"kinds": ["fp32"], "pieces": [list(piece.values())]}}


WRONG_MANIFESTS = {
    "no state": {"files": [entry("zero")]},
    "no files": {"files": []},
    "a path as a name": {"files": [entry(), entry("../../secret")]},
    "an absolute path": {"files": [entry(), entry("/etc/passwd")]},
    "dots as a name": {"files": [entry(), entry("..")]},
    "a file twice": {"files": [entry(), entry()]},
    "two states": {"files": [entry(), entry(sha256="b" * 64)]},
    "a hash that is none": {"files": [entry(sha256="x")]},
    "a negative size": {"files": [entry(num_bytes=-1)]},
    "a size in words": {"files": [entry(num_bytes="2")]},
    "files that are none": {"files": 7},
    "a key more": {"more": 1},
    "a step in words": {"step": "10"},
    "another step": {"step": 11},
    "no workers": {"world_size": 0},
    "a format in words": {"format_version": "one"},
    "no index": {"tensors": None},
    "a range of a file that is not listed": {"tensors": index(file=7)},
    "a range behind the end of its file": {"tensors": index(stop=10_000)},
    "a range that ends before it starts": {"tensors": index(start=3, stop=2)},
    "a range in the middle of an element": {"tensors": index(offset=2)},
    "a range before its file": {"tensors": index(offset=-4)},
    "a range in words": {"tensors": index(stop="2")},
    "a range with a number more": {"tensors": {"w": {"kinds": ["fp32"], "pieces": [[0, 2, 0, 0, 0]]}}},
    "a tensor without kinds": {"tensors": {"w": {"kinds": [], "pieces": [[0, 2, 0, 0]]}}},
}


class TestWrongManifests:
    """Well-formed JSON with a right checksum that no raytrain has written: see state.md 9 of the faults found."""

    @pytest.mark.parametrize("what", WRONG_MANIFESTS)
    def test_is_damage_and_not_a_traceback(self, store, what):
        save(store, 5)
        save(store, 10)
        path = path_in(store, 10, "manifest.json")
        body = json.loads(path.read_bytes())
        del body["checksum"]
        path.write_bytes(manifest_module._seal({**body, **WRONG_MANIFESTS[what]}))
        (store.root.at("..") if "path" in what else store.root).write_bytes("secret", b"not to be read")
        assert_whole(store.newest_good(), 5)

    @pytest.mark.parametrize("content", [b"[" * 200_000, b"[]", b"null", b"\xff\xfe", b'{"checksum": NaN}'])
    def test_other_content(self, store, content):
        save(store, 5)
        save(store, 10)
        path_in(store, 10, "manifest.json").write_bytes(content)
        assert_whole(store.newest_good(), 5)

    @pytest.mark.parametrize("state", [b"[]", b"{}", b"[" * 200_000, b'{"step": 11}', b"7"])
    def test_a_state_of_another_kind(self, store, state):
        save(store, 5)
        for rank in range(2):
            write_part(store, 10, rank, 2)
        files = store_module._files_of(store.folder(10), 2, TOKEN)
        files.append(write_hashed(store.folder(10), "state.json", [state]))
        content = manifest_module.encode_manifest(10, 2, TOKEN, files)
        store.folder(10).commit_bytes("manifest.json", content)
        assert_whole(store.newest_good(), 5)

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"token": 1}', b"[" * 200_000, b'{"token": "attempt-0"}'])
    def test_a_sidecar_that_is_none_is_no_commit(self, store, content):
        write_part(store, 10, 0, 1)
        path_in(store, 10, "zero-00000.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="sidecar is damaged"):
            store.commit(10, 1, {"step": 10}, TOKEN)


class FailingStorage(Storage):
    """Raises OSError in each read but the first `good` ones, `bad` times."""

    def __init__(self, root: str, counts: list[int]):
        super().__init__(root)
        self.counts = counts

    def at(self, *parts: str) -> Storage:
        return FailingStorage("/".join([self.root, *parts]), self.counts)

    def _spend(self) -> None:
        good, bad = self.counts
        if good:
            self.counts[0] -= 1
        elif bad:
            self.counts[1] -= 1
            raise OSError(5, "HTTP 503")

    def read_bytes(self, name):
        self._spend()
        return super().read_bytes(name)

    def open_input(self, name):
        self._spend()
        return super().open_input(name)

    def size_bytes(self, name):
        self._spend()
        return super().size_bytes(name)

    def list_names(self, name=""):
        self._spend()
        return super().list_names(name)

    def exists(self, name=""):
        self._spend()
        return super().exists(name)


class TestUnreadable:
    """A failure of storage is not damage: see state.md 3 of the faults that were found."""

    def test_one_failure_at_any_read_costs_nothing(self, store):
        save(store, 10)
        save(store, 20)
        for moment in range(100):
            counts = [moment, 1]
            failing = CheckpointStore(FailingStorage(store.root.root, counts))
            found = failing.newest_good(report=lambda *report: pytest.fail(f"damaged: {report}"))
            was_spared, counts[1] = counts[1] > 0, 0
            assert_whole(found, 20)
            if was_spared:
                assert moment > 5
                return

    def test_a_lasting_failure_at_any_read_ends_the_attempt_and_keeps_the_checkpoint(self, store):
        save(store, 10)
        save(store, 20)
        reasons: list[str] = []
        for moment in range(100):
            counts = [moment, 1000]
            failing = CheckpointStore(FailingStorage(store.root.root, counts))
            try:
                found = failing.newest_good(report=lambda *report: pytest.fail(f"damaged: {report}"))
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            counts[1] = 0
            assert_whole(found, 20)
            break
        assert len(reasons) > 5 and all("HTTP 503" in reason for reason in reasons)
        assert steps_in(store) == [20, 10]

    def test_it_is_raised_on_every_worker(self, store):
        save(store, 10)

        def load(rank, gather):
            mine = CheckpointStore(FailingStorage(store.root.root, [3, 1000])) if rank else store
            with pytest.raises(CheckpointError, match=r"not known to be damaged"):
                mine.newest_good(rank, 2, gather)
            return "raised"

        assert run_workers(2, load) == ["raised", "raised"]


class TestWriter:
    @pytest.fixture
    def writers(self, store):
        writers = [CheckpointWriter(store, World(rank, 2), TOKEN) for rank in range(2)]
        yield writers
        for writer in writers:
            writer.close()

    def test_a_save_over_two_workers(self, store, writers):
        for rank, writer in enumerate(writers):
            assert writer.poll() is None
            assert writer.begin(10, write_one(rank, 10))
        for writer in writers:
            writer.wait()
            assert writer.poll() == 10
            assert writer.poll() == 10
        for writer in writers:
            writer.commit({"step": 10})
            writer.wait()
            assert writer.poll() is None
        assert [writer.committed_step for writer in writers] == [10, None]
        assert_whole(store.newest_good(), 10)

    def test_begin_does_not_block_and_poll_answers_when_written(self, writers):
        gate = threading.Event()

        def slow(folder):
            assert gate.wait(10)
            return []

        started_at_s = time.monotonic()
        assert writers[0].begin(10, slow)
        assert writers[0].poll() is None
        assert time.monotonic() - started_at_s < 1
        gate.set()
        writers[0].wait()
        assert writers[0].poll() == 10

    def test_one_save_in_flight(self, store, writers):
        for rank, writer in enumerate(writers):
            assert writer.begin(10, write_one(rank, 10))
            assert not writer.begin(20, write_one(rank, 20))
            writer.wait()
            assert not writer.begin(20, write_one(rank, 20))  # until all have agreed
        for rank, writer in enumerate(writers):
            writer.commit({"step": 10})
            assert writer.begin(20, write_one(rank, 20))
        for writer in writers:
            writer.wait()
            writer.commit({"step": 20})
            writer.wait()
        assert steps_in(store) == [20, 10]

    def test_nothing_is_committed_before_commit(self, store, writers):
        for rank, writer in enumerate(writers):
            writer.begin(10, write_one(rank, 10))
            writer.wait()
        assert steps_in(store) == []

    def test_a_short_failure_is_tried_again(self, store, writers):
        attempts = []

        def flaky(folder):
            attempts.append(1)
            if len(attempts) < 3:
                raise OSError(5, "the network went away")
            return []

        writers[0].begin(10, flaky)
        writers[0].wait()
        assert writers[0].poll() == 10 and len(attempts) == 3

    def test_a_lasting_failure_names_path_and_remedy(self, store, writers):
        def refuse(folder):
            raise PermissionError(13, "Permission denied")

        writers[0].begin(10, refuse)
        with pytest.raises(CheckpointError, match=r"permission to write") as error:
            writers[0].wait()
        assert store.folder(10).path_of() in str(error.value)
        with pytest.raises(CheckpointError):
            writers[0].poll()

    def test_a_bug_is_not_dressed_up(self, writers):
        writers[0].begin(10, lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writers[0].wait()

    def test_a_failed_commit_is_raised_by_the_next_poll(self, writers):
        writers[0].begin(10, write_one(0, 10))
        writers[0].wait()
        writers[0].commit({"step": 10})  # though worker 1 has written nothing
        with pytest.raises(CheckpointError, match=r"zero-00001.json is missing"):
            writers[0].wait()

    def test_close_does_not_wait_for_another_try(self, store, monkeypatch):
        monkeypatch.setattr(retries, "RETRY_DELAYS_S", (60.0, 60.0))
        failed = threading.Event()

        def refuse(folder):
            failed.set()
            raise OSError(5, "gone")

        writer = CheckpointWriter(store, World(0, 1), TOKEN)
        writer.begin(10, refuse)
        assert failed.wait(10)
        started_at_s = time.monotonic()
        writer.close()
        assert time.monotonic() - started_at_s < 5


class TestRefusingStorage:
    """Real refusals; root is not stopped by permission bits, so the folder's parent is made a file or read-only."""

    def failing_save(self, root: Path) -> str:
        writer = CheckpointWriter(CheckpointStore(Storage(str(root / "checkpoints"))), World(0, 1), TOKEN)
        try:
            writer.begin(10, lambda folder: [write_hashed(folder, "zero", [bytes(3 << 20)])])
            with pytest.raises(CheckpointError) as error:
                writer.wait()
            return str(error.value)
        finally:
            writer.close()

    @pytest.fixture
    def tiny_disk(self, tmp_path, store):
        """A file system of 1 MiB."""
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
        if mounted.returncode:
            pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
        yield tmp_path
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)

    def test_disk_full(self, tiny_disk):
        message = self.failing_save(tiny_disk)
        assert "No space left" in message and "Free space" in message and str(tiny_disk) in message

    def test_what_a_failed_save_has_left_does_not_fill_the_disk(self, tiny_disk):
        """There must be room for the summary that says what has happened."""
        self.failing_save(tiny_disk)
        (tiny_disk / "summary.json").write_bytes(b"x" * (1 << 19))

    def test_read_only_file_system(self, tiny_disk):
        subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
        message = self.failing_save(tiny_disk)
        assert "Read-only" in message and "permission to write" in message

    def test_file_size_limit(self, tmp_path):
        """Disk full by a limit of the process, for machines where nothing may be mounted."""
        source = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
            "import importlib.util as u; from pathlib import Path\n"
            f"spec = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(spec)\n"
            "spec.loader.exec_module(t); t.retries.RETRY_DELAYS_S = (0.0, 0.0)\n"
            "print(t.TestRefusingStorage().failing_save(Path(sys.argv[1])))"
        )
        result = subprocess.run([sys.executable, "-c", source, str(tmp_path)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "File too large" in result.stdout and "Free space" in result.stdout

    def test_a_file_stands_where_the_folder_should_be(self, tmp_path, store):
        (tmp_path / "checkpoints").write_text("not a folder")
        message = self.failing_save(tmp_path)
        assert str(tmp_path / "checkpoints") in message


def test_nothing_is_unpickled():
    """P13: no module that reads checkpoints imports pickle or torch, and a manifest is plain JSON."""
    for module in (manifest_module, store_module):
        source = Path(module.__file__).read_text()
        assert "pickle" not in source.replace("unpickled", "") and "import torch" not in source


def test_import_is_light():
    source = "import sys, raytrain.checkpoint.writer\nassert not {'torch', 'ray', 'deepspeed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)


def test_the_files_are_json_for_a_person_to_read(store):
    save(store, 10)
    body = json.loads(path_in(store, 10, "manifest.json").read_text())
    assert body["step"] == 10 and {"name", "num_bytes", "sha256"} == set(body["files"][0])
