"""`raytrain submit` and `raytrain jobs` against a real head with a job server and token authentication."""

import os
import pty
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from running import (
    ENV,
    committed_steps,
    hear_ctrl_c,
    kill_all,
    start_cli,
    steps_done,
    summary,
    tiny_run,
    wait_until,
    write_config,
)

from raytrain.config import RunConfig

ROOT = str(Path(__file__).parents[2])
# Long enough to be interrupted anywhere, and without a checkpoint that nobody asks for.
ENDLESS = ("training.epochs=200", "checkpoint.save_every_steps=100000")


class Head:
    """A head of six CPUs, as `ray start` makes it on the first machine of a cluster."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.token = secrets.token_hex(16)
        port, dashboard, agent, client = _free_ports(4)
        self.address = f"http://127.0.0.1:{dashboard}"
        self._temp_dir = tempfile.mkdtemp(prefix="rt_", dir="/tmp")  # sockets lie in it, whose paths must be short
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=6"]
        command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client}", f"--temp-dir={self._temp_dir}", "--disable-usage-stats"]
        command += ["--object-store-memory=300000000"]
        # A cluster's image has raytrain in its `python`.
        path = f"{os.path.dirname(sys.executable)}:{ENV['PATH']}"
        env = {**ENV, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "PATH": path, "PYTHONPATH": ROOT}
        log = (folder / "head.log").open("w")
        self._process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        wait_until(self._is_up, "the job server", timeout_s=60)

    @property
    def env(self) -> dict[str, str]:
        """What a user of this cluster sets."""
        return {"RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address}

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `raytrain ARGS` as that user."""
        return start_cli(*args, env=self.env)

    def run(self, *args: str, **env: str) -> tuple[int, str]:
        """Run `raytrain ARGS` to its end, with `env` in the environment too: exit code and output."""
        process = start_cli(*args, env={**self.env, **env})
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def submit_detached(self, *words: str) -> str:
        """Submit a command without following it; returns the job's id."""
        code, output = self.run("submit", "--detach", "--", *words)
        assert code == 0, output
        return output.split("raytrain jobs attach ")[1].strip()

    def _is_up(self) -> bool:
        assert self._process.poll() is None, (self.folder / "head.log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2])), 1):
            return True
        return False

    def close(self) -> None:
        """SIGKILL the head and all that it started."""
        kill_all(self._process)
        shutil.rmtree(self._temp_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    head = Head(tmp_path_factory.mktemp("submit"))
    yield head
    head.close()


def config_of(head: Head, name: str, *overrides: str) -> tuple[str, Path]:
    """A tiny run's config file, and its folder."""
    config: RunConfig = tiny_run(head.folder, name, "tracking.tensorboard=false", *overrides)
    return write_config(config, head.folder), head.folder / "runs" / name


def test_a_stopped_job_saves_and_the_same_submission_goes_on(head: Head) -> None:
    """Ctrl-C and s on a terminal, which is no success; then the same again: detached, listed, attached to its end."""
    config, run = config_of(head, "sent", "training.epochs=6", "checkpoint.save_every_steps=100000", "data.test=null")
    code, output = on_a_terminal(
        head, ["submit", "--", "train", config], lambda: steps_done(run) >= 5, "leave it running (d)", "s\n"
    )
    assert code == 1, output
    assert "stopping: saving a checkpoint" in output
    assert f"to resume it: raytrain resume {run}" in output
    assert "was stopped; the same command resumes" in output
    stopped_at = steps_done(run)
    assert committed_steps(run) == [stopped_at] != [306]  # not a step is lost

    job = head.submit_detached("train", config)
    code, output = head.run("submit", "--", "train", config)
    assert (code, f"raytrain jobs attach {job}" in output) == (2, True), output  # one job a run
    code, output = head.run("jobs", "attach", job)
    assert code == 0, output
    assert f"resuming from the checkpoint of step {stopped_at}" in output
    assert f"model   {run}/best" in output
    assert output.endswith(f"job {job} is done\n")
    assert summary(run)["status"] == "finished"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 306  # each step was done once

    code, listed = head.run("jobs", "list")
    line = next(line for line in listed.splitlines() if line.startswith(job))
    assert [word for word in line.split() if word in ("SUCCEEDED", "0", str(run))] == ["SUCCEEDED", "0", str(run)]
    assert head.token not in output + listed


def test_a_failed_run_is_a_failed_command(head: Head) -> None:
    """Its data is looked for where it runs."""
    config, _ = config_of(head, "failing")
    code, output = head.run("submit", "--", "train", config, "data.train.path=/nowhere/x.parquet")
    assert code == 2, output
    assert "error: data.train.path '/nowhere/x.parquet': no such file" in output
    assert "failed with exit code 2" in output


def test_without_the_token_nobody_gets_in(head: Head) -> None:
    config, _ = config_of(head, "refused")
    code, output = head.run("submit", "--", "train", config, RAY_AUTH_TOKEN="f" * 32)
    assert (code, "rejects this token" in output) == (2, True), output
    code, output = head.run("submit", "--", "train", config, RAY_AUTH_TOKEN="", HOME=str(head.folder))
    assert (code, "requires a token, and none was sent" in output) == (2, True), output
    code, output = head.run("jobs", "stop", "raysubmit_x")
    assert (code, "knows no job raysubmit_x" in output) == (2, True), output


@pytest.mark.slow
def test_ctrl_c_detaches_where_nobody_can_answer(head: Head) -> None:
    config, run = config_of(head, "left", *ENDLESS)
    process = head.start("submit", "--", "train", config)
    wait_until(lambda: steps_done(run) >= 2, "two steps")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1, output
    job = output.split("raytrain jobs attach ")[1].split(";")[0]
    step = steps_done(run)
    wait_until(lambda: steps_done(run) > step, "it to go on")
    driver = driver_of(head)
    driver.suspend()  # as in a save that takes longer than the three seconds after which Ray kills a job by itself
    process = head.start("jobs", "stop", job)
    time.sleep(8)
    driver.resume()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert f"to resume it: raytrain resume {run}" in output
    assert output.endswith(f"job {job} has ended: STOPPED\n")
    assert committed_steps(run) == [steps_done(run)]
    code, output = head.run("jobs", "attach", job)
    assert (code, "was stopped" in output) == (1, True), output


@pytest.mark.slow
def test_a_job_that_is_stopped_without_a_save_is_no_success(head: Head) -> None:
    config, run = config_of(head, "unsaved", *ENDLESS)
    job = head.submit_detached("train", config)
    wait_until(lambda: steps_done(run) >= 2, "two steps")
    driver = driver_of(head)
    driver.suspend()
    process = head.start("jobs", "stop", job)
    time.sleep(8)  # it has been asked by now, and can't answer
    driver.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "has not said that it saved" in output


@pytest.mark.slow
def test_the_doctor_of_a_cluster_that_is_elsewhere(head: Head) -> None:
    config, _ = config_of(head, "examined")
    code, output = head.run("submit", "--", "doctor", config)
    assert code in (0, 1), output
    assert "all-reduce" in output, output


@pytest.mark.slow
def test_a_killed_driver_is_resumed_by_the_same_submission(head: Head) -> None:
    config, run = config_of(head, "killed", ENDLESS[0], "checkpoint.save_every_steps=3")
    process = head.start("submit", "--", "train", config)
    wait_until(lambda: steps_done(run) >= 10 and committed_steps(run), "a checkpoint")
    driver_of(head).kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "was killed by signal 9" in output
    saved = committed_steps(run)[-1]
    job = head.submit_detached("train", config)
    wait_until(lambda: steps_done(run) > saved + 20, "it to go on")
    assert head.run("jobs", "stop", job)[0] == 0
    _, logs = head.run("jobs", "logs", job)
    assert "resuming from the checkpoint of step" in logs


@pytest.mark.slow
def test_the_same_submission_to_another_cluster_goes_on(tmp_path: Path) -> None:
    """The whole cluster is lost; the storage is not."""
    first = Head(tmp_path)
    try:
        config, run = config_of(first, "moved", ENDLESS[0], "checkpoint.save_every_steps=3")
        process = first.start("submit", "--", "train", config)
        wait_until(lambda: steps_done(run) >= 10 and committed_steps(run), "a checkpoint")
    finally:
        first.close()
    saved = committed_steps(run)[-1]
    second = Head(tmp_path)
    try:
        job = second.submit_detached("train", config)
        wait_until(lambda: steps_done(run) > saved + 20, "it to go on")
        assert second.run("jobs", "stop", job)[0] == 0
        assert "resuming from the checkpoint of step" in second.run("jobs", "logs", job)[1]
    finally:
        second.close()
    output, _ = process.communicate(timeout=120)  # it has waited for the first head to come back
    assert process.returncode == 1, output
    assert "lost the job server at" in output


@pytest.mark.slow
def test_a_sweep_with_its_space(head: Head) -> None:
    config, _ = config_of(head, "swept", "training.epochs=1")
    space = head.folder / "rates.yaml"
    space.write_text(
        "parameters: {training.optimizer.learning_rate: {kind: grid, values: [1.0e-3, 2.0e-3]}}\nbudget: {trials: 2}\n"
    )
    code, output = head.run("submit", "--", "tune", config, "--space", str(space), "--max-concurrent", "1")
    assert code == 0, output
    assert "finished: 2 trials, 0 failed" in output
    assert (head.folder / "runs" / "swept-rates" / "sweep.html").exists()


@pytest.mark.slow
def test_plain_ray_job_submit(head: Head) -> None:
    """As the README has it: a folder with run.yaml, and Ray's own command with the token."""
    project = head.folder / "project"
    project.mkdir()
    _, run = config_of(head, "plain", "training.epochs=1")
    shutil.copy(head.folder / "plain.yaml", project / "run.yaml")
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    command += ["--runtime-env-json", '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}']
    command += ["--", "raytrain", "train", "run.yaml"]
    env = {**ENV, **head.env, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 51/51" in done.stdout
    assert summary(run)["status"] == "finished"
    refused = subprocess.run(
        command, cwd=project, env={**env, "RAY_AUTH_TOKEN": "f" * 32}, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode != 0
    assert "invalid or incorrect" in refused.stdout + refused.stderr


@pytest.mark.slow
def test_a_cluster_without_raytrain_says_so(head: Head) -> None:
    """A folder `raytrain` without our modules, sent along, hides the installed package."""
    (head.folder / "empty" / "raytrain").mkdir(parents=True)
    (head.folder / "empty" / "raytrain" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named raytrain')\n"
    )
    config, _ = config_of(head, "absent")
    code, output = head.run("submit", "--working-dir", str(head.folder / "empty"), "--", "train", config)
    assert code == 1, output
    assert "the cluster's `python` has no raytrain" in output


def on_a_terminal(
    head: Head, args: list[str], ready: Callable[[], bool], question: str, answer: str
) -> tuple[int, str]:
    """Run `raytrain ARGS` on a terminal; once `ready()`, press Ctrl-C and answer the question. Exit code, output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "raytrain", *args],
        env={**ENV, **head.env, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # A shell in the background ignores Ctrl-C for all that it starts; a terminal does not.
        preexec_fn=hear_ctrl_c,
    )
    os.close(theirs)
    output, pressed, answered = "", False, False
    deadline_s = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline_s, output
        output += read_now(ours)
        if not pressed and ready():
            process.send_signal(signal.SIGINT)
            pressed = True
        if pressed and not answered and question in output:
            os.write(ours, answer.encode())
            answered = True
    output += read_now(ours)
    os.close(ours)
    return process.returncode, output


def read_now(terminal: int) -> str:
    """What is there within a moment."""
    if not select.select([terminal], [], [], 0.05)[0]:
        return ""
    try:
        return os.read(terminal, 1 << 16).decode(errors="replace")
    except OSError:  # the other end is closed
        return ""


def driver_of(head: Head) -> psutil.Process:
    """The newest job's driver, a process on the head."""
    drivers = [
        process
        for process in psutil.Process(head._process.pid).children(recursive=True)
        if process.is_running() and process.cmdline()[1:4] == ["-m", "raytrain", "train"]
    ]
    return max(drivers, key=lambda process: process.create_time())


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
