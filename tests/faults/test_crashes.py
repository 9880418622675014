"""Crashes of workers, nodes and the driver at bad moments, and what the run makes of them."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster import NodePool
from running import (
    ENV,
    committed_steps,
    hear_ctrl_c,
    kill_all,
    run_cli,
    start_cli,
    steps_done,
    tiny_run,
    wait_until,
    worker_processes,
    write_config,
)
from training import Training

pytestmark = pytest.mark.slow


def test_a_run_waits_for_its_first_node_and_says_so(pool: NodePool, tmp_path: Path) -> None:
    pool.kill(pool.nodes[0])
    training = Training(pool, tmp_path)
    time.sleep(25)
    assert training.process.poll() is None
    pool.add()
    training.wait_for_workers(1)
    output = training.stop()
    assert "waiting for nodes (" in output
    assert "there is room for 0 of the 1 (workers.min) workers of 2 CPU each" in output


def test_a_run_that_waits_too_long_ends_with_what_was_missing(pool: NodePool, tmp_path: Path) -> None:
    pool.kill(pool.nodes[0])
    training = Training(pool, tmp_path, "workers.wait_timeout_s=5")
    output, _ = training.process.communicate(timeout=120)
    assert training.process.returncode == 1, output
    assert "for workers.wait_timeout_s 5 s; add nodes, lower workers.min, or raise the timeout" in output


def test_a_worker_that_dies_while_the_group_starts(pool: NodePool, tmp_path: Path) -> None:
    training = Training(pool, tmp_path)
    wait_until(worker_processes, "a worker's process", 120)
    for process in worker_processes():
        process.kill()
    training.wait_for_workers(1)
    training.stop()
    training.assert_undisturbed()
    pool.assert_nothing_is_held()


def test_a_worker_that_hangs(pool: NodePool, tmp_path: Path) -> None:
    """Its neighbour waits in a collective, and neither of them dies by itself."""
    pool.add()
    training = Training(pool, tmp_path, "workers.stall_timeout_s=8")
    training.wait_for_workers(2)
    hung = worker_processes()[0]
    hung.suspend()
    training.wait(lambda: training.events("failure"), "the end of the group that hangs")
    training.wait_for_workers(2)
    output = training.stop()
    assert "the workers hang: no step, evaluated batch or save for workers.stall_timeout_s 8 s" in output
    assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE
    training.assert_undisturbed()
    pool.assert_nothing_is_held()


def test_two_nodes_at_once(pool: NodePool, tmp_path: Path) -> None:
    """A snapshot that lost both its copies of a part is not used; the run goes back to storage."""
    pool.add()
    pool.add()
    training = Training(pool, tmp_path, "checkpoint={save_every_steps: 30, snapshot_every_steps: 5}")
    training.wait_for_workers(3)
    nodes = training.nodes()
    for node_id in nodes[:2]:
        pool.kill(pool.node_of(node_id))
    training.wait_for_workers(1)
    training.stop()
    training.assert_undisturbed()


def test_snapshots_are_taken_whatever_else_is_due(pool: NodePool, tmp_path: Path) -> None:
    """P12: an evaluation after each step after which a snapshot is due; many of them find a new best model."""
    validation = f"data.validation={{path: {tmp_path / 'data' / 'validation.parquet'}}}"
    training = Training(pool, tmp_path, validation, "training.eval_every_steps=5")
    training.wait_for_workers(1)
    for process in worker_processes():
        process.kill()
    training.wait_for_workers(1)
    assert training.events("restore")[-1]["source"] == "snapshot"
    training.stop()
    training.assert_undisturbed()


def test_a_notice_that_is_shorter_than_a_save(pool: NodePool, tmp_path: Path) -> None:
    """The node goes a moment after its notice: no failure budget is spent, and a snapshot is gone back to."""
    pool.add()
    training = Training(pool, tmp_path, "workers.max_failures=0")
    training.wait_for_workers(2)
    victim = pool.node_of(training.nodes()[0])
    pool.drain(victim, deadline_s=0.2)
    time.sleep(0.2)
    pool.kill(victim)
    training.wait_for_workers(1)
    training.stop()
    training.assert_undisturbed()


def test_the_driver_dies_and_the_same_command_goes_on(pool: NodePool, tmp_path: Path) -> None:
    """`ray job submit` again, or a KubeRay retry: the cluster stays, the driver is new."""
    pool.add()
    training = Training(pool, tmp_path, "checkpoint={save_every_steps: 20}")
    training.wait_for_workers(2)
    os.killpg(training.process.pid, signal.SIGKILL)
    training.process.wait()
    before = steps_done(training.path)
    training.start()
    wait_until(lambda: steps_done(training.path) > before + 50, "the run to go on")
    training.stop()
    training.assert_undisturbed()
    pool.assert_nothing_is_held()


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(pool: NodePool, tmp_path: Path, seed: int) -> None:
    """SIGKILL of one worker after the other at moments drawn by chance: in start-up, restore, steps, saves, uploads."""
    pool.add()
    moment = random.Random(seed)
    training = Training(pool, tmp_path, "workers.max_failures=100", "checkpoint={save_every_steps: 7, keep_last: 1}")
    wait_until(worker_processes, "a worker's process", 120)
    for _ in range(6):
        time.sleep(moment.uniform(0, 15))
        if processes := worker_processes():
            moment.choice(processes).kill()
    training.wait_for_workers(2)
    training.stop()
    training.assert_undisturbed()
    pool.assert_nothing_is_held()


def test_storage_that_fails_for_a_while(pool: NodePool, tmp_path: Path) -> None:
    """The checkpoints' folder can't be written for some seconds: tried again, and charged to nobody."""
    training = Training(pool, tmp_path, "checkpoint={save_every_steps: 10}", "workers.max_failures=0")
    training.wait_for_workers(1)
    folder = training.path / "checkpoints"
    subprocess.run(["chattr", "+i", str(folder)], check=True)  # root writes where permissions forbid
    try:
        training.wait(lambda: steps_done(training.path), "steps")
        time.sleep(3)
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)
    before = max(committed_steps(training.path))
    training.wait(lambda: max(committed_steps(training.path), default=0) > before, "another checkpoint")
    training.stop()
    assert not training.events("failure")


def test_a_full_disk(tmp_path: Path) -> None:
    """The run ends with a sentence, and what was saved before is good; with room made, the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        checkpoint = "checkpoint={save_every_steps: 5, snapshot_every_steps: null}"
        path = write_config(tiny_run(disk, "full", "training.epochs=20", "data.test=null", checkpoint), tmp_path)
        run = disk / "runs" / "full"
        process = start_cli("train", path)
        wait_until(lambda: committed_steps(run), "a checkpoint")
        filler = disk / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"0" * 65536)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 1, output
        assert "can't save step" in output, output
        assert "No space left" in output, output
        assert "Traceback" not in output, output
        saved = committed_steps(run)
        assert saved
        filler.unlink()
        process = start_cli("train", path)
        wait_until(lambda: max(committed_steps(run)) > max(saved), "a later checkpoint")
        process.send_signal(signal.SIGTERM)
        assert "raytrain resume" in process.communicate(timeout=120)[0]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_while_data_is_prepared(tmp_path: Path) -> None:
    """The sentence and the exit code, and nothing of Ray Data's."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        path = write_config(tiny_run(tmp_path, "full", f"data.prepared_path={disk}", num_rows=20_000), tmp_path)
        code, output = run_cli("train", path)
        assert code == 1, output
        assert "No space left" in output and "Free space there" in output and str(disk) in output, output
        assert "Traceback" not in output and "ray::" not in output, output
        assert not (tmp_path / "runs" / "full").exists(), "a run that has not begun leaves no folder"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_two_commands_for_one_run(tmp_path: Path) -> None:
    path = write_config(tiny_run(tmp_path, "twice", "training.epochs=100"), tmp_path)
    first = start_cli("train", path)
    try:
        wait_until(lambda: steps_done(tmp_path / "runs" / "twice") > 5, "some steps")
        code, output = run_cli("train", path)
        assert code == 2
        assert f"is being trained by process {first.pid}" in output
        assert first.poll() is None
        rows = (tmp_path / "runs" / "twice" / "metrics.jsonl").read_text().splitlines()
        assert {json.loads(row)["attempt"] for row in rows} == {0}
    finally:
        kill_all(first)


def test_a_run_that_gives_up_keeps_what_only_memory_held(pool: NodePool, tmp_path: Path) -> None:
    """No failure is allowed, and nothing was saved to storage yet: the newest snapshot becomes a checkpoint."""
    training = Training(pool, tmp_path, "workers.max_failures=0")
    training.wait_for_workers(1)
    training.wait(lambda: steps_done(training.path) > 40, "some snapshots")
    for process in worker_processes():
        process.kill()
    output, _ = training.process.communicate(timeout=120)
    assert training.process.returncode == 1, output
    assert "1 failure(s) within an hour, and workers.max_failures is 0" in output
    (saved,) = committed_steps(training.path)
    assert steps_done(training.path) - 10 <= saved
    training.config = training.config.model_copy(
        update={"workers": training.config.workers.model_copy(update={"max_failures": 3})}
    )
    training.start()
    training.wait(lambda: steps_done(training.path) > saved + 40, "the run to go on")
    training.stop()
    training.assert_undisturbed()


def test_a_driver_that_is_gone_leaves_no_workers_behind(tmp_path: Path) -> None:
    """In a Ray of the caller's own, an interrupted call ends its workers too."""
    script = tmp_path / "call.py"
    path = write_config(tiny_run(tmp_path, "called", "training.epochs=1000"), tmp_path)
    script.write_text(CALL.format(path=path))
    process = subprocess.Popen(
        [sys.executable, str(script)], env={**ENV, "RAY_AUTH_MODE": "disabled"}, text=True, preexec_fn=hear_ctrl_c
    )
    run = tmp_path / "runs" / "called"
    try:
        wait_until(lambda: steps_done(run) > 20, "some steps")
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: (tmp_path / "interrupted").exists(), "the call to end")
        time.sleep(5)
        before = steps_done(run)
        time.sleep(5)
        assert steps_done(run) == before
        assert process.poll() is None  # the caller goes on, and so does its Ray
    finally:
        kill_all(process)


CALL = """
import pathlib, time, ray, raytrain
ray.init(address="local", num_cpus=6, include_dashboard=False)
try:
    raytrain.train({path!r})
except KeyboardInterrupt:
    (pathlib.Path({path!r}).parent / "interrupted").write_text("")
time.sleep(600)
"""
