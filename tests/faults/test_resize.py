"""P9 and P12: nodes come, are reclaimed and are killed, and the training does not notice."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster import NodePool
from running import (
    assert_same_curve,
    losses,
    run_cli,
    samples_of_steps,
    start_cli,
    steps_done,
    tiny_run,
    wait_until,
    write_config,
)

from raytrain.config import RunConfig
from raytrain.storage import Storage
from raytrain.training.records import read_jsonl

# A constant learning rate: what a step does then does not depend on how many follow, so that a run may be ended when
# enough has happened to it.
ENDLESS = (
    "training.optimizer.learning_rate=1e-4",
    "training.schedule={kind: constant, warmup_ratio: 0.0}",
    "data.validation=null",
    "tracking.tensorboard=false",
)
ELASTIC = ("workers.max=3", "workers.cpus=2", "workers.data_cpus=0.33", "workers.grow_delay_s=0.5")
PATIENCE_S = 180


class Training:
    """`raytrain train` on a cluster, and what it has written."""

    def __init__(self, pool: NodePool, folder: Path, *overrides: str):
        every = (*ENDLESS, *ELASTIC, "workers.grow_payback=0", "checkpoint.save_every_steps=50", *overrides)
        self.config = endless_run(folder, "elastic", 100_000, *every)
        self.path = folder / "runs" / "elastic"
        self.pool = pool
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        folder = self.path.parent.parent
        env = {"RAY_ADDRESS": self.pool.address, "RAY_AUTH_MODE": "disabled"}
        return start_cli("train", write_config(self.config, folder), env=env)

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_jsonl(Storage(str(self.path)), "events.jsonl") if event["kind"] in kinds]

    def world_size(self) -> int | None:
        """Of the newest step."""
        rows = read_jsonl(Storage(str(self.path)), "metrics.jsonl")
        return rows[-1]["world_size"] if rows else None

    def wait_for_workers(self, world_size: int) -> None:
        """Wait until a group of this size has done some steps."""
        self.wait(lambda: self.world_size() == world_size, f"a step of {world_size} worker(s)")
        step = steps_done(self.path)
        self.wait(lambda: steps_done(self.path) >= step + 20, "twenty more steps")

    def wait(self, condition: Any, what: str) -> None:
        def is_met() -> bool:
            assert self.process.poll() is None, f"the run ended: {self.process.communicate()[0]}"
            return bool(condition())

        wait_until(is_met, what, PATIENCE_S)

    def stop(self) -> str:
        """SIGTERM; returns what the run printed."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=120)
        assert "raytrain resume" in output, output
        return output


def endless_run(folder: Path, name: str, max_steps: int, *overrides: str) -> RunConfig:
    return tiny_run(folder, name, f"training={{max_steps: {max_steps}, {BATCHES}}}", *overrides)


BATCHES = "global_batch_size: 8, micro_batch_size: 4, precision: fp32, dropout: 0.0"


def assert_undisturbed(training: Training, folder: Path) -> None:
    """The run is the one that a single worker does alone: samples in every step, losses within 1e-4."""
    name = "undisturbed"
    config = endless_run(folder, name, steps_done(training.path), *ENDLESS)
    code, output = run_cli("train", write_config(config, folder))
    assert code == 0, output
    assert samples_of_steps(training.path) == samples_of_steps(folder / "runs" / name)
    assert_same_curve(losses(training.path), losses(folder / "runs" / name))


@pytest.mark.parametrize(
    "zero_stage", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_resized_and_reclaimed_and_killed(pool: NodePool, tmp_path: Path, zero_stage: int) -> None:
    """1 -> 2 -> 3 by nodes that come, -> 2 by a notice, -> 1 by a kill."""
    training = Training(pool, tmp_path, f"training.zero_stage={zero_stage}")
    training.wait_for_workers(1)
    pool.add()
    training.wait_for_workers(2)
    pool.add()
    training.wait_for_workers(3)
    reclaimed = pool.nodes[1]
    pool.drain(reclaimed, deadline_s=60)
    training.wait_for_workers(2)
    pool.kill(reclaimed)  # its time is over; the run has left it
    assert [event["steps_redone"] for event in training.events("resize", "reclaim")] == [0, 0, 0]
    pool.kill(pool.nodes[1])
    training.wait_for_workers(1)
    assert len(training.events("failure")) == 1
    output = training.stop()
    assert "notice to reclaim" in output
    assert_undisturbed(training, tmp_path)
