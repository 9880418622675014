"""What a node's metrics endpoint shows Prometheus of runs and sweeps, on a real head."""

import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from running import ENV, kill_all, start_cli, summary, tiny_run, wait_until, write_config

pytestmark = pytest.mark.slow  # tests/unit/test_metrics_export.py is the quick one

ROOT = str(Path(__file__).parents[2])
REPORT_EVERY_S = 2  # Ray's own is 10: each process then sends its metrics, and an agent forgets a gauge after two
LR = "training.optimizer.learning_rate"


class Head:
    """A head of six CPUs that shows its metrics on a port."""

    def __init__(self, folder: Path):
        self.folder, self._token = folder, secrets.token_hex(16)
        port, self._metrics, dashboard, agent, client = _free_ports(5)
        self._address = f"127.0.0.1:{port}"
        self._temp_dir = tempfile.mkdtemp(prefix="rt_", dir="/tmp")  # sockets lie in it, whose paths must be short
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=6"]
        command += [f"--port={port}", f"--metrics-export-port={self._metrics}", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
        command += [f"--temp-dir={self._temp_dir}", "--disable-usage-stats", "--object-store-memory=300000000"]
        log = (folder / "head.log").open("w")
        env = {**ENV, **self.env, "PYTHONPATH": ROOT}
        self._process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        wait_until(lambda: self.text() is not None, "the metrics endpoint", timeout_s=60)

    @property
    def env(self) -> dict[str, str]:
        """What a command of this cluster has in its environment."""
        report = {"RAY_metrics_report_interval_ms": str(REPORT_EVERY_S * 1000)}
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token, "RAY_ADDRESS": self._address, **report}

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `raytrain ARGS` on this cluster."""
        return start_cli(*args, env=self.env)

    def text(self) -> str | None:
        """What Prometheus would read now; None: nobody answers."""
        assert self._process.poll() is None, (self.folder / "head.log").read_text()
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=5) as page:
            return str(page.read().decode())
        return None

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Values of a metric by whose they are, and its own label."""
        found = {}
        for family in text_string_to_metric_families(self.text() or ""):
            for sample in family.samples:
                if sample.name == f"ray_raytrain_{name}":
                    own = [sample.labels[key] for key in ("cause", "class", "metric", "status") if key in sample.labels]
                    whose = sample.labels.get("run") or sample.labels["sweep"]
                    found[(whose, *own)] = sample.value
        return found

    def close(self) -> None:
        """SIGKILL the head and all that it started."""
        kill_all(self._process)
        shutil.rmtree(self._temp_dir, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    head = Head(tmp_path_factory.mktemp("metrics"))
    yield head
    head.close()


def gone(head: Head, name: str, whose: str) -> bool:
    return not any(key[0] == whose for key in head.samples(name))


def test_a_run_shows_on_the_endpoint_and_goes_away_with_its_end(head: Head) -> None:
    run = ("training.epochs=400", "workers.min=2", "workers.max=2", "training.eval_every_steps=10", "data.test=null")
    config = write_config(tiny_run(head.folder, "shown", *run), head.folder)
    process = head.start("train", config)
    me = ("shown",)
    try:
        wait_until(lambda: head.samples("goodput_ratio").get(me), "goodput on the endpoint", 90)
        wait_until(lambda: ("shown", "accuracy") in head.samples("validation_metric"), "an evaluation")
        assert 0 < head.samples("train_loss")[me] < 2
        assert head.samples("workers")[me] == head.samples("workers_wanted")[me] == 2
        assert 0 < head.samples("goodput_ratio")[me] <= 1
        assert head.samples("learning_rate")[me] > 0
        assert head.samples("worker_seconds")[("shown", "useful")] > 0
        assert time.time() - head.samples("last_checkpoint_timestamp_seconds")[me] < 60
        before = head.samples("steps_total")[me]
        wait_until(lambda: head.samples("steps_total")[me] > before, "the counter to grow", 30)
        assert head.samples("restarts_total")[("shown", "failure")] == 0, "it is there before the first one"
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 1, output
    stopped_at = summary(head.folder / "runs" / "shown")["step"]
    assert head.samples("run_ends_total")[("shown", "stopped")] == 1, "told before Ray was left"
    assert head.samples("steps_total")[me] == stopped_at
    wait_until(lambda: gone(head, "train_loss", "shown"), "the gauges to go", 4 * REPORT_EVERY_S + 10)
    assert gone(head, "workers", "shown")
    assert head.samples("steps_total")[me] == stopped_at


def test_the_trials_of_a_sweep(head: Head) -> None:
    """The process of a trial that is over goes on with the next one, and tells nothing more of the first."""
    config = write_config(tiny_run(head.folder, "tried", "training.epochs=4", "data.test=null"), head.folder)
    space = head.folder / "rates.yaml"
    domain = {"kind": "loguniform", "low": 1e-4, "high": 1e-2}
    space.write_text(yaml.safe_dump({"parameters": {LR: domain}, "budget": {"trials": 3}}))
    process = head.start("tune", config, "--space", str(space), "--max-concurrent", "1")
    sweep, first, second = "tried-rates", "tried-rates/trial_0000", "tried-rates/trial_0001"
    try:
        wait_until(lambda: not gone(head, "train_loss", first), "the first trial", 90)
        wait_until(lambda: not gone(head, "train_loss", second), "the second trial", 90)
        assert head.samples("sweep_trials")[(sweep, "running")] >= 1
        wait_until(lambda: gone(head, "train_loss", first), "the first trial to go", 30)
        assert not gone(head, "sweep_best_value", sweep)
        assert head.samples("steps_total")[(sweep,)] > 0, "trials count together"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)
    wait_until(lambda: gone(head, "sweep_trials", sweep), "the sweep to go", 30)
