"""A command that is refused leaves no folder of a run behind."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from running import tiny_run, write_config

from raytrain import retries
from raytrain.checkpoint.fence import lease_name
from raytrain.cli.main import app
from raytrain.errors import ConfigError, DataError, RaytrainError, TakenOverError
from raytrain.runs.beginning import lease_of
from raytrain.runs.lease import Lease
from raytrain.storage import Storage


def refused(run: Storage, *written: str) -> None:
    """A command that writes these files and is refused then."""
    with pytest.raises(DataError), lease_of(run, print):
        for name in written:
            run.write_bytes(name, b"x")
        raise DataError("row 6: text is empty")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_a_refused_command_made_is_removed(tmp_path: Path) -> None:
    refused(Storage(str(tmp_path / "runs" / "a")))
    assert files(tmp_path) == []
    os.makedirs(tmp_path / "runs")
    refused(Storage(str(tmp_path / "runs" / "a")), "ray_train/a/.validate_storage_marker")
    assert files(tmp_path) == ["runs"]  # it was there before


def test_a_command_that_was_suspended_removes_nothing_of_its_successor(tmp_path: Path) -> None:
    """Both were preparing the data: the run has not begun yet."""
    run = Storage(str(tmp_path / "runs" / "a"))
    with pytest.raises(TakenOverError), lease_of(run, print) as lease:
        run.write_bytes(lease_name(lease.token + 1), b"theirs")
        run.write_bytes("ray_train/a/x", b"theirs")
        lease.check_now()
    assert run.read_bytes(lease_name(2)) == b"theirs"
    assert run.read_bytes("ray_train/a/x") == b"theirs"


def test_a_run_that_has_begun_is_kept(tmp_path: Path) -> None:
    refused(Storage(str(tmp_path / "runs" / "a")), "config.yaml", "ray_train/a/x")
    assert files(tmp_path / "runs") == [
        *("a", "a/config.yaml", "a/lease", "a/lease/00000001"),
        *("a/ray_train", "a/ray_train/a", "a/ray_train/a/x"),
    ]


def test_what_others_have_there_is_kept(tmp_path: Path) -> None:
    """A folder of the user's own, in which the run was to be; another run; prepared data."""
    run = tmp_path / "runs" / "a"
    os.makedirs(run)
    (run / "notes.txt").write_text("mine")
    refused(Storage(str(run)), "ray_train/a/x")
    assert (run / "notes.txt").read_text() == "mine"
    other = Storage(str(tmp_path / "new" / "a"))
    with pytest.raises(ConfigError), lease_of(other, print):
        Storage(str(tmp_path / "new" / "b")).write_bytes("config.yaml", b"x")
        Storage(str(tmp_path / "new" / "_prepared")).write_bytes("store", b"x")
        raise ConfigError("no")
    assert files(tmp_path / "new") == ["_prepared", "_prepared/store", "b", "b/config.yaml"]


@pytest.mark.parametrize("mistake", ["data.train.path=/nowhere/x.parquet", "training.epochs=0", "task.label_column=y"])
def test_a_mistake_that_is_found_before_ray_is_started(tmp_path: Path, mistake: str) -> None:
    path = write_config(tiny_run(tmp_path, "wrong"), tmp_path)
    with pytest.raises(RaytrainError):
        app(["train", path, mistake], standalone_mode=False)
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_command_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lease_of(Storage(str(tmp_path / "runs" / "a")), print):
        raise KeyboardInterrupt
    assert files(tmp_path) == []


def test_a_lease_that_did_not_fit_on_the_disk_locks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """state.md 14b: its empty file was taken for that of another command."""
    monkeypatch.setattr(retries, "RETRY_DELAYS_S", (0.0, 0.0))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"0" * 4096)
        with pytest.raises(OSError, match="No space left"), lease_of(Storage(f"{disk}/runs/full"), print):
            pass
        filler.unlink()
        said: list[str] = []
        with Lease(Storage(f"{disk}/runs/full"), said.append):
            assert not said
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
