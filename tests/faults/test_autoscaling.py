"""The real autoscaler, with a provider that makes raylets on this machine: nodes come for a run, and go after it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import wait_until
from training import Training

pytestmark = pytest.mark.slow
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # Ray's, of its fake provider
PATIENCE_S = 180
# What Ray's monitor reads without asking whether it is there.
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
COMMANDS += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")


class AutoscaledCluster:
    """A head with one CPU, and up to two nodes of two CPUs that the autoscaler starts and ends."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"{_own_address()}:{port}"
        config = folder / "cluster.json"
        config.write_text(json.dumps(cluster_config(self.address)))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"]
        command += [f"--port={port}", f"--autoscaling-config={config}", "--dashboard-port=0", "--disable-usage-stats"]
        env = {
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_NODE_TYPE_NAME": "ray.head.default",
        }
        log = (folder / "head.log").open("w")
        self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def raylets(self) -> int:
        """Nodes that run now, the head among them."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return sum(_name(process) == "raylet" for process in family)

    def close(self) -> None:
        """SIGKILL the head and all that it started."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()


def cluster_config(address: str) -> dict[str, Any]:
    """As a cluster file would have it."""
    node_types = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "gcs_address": address, "head_node_id": HEAD_ID}
    return {
        "cluster_name": "autoscaled",
        "max_workers": 2,
        "provider": {**provider, "launch_multiple": True, "disable_node_updaters": True},
        "idle_timeout_minutes": 0.25,
        "available_node_types": node_types,
        "head_node_type": "ray.head.default",
        "auth": {},
        "upscaling_speed": 100,
        "file_mounts": {},
        "docker": {},
        **{name: [] for name in COMMANDS},
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[AutoscaledCluster]:
    cluster = AutoscaledCluster(tmp_path)
    yield cluster
    cluster.close()


def test_nodes_come_for_the_run_and_go_after_it(cluster: AutoscaledCluster, tmp_path: Path) -> None:
    wait_until(lambda: cluster.raylets() == 1, "the head", PATIENCE_S)
    # Ray's processes find out once which autoscaler there is: one that asks before it has come up speaks to the old one
    # for ever, which is not there.
    time.sleep(20)
    training: Any = Training(cluster, tmp_path)  # type: ignore[arg-type]
    training.wait_for_workers(2)  # at once, or after one
    output = training.stop()
    assert "waiting for nodes since" in output
    # One may stay: Ray Data leaves detached helpers of its own where its first pipeline ran, and a node that has an
    # actor is never idle to the autoscaler.
    wait_until(lambda: cluster.raylets() <= 2, "the nodes to go again", PATIENCE_S)
    training.assert_undisturbed()


def _own_address() -> str:
    import ray._private.services

    return ray._private.services.get_node_ip_address()


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
