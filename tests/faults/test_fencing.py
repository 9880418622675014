"""P11 (one writer): a driver that was taken for dead, and its successor."""

import os
import signal
from pathlib import Path

import pytest
from cluster import NodePool
from running import committed_steps, steps_done, wait_until
from training import Training

from raytrain.checkpoint.fence import newest_token
from raytrain.storage import Storage

pytestmark = pytest.mark.slow
ALONE = "workers={max: 1, cpus: 2, data_cpus: 0.33}"
SAVES = "checkpoint={save_every_steps: 20, snapshot_every_steps: 5}"


def test_a_frozen_driver_and_its_successor(pool: NodePool, tmp_path: Path) -> None:
    """SIGSTOP, as a paused virtual machine: its workers train on, until the successor has taken over."""
    pool.add()
    training = Training(pool, tmp_path, ALONE, SAVES)
    training.wait_for_workers(1)
    frozen = training.process
    os.kill(frozen.pid, signal.SIGSTOP)
    run = Storage(str(training.path))
    token = newest_token(run)
    training.start()
    wait_until(lambda: newest_token(run) > token, "the successor to take over", 120)
    before = steps_done(training.path)
    training.wait(lambda: steps_done(training.path) > before + 50, "the successor to train")
    left = [event for event in training.events("start", "checkpoint", "failure") if event["attempt"] == 0]
    assert all(event["kind"] != "failure" for event in left), left
    os.kill(frozen.pid, signal.SIGCONT)
    output, _ = frozen.communicate(timeout=60)
    assert frozen.returncode == 1
    assert "another command has taken over" in output, output
    assert "Traceback" not in output, output
    assert not run.exists("summary.json"), "the successor still trains"
    after = steps_done(training.path)
    training.wait(lambda: steps_done(training.path) > after + 50, "the successor to continue")
    assert committed_steps(training.path)
    training.stop()
    training.assert_undisturbed()
    pool.assert_nothing_is_held()
