"""Data that does not fit on the disk: said in a sentence, by the process that writes a part or by the driver."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import tiny_run
from whole_run import without_ray

from raytrain.data.prepare import prepare
from raytrain.errors import DataError, FailureCode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, 40_000], ids=["no room", "little room"])
def test_data_that_does_not_fit(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    without_ray(monkeypatch, tmp_path / "runs")
    config = tiny_run(tmp_path, "a", f"data.prepared_path={disk}", num_rows=4000 if room else 403)
    (disk / "filler").write_bytes(b"0" * (64 * 1024 - room))
    with pytest.raises(DataError, match=rf"{disk}.*No space left on device.*Free space there") as failed:
        prepare(config)
    assert failed.value.code is FailureCode.STORAGE and failed.value.exit_code == 1
    assert all(path.name == "filler" or path.name.endswith(".work") for path in disk.iterdir())
