"""`raytrain train` on a cluster of several raylets, and what happens to it."""

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

from raytrain.config import Exactness, RunConfig
from raytrain.runs.verification import steps_of
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
BATCHES = "global_batch_size: 8, micro_batch_size: 1, precision: fp32, dropout: 0.1"
# One worker a node, and no thought about whether a resize pays.
ELASTIC = (
    "workers={max: 3, cpus: 2, data_cpus: 0.33, grow_delay_s: 0.5, grow_payback: 0}",
    # Rarely to storage and often to the peers, so that what a crash goes back to is a snapshot.
    "checkpoint={save_every_steps: 100000, snapshot_every_steps: 5}",
)
ENDLESS_STEPS = 100_000
PATIENCE_S = 180


def endless_run(folder: Path, name: str, max_steps: int, *overrides: str) -> RunConfig:
    """A tiny run that ends at a step of our choice."""
    return tiny_run(folder, name, f"training={{max_steps: {max_steps}, {BATCHES}}}", *ENDLESS, *overrides)


STARTED: list[subprocess.Popen[str]] = []  # commands, for the end of a test


def validation_losses(run: Path) -> dict[int, float]:
    """By the step of the evaluation."""
    rows = read_jsonl(Storage(str(run)), "evals.jsonl")
    return {row["step"]: row["loss"] for row in rows if row["split"] == "validation"}


class Training:
    """The command, running."""

    def __init__(self, pool: NodePool, folder: Path, *overrides: str):
        self.pool, self.folder, self.path = pool, folder, folder / "runs" / "elastic"
        self.overrides = overrides
        self.config = endless_run(folder, "elastic", ENDLESS_STEPS, *ELASTIC, *overrides)
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Give the command, for the first time or again."""
        env = {"RAY_ADDRESS": self.pool.address, "RAY_AUTH_MODE": "disabled"}
        self.process = start_cli("train", write_config(self.config, self.folder), env=env)
        STARTED.append(self.process)
        return self.process

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_jsonl(Storage(str(self.path)), "events.jsonl") if event["kind"] in kinds]

    def nodes(self) -> list[str]:
        """Ids of the nodes of the newest group's workers, by rank."""
        return self.events("start")[-1]["nodes"]

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

    def resize_reclaim_kill(self) -> None:
        """1 -> 2 -> 3 by nodes that come, -> 2 by a notice, -> 1 by a kill of the node with rank 0."""
        self.wait_for_workers(1)
        self.pool.add()
        self.wait_for_workers(2)
        self.pool.add()
        self.wait_for_workers(3)
        reclaimed = self.pool.nodes[1]
        self.pool.drain(reclaimed, deadline_s=60)
        self.wait_for_workers(2)
        assert reclaimed.node_id not in self.nodes()
        self.pool.kill(reclaimed)  # its time is over; the run has left it
        assert [event["steps_redone"] for event in self.events("resize", "reclaim")] == [0, 0, 0]
        self.pool.kill(self.pool.node_of(self.nodes()[0]))
        self.wait_for_workers(1)
        (lost,) = self.events("failure")
        assert lost["cause"].startswith("a node was lost")
        # From the last complete snapshot, of every fifth step, on; the newest may have been on its way for as long.
        assert lost["steps_redone"] <= 15
        assert self.events("restore")[-1]["source"] == "snapshot"

    def stop(self) -> str:
        """SIGTERM; returns what the run printed."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=120)
        assert "raytrain resume" in output, output
        for noise in ("Raylet is terminated", "infinite retries"):  # Ray's own, of a node that is gone
            assert noise not in output, output
        return output

    def assert_undisturbed(self, *changes: str) -> None:
        """The run is the one that a single worker does alone: samples in every step, losses within 1e-4, and in
        bitwise mode the bits of losses and weights (P9). `changes`: overrides of the undisturbed run, for options
        that depend on how many steps a run has."""
        same = [word for word in self.overrides if word.startswith(("data.", "task=", "model", "training."))]
        # Of as many threads: their number decides how kernels divide their sums.
        same += [f"workers.cpus={self.config.workers.cpus}", "ray.num_cpus=5", *changes]
        config = endless_run(self.folder, "undisturbed", steps_done(self.path), *same)
        code, output = run_cli("train", write_config(config, self.folder))
        assert code == 0, output
        alone = self.folder / "runs" / "undisturbed"
        assert samples_of_steps(self.path) == samples_of_steps(alone)
        assert_same_curve(losses(self.path), losses(alone))
        evaluated = validation_losses(self.path)
        assert evaluated == pytest.approx({step: validation_losses(alone)[step] for step in evaluated}, abs=1e-4)
        if self.config.training.exactness is Exactness.BITWISE:
            ours, theirs = (
                {step: (row["loss"], row["weights"]) for step, row in steps_of(Storage(str(path)), 10**6).items()}
                for path in (self.path, alone)
            )
            assert ours == theirs
