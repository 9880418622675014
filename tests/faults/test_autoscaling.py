"""The real autoscaler, with a provider that makes raylets on this machine: nodes come for a run, and go after it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from running import kill_all, start_cli, tiny_run, wait_until, write_config
from training import Training

from raytrain.config.shipped import find_cluster_file

pytestmark = pytest.mark.slow
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # Ray's, of its fake provider
PATIENCE_S = 180
# What Ray's monitor reads without asking whether it is there.
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
COMMANDS += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")


class AutoscaledCluster:
    """A head with one CPU, and up to two nodes of two CPUs that the autoscaler starts and ends."""

    def __init__(
        self, folder: Path, make_config: Callable[[str], dict[str, Any]] | None = None, num_cpus: int = 1, **env: str
    ):
        """`num_cpus`: of the head, which is that of `make_config` too."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"{_own_address()}:{port}"
        config = folder / "cluster.json"
        config.write_text(json.dumps((make_config or cluster_config)(self.address)))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={num_cpus}"]
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
            **env,
        }
        log = (folder / "head.log").open("w")
        self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def raylets(self) -> int:
        """Nodes that run now, the head among them."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return sum(_name(process) == "raylet" for process in family)

    def close(self) -> None:
        """SIGKILL the head and all that it started."""
        kill_all(self.process)


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
    assert "waiting for nodes (" in output
    # One may stay: Ray Data leaves detached helpers of its own where its first pipeline ran, and a node that has an
    # actor is never idle to the autoscaler.
    wait_until(lambda: cluster.raylets() <= 2, "the nodes to go again", PATIENCE_S)
    training.assert_undisturbed()


def test_nodes_come_for_a_sweep(cluster: AutoscaledCluster, tmp_path: Path) -> None:
    """Two trials on a cluster that has none of their nodes at first: each gets one, and the sweep ends."""
    wait_until(lambda: cluster.raylets() == 1, "the head", PATIENCE_S)
    time.sleep(20)
    config = tiny_run(tmp_path, "swept", "workers={cpus: 2, data_cpus: 0.33}", "training.epochs=2")
    space = tmp_path / "rates.yaml"
    rates = {"training.optimizer.learning_rate": {"kind": "grid", "values": [1e-3, 2e-3]}}
    space.write_text(yaml.safe_dump({"parameters": rates, "budget": {"trials": 2}}))
    env = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    process = start_cli("tune", write_config(config, tmp_path), "--space", str(space), env=env)
    output, _ = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    sweep = json.loads((tmp_path / "runs" / "swept-rates" / "sweep.json").read_text())
    assert (sweep["status"], sweep["num_trials"], sweep["num_failed"]) == ("finished", 2, 0)
    starts = [
        json.loads(line)["nodes"]
        for path in tmp_path.glob("runs/swept-rates/trials/*/events.jsonl")
        for line in path.read_text().splitlines()
        if '"start"' in line
    ]
    assert all(HEAD_ID not in nodes for nodes in starts)
    wait_until(lambda: cluster.raylets() <= 2, "the nodes to go again", PATIENCE_S)


def test_data_nodes_come_with_the_workers(tmp_path: Path) -> None:
    """A head without CPUs, and nothing else at first: data is prepared, and two workers train beside their pipelines on
    a node that no worker fits on."""

    def config(address: str) -> dict[str, Any]:
        made = cluster_config(address)
        made["available_node_types"]["ray.head.default"]["resources"] = {"CPU": 0}
        made["available_node_types"]["data"] = {
            "resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1,
        }  # fmt: skip
        return {**made, "max_workers": 3}

    cluster = AutoscaledCluster(tmp_path, config, num_cpus=0)
    try:
        wait_until(lambda: cluster.raylets() == 1, "the head", PATIENCE_S)
        time.sleep(20)
        training: Any = Training(cluster, tmp_path)  # type: ignore[arg-type]
        training.wait_for_workers(2)
        assert cluster.raylets() == 4
        training.stop()
        training.assert_undisturbed()
    finally:
        cluster.close()


ASK = """
import sys, time, ray
from ray.autoscaler.sdk import request_resources
ray.init(sys.argv[1], log_to_driver=False)
request_resources(bundles=[{"CPU": 1, "GPU": 1}] * 2)
markets = []
for _ in range(60):
    time.sleep(1)
    markets = [node["Labels"].get("ray.io/market-type") for node in ray.nodes() if node["Resources"].get("GPU")]
    if len(markets) == 2:
        break
print("markets", *markets)
"""


def aws_config(address: str) -> dict[str, Any]:
    """The node types of the shipped AWS file, with a provider that has no spot."""
    shipped = yaml.safe_load(Path(find_cluster_file("aws")).read_text())["available_node_types"]
    config = cluster_config(address)
    kept = ("resources", "labels", "min_workers", "max_workers", "priority")
    types = {
        name: {"node_config": {}, **{key: shipped[name][key] for key in kept}} for name in ("gpu_spot", "gpu_on_demand")
    }
    config["available_node_types"] = {"ray.head.default": config["available_node_types"]["ray.head.default"], **types}
    config["provider"]["module"] = "refusing_provider.RefusingProvider"
    return config


def test_a_refused_spot_launch_brings_on_demand(tmp_path: Path) -> None:
    """Autoscaler v1, which the AWS file is for, with the ranking that it names."""
    start = yaml.safe_load(Path(find_cluster_file("aws")).read_text())["head_start_ray_commands"][1]
    (scorer,) = re.findall(r"RAY_AUTOSCALER_UTILIZATION_SCORER=([\w.]+)", start)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    env = {"RAY_enable_autoscaler_v2": "0", "RAY_AUTOSCALER_UTILIZATION_SCORER": scorer, "PYTHONPATH": paths}
    cluster = AutoscaledCluster(tmp_path, aws_config, **env)
    try:
        wait_until(lambda: cluster.raylets() == 1, "the head", PATIENCE_S)
        time.sleep(10)  # until its autoscaler and job server have come up
        asking = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-c", ASK, cluster.address]
        output = subprocess.run(command, env=asking, capture_output=True, text=True, timeout=PATIENCE_S).stdout
    finally:
        cluster.close()
    assert "markets on-demand on-demand" in output


def _own_address() -> str:
    import ray._private.services

    return ray._private.services.get_node_ip_address()


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
