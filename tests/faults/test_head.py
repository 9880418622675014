"""The head of the cluster dies: the command says what happened and how to continue, and leaves."""

from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cluster import node_pool
from training import Training

pytestmark = pytest.mark.slow


def head_on(port: int) -> psutil.Process:
    """Other tests' heads begin and end meanwhile."""
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"] == "gcs_server" and port in {c.laddr.port for c in process.net_connections()}:
                return process
    raise AssertionError(f"no head on port {port}")


def test_a_head_that_dies_is_told(tmp_path: Path) -> None:
    with node_pool(1) as pool:
        training = Training(pool, tmp_path)
        training.wait_for_workers(1)
        port = int(pool.address.rpartition(":")[2])
        head_on(port).kill()
        output, _ = training.process.communicate(timeout=150)
        assert training.process.returncode == 1
        assert "does not answer any more, so this command ends" in output, output
        assert f"raytrain resume {training.path}" in output, output
        assert "Stack trace" not in output and "Traceback" not in output, output
