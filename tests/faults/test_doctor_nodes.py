"""`raytrain doctor` on a cluster with nodes that are ill: their Ray is real, and so is what is wrong with them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import NodePool
from running import ENV, kill_all, wait_until

import raytrain

pytestmark = pytest.mark.slow
PACKAGE = Path(raytrain.__file__).parent
STORE_BYTES = 150 << 20


def examine(pool: NodePool, folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and what the command says as JSON. Not run in the repository: Ray would show that folder to all."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**ENV, "RAY_ADDRESS": pool.address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": ":".join(paths)}
    command = [sys.executable, "-m", "raytrain", "doctor", "--json", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(report: dict[str, Any], check: str, status: str) -> list[dict[str, Any]]:
    return [finding for finding in report["findings"] if finding["check"] == check and finding["status"] == status]


def older_raytrain(folder: Path) -> str:
    """A folder for PYTHONPATH with this raytrain under another version: an image that was not built anew."""
    shutil.copytree(PACKAGE, folder / "raytrain", ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "raytrain" / "__init__.py"
    text = init.read_text().replace(f'__version__ = "{raytrain.__version__}"', '__version__ = "0.0.9"')
    assert "0.0.9" in text
    init.write_text(text)
    return f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")


@contextmanager
def node_with_its_own(storage: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node that has a disk of its own where the others have the shared folder."""
    ray = f"{sys.executable} -m ray.scripts.scripts start --address={address} --num-cpus=2 --block"
    script = f"mount -t tmpfs none {storage} && exec {ray} --disable-usage-stats --object-store-memory={STORE_BYTES}"
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process)


def num_nodes(pool: NodePool) -> int:
    from ray._raylet import GcsClient

    infos = GcsClient(address=pool.address).get_all_node_info().values()
    return sum(info.state == 0 for info in infos)  # ALIVE


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="a node with another file system needs root",
)
def test_an_old_image_and_a_folder_that_is_not_shared(pool: NodePool, tmp_path: Path) -> None:
    storage, home = tmp_path / "storage", tmp_path / "home"
    storage.mkdir()
    home.mkdir()
    stale = pool.cluster.add_node(num_cpus=2, wait=False, env_vars={"PYTHONPATH": older_raytrain(tmp_path / "old")})
    with node_with_its_own(storage, pool.address) as alone:
        wait_until(lambda: num_nodes(pool) == 4, "all four nodes", 60)
        code, report = examine(pool, home, "--storage", str(storage))
        assert code == 1
        assert report["num_nodes"] == 4

        (old,) = found(report, "versions", "problem")
        assert old["value"] == f"raytrain 0.0.9; this command has {raytrain.__version__}"
        (name,) = old["nodes"]
        assert name.endswith(stale.node_id[:6])
        assert len(found(report, "versions", "ok")[0]["nodes"]) == 3

        cut_off = [row for row in found(report, "storage", "problem") if "any other node" in row["value"]]
        assert len(cut_off) == 1
        assert len(cut_off[0]["nodes"]) == 1
        others = [row for row in found(report, "storage", "problem") if cut_off[0]["nodes"][0] in row["value"]]
        assert len(others) == 1
        assert len(others[0]["nodes"]) == 4  # three nodes, and the command
        assert "this command" in others[0]["nodes"]

        for check in ("ports", "all-reduce", "object transfer"):
            rows = [row for row in report["findings"] if row["check"] == check]
            assert [row["status"] for row in rows if row["status"] == "problem"] == [], rows
            assert sum(len(row["nodes"]) for row in rows) == 4
        (clock,) = found(report, "clock", "ok")
        assert len(clock["nodes"]) == 4

        assert list(storage.iterdir()) == []
        assert os.listdir(f"/proc/{alone.pid}/root{storage}") == []
        pool.assert_nothing_is_held()
    assert list(home.iterdir()) == []


def test_a_node_that_hangs_is_told_and_not_waited_for(pool: NodePool, tmp_path: Path) -> None:
    hanging = pool.add()
    wait_until(lambda: num_nodes(pool) == 3, "all three nodes", 60)
    (raylet,) = hanging.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        code, report = examine(pool, tmp_path)
        assert time.monotonic() - began_s < 150
    finally:
        os.kill(raylet.process.pid, signal.SIGCONT)
    assert code == 1
    (silent,) = found(report, "nodes", "problem")
    assert len(silent["nodes"]) == 1
    assert silent["nodes"][0].endswith(hanging.node_id[:6])
    assert "does not answer" in silent["value"]
    (answering,) = found(report, "versions", "ok")
    assert len(answering["nodes"]) == 2
    (summed,) = found(report, "all-reduce", "ok")
    assert len(summed["nodes"]) == 2
    pool.kill(hanging)
    pool.assert_nothing_is_held()
