"""The best model's folder: replaced so that a crash at any moment leaves one that is whole."""

import hashlib
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run

from raytrain.checkpoint.folder import recover_folder, replace_folder
from raytrain.errors import CheckpointError
from raytrain.models.card import BEST
from raytrain.runs.resume import begin_or_resume
from raytrain.storage import Storage
from raytrain.training.export import check_exported


def model(folder: Path, version: str) -> str:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(version)
    return str(folder)


def versions(run: Path) -> set[str]:
    """What the files of best/ hold; more than one is a mixture."""
    return {path.read_text() for path in (run / BEST).iterdir()}


def test_it_is_replaced(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    for version in ("one", "two", "three"):
        replace_folder(run, BEST, model(tmp_path / version, version))
        assert versions(tmp_path / "run") == {version}
    assert run.list_names() == [BEST]


def test_one_that_does_not_fit_leaves_the_old_one_and_its_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        run = Storage(str(disk))
        replace_folder(run, BEST, model(tmp_path / "one", "one"))
        with pytest.raises(OSError, match="No space left"):
            replace_folder(run, BEST, model(tmp_path / "two", "two" * 500_000))
        assert versions(disk) == {"one"}
        (disk / "summary.json").write_bytes(b"x" * (1 << 19))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


class ObjectStore(Storage):
    """Behaves as an object store does: no local paths, no rename."""

    def local_path(self, name: str = "") -> None:
        return None

    def move(self, source: str, target: str) -> None:
        raise AssertionError("an object store has no rename")


@pytest.mark.parametrize("kind", [Storage, ObjectStore])
@pytest.mark.parametrize("crash_at", range(1, 18))
def test_a_crash_leaves_the_old_or_the_new_one(tmp_path: Path, crash_at: int, kind: type[Storage]) -> None:
    """Every operation on the storage in turn is the last one (state.md 7)."""
    run = kind(str(tmp_path / "run"))
    replace_folder(run, BEST, model(tmp_path / "one", "one"))
    new = model(tmp_path / "two", "two")
    with suppress(KeyboardInterrupt):
        replace_folder(dying(run, crash_at), BEST, new)
        assert crash_at > (7 if kind is Storage else 10), "there were as many operations"
    recover_folder(run, BEST)
    assert len(versions(tmp_path / "run")) == 1
    assert len(list((tmp_path / "run" / BEST).iterdir())) == 3
    replace_folder(run, BEST, model(tmp_path / "three", "three"))
    assert versions(tmp_path / "run") == {"three"}
    assert run.list_names() == [BEST]


def dying(run: Storage, crash_at: int) -> Any:
    """The same storage, whose process ends before its n-th changing operation."""

    class Dying:
        done = 0

        def __getattr__(self, name: str) -> Any:
            if name in ("delete", "move", "open_output", "write_bytes"):
                self.done += 1
                if self.done >= crash_at:
                    raise KeyboardInterrupt
            return getattr(run, name)

    return Dying()


@pytest.mark.parametrize("crash_at", range(1, 8))
def test_an_interrupted_recovery_is_recovered(tmp_path: Path, crash_at: int) -> None:
    run = ObjectStore(str(tmp_path / "run"))
    replace_folder(run, BEST, model(tmp_path / "one", "one"))
    with suppress(KeyboardInterrupt):
        replace_folder(dying(run, 8), BEST, model(tmp_path / "two", "two"))  # in the middle of the second copy
    with suppress(KeyboardInterrupt):
        recover_folder(dying(run, crash_at), BEST)
    recover_folder(run, BEST)
    assert len(versions(tmp_path / "run")) == 1
    assert len(list((tmp_path / "run" / BEST).iterdir())) == 3


@pytest.mark.parametrize("kind", [Storage, ObjectStore])
@pytest.mark.parametrize("crash_at", range(1, 12))
def test_a_run_that_starts_over_does_not_get_the_old_one_back(
    tmp_path: Path, crash_at: int, kind: type[Storage]
) -> None:
    """Killed while best/ was replaced, then given again with --overwrite."""
    run = kind(str(tmp_path / "runs" / "a"))
    replace_folder(run, BEST, model(tmp_path / "one", "one"))
    with suppress(KeyboardInterrupt):
        replace_folder(dying(run, crash_at), BEST, model(tmp_path / "two", "two"))
    begin_or_resume(run, tiny_run(tmp_path, "a"), overwrite=True)
    recover_folder(run, BEST)
    assert run.list_names() == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_changed_file_is_found_when_it_is_read(tmp_path: Path, name: str, damage: Any) -> None:
    folder = Path(model(tmp_path / "one", "one"))
    facts = {"files": {file: hashlib.sha256(b"one").hexdigest() for file in sorted(os.listdir(folder))}}
    check_exported(str(folder), sorted(facts["files"]), facts)
    damage(folder / name)
    with pytest.raises(CheckpointError, match=name):
        check_exported(str(folder), sorted(facts["files"]), facts)
