"""Storage over a local folder: what it promises to the checkpoint store and the run directory."""

import pickle
from pathlib import Path

import pytest

from raytrain.storage import Storage


def test_a_commit_is_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.commit_bytes("a/manifest.json", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raytrain.storage.os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        storage.commit_bytes("a/manifest.json", b"new, but the disk is full")
    assert storage.read_bytes("a/manifest.json") == b"old"
    assert storage.list_names("a") == ["manifest.json"]  # no temporary file stays behind


def test_missing_things_are_told_apart(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "nowhere"))
    assert storage.list_names() == []
    assert not storage.exists("x")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("x")
    with pytest.raises(FileNotFoundError):
        storage.size_bytes("x")
    storage.delete("x")


def test_it_travels_to_another_process_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs")
    storage.write_bytes("a", b"1")
    travelled = pickle.loads(pickle.dumps(storage))
    monkeypatch.chdir("/")
    assert travelled.read_bytes("a") == b"1"


def test_move_replaces_a_folder(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("new/a", b"new")
    storage.write_bytes("best/b", b"old")
    storage.move("new", "best")
    assert storage.list_names("best") == ["a"]
    assert storage.list_names() == ["best"]


def test_random_access(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("x", b"0123456789")
    with storage.open_input("x") as file:
        assert file.read_at(3, 4) == b"456"
    assert storage.size_bytes("x") == 10
