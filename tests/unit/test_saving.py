"""The best model's folder: replaced so that a crash at any moment leaves one that is whole."""

from pathlib import Path
from typing import Any

import pytest

from raytrain.models.card import BEST
from raytrain.storage import Storage
from raytrain.training.saving import recover_folder, replace_folder


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


@pytest.mark.parametrize("crash_at", range(1, 8))
def test_a_crash_leaves_the_old_or_the_new_one(tmp_path: Path, crash_at: int) -> None:
    """Every operation on the storage in turn is the last one."""
    run = Storage(str(tmp_path / "run"))
    replace_folder(run, BEST, model(tmp_path / "one", "one"))
    new = model(tmp_path / "two", "two")
    with pytest.raises(KeyboardInterrupt):
        replace_folder(dying(run, crash_at), BEST, new)
    recover_folder(run, BEST)
    assert len(versions(tmp_path / "run")) == 1
    replace_folder(run, BEST, model(tmp_path / "three", "three"))
    assert versions(tmp_path / "run") == {"three"}
    assert run.list_names() == [BEST]


def dying(run: Storage, crash_at: int) -> Any:
    """The same storage, whose process ends before its n-th changing operation."""

    class Dying:
        done = 0

        def __getattr__(self, name: str) -> Any:
            if name in ("delete", "move", "open_output"):
                self.done += 1
                if self.done >= crash_at:
                    raise KeyboardInterrupt
            return getattr(run, name)

    return Dying()
