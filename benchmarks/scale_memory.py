"""Memory that must not grow with a run: of the driver with its steps, of rank 0 with evaluated samples; scale.py prints
it. Each figure is the peak of a process of its own, since memory that was freed would count.

    python benchmarks/scale_memory.py steps 10000000      # what one of these processes does
"""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from common import peak_gb

from raytrain.config import SequenceClassificationConfig
from raytrain.reports.goodput import goodput
from raytrain.reports.steps import StepSample
from raytrain.tasks import make_task

AMOUNTS = {"steps": (10**4, 10**7), "samples": (10**4, 10**7)}
BATCH = 500


def rows(num_steps: int) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl, as they are read."""
    for step in range(1, num_steps + 1):
        row = {"step": step, "epoch": 1, "loss": 1 / step, "lr": 1e-4, "grad_norm": 0.5, "loss_scale": None}
        row |= {"skipped_steps": 0, "samples_seen": 32 * step, "tokens_seen": 900 * step, "tokens_per_s": 900.0}
        row |= {"padding": 0.03, "data_wait_s": 0.0, "step_s": 1.0, "checkpoint_s": 0.0, "evaluation_s": 0.0}
        yield row | {"world_size": 2, "attempt": 0}


def read_steps(num_steps: int) -> None:
    """What the driver does with metrics.jsonl at the end: the account of goodput, and the report's sample."""
    start = {"time": 10.0, "kind": "start", "attempt": 0, "world_size": 2, "entered_at_s": 1.0}
    end = {"time": float(num_steps), "kind": "finish", "attempt": 0, "step": num_steps, "status": "finished"}
    assert goodput([start, end], rows(num_steps))["worker_seconds"] > num_steps
    assert StepSample(rows(num_steps)).num_rows == num_steps


def evaluate_samples(num_samples: int) -> None:
    """Classification metrics over so many samples."""
    config = SequenceClassificationConfig(kind="sequence_classification", labels=["a", "b", "c"])
    state = make_task(config, 32).declared_state()
    assert state is not None
    scores, random = make_task(config, 32).scores(state), np.random.default_rng(0)
    for _ in range(num_samples // BATCH):
        drawn = random.integers(0, 3, (2, BATCH))
        scores.update([drawn[0]], [drawn[1]])
    assert 0.3 < scores.compute().values["accuracy"] < 0.4


def memories() -> dict[str, float]:
    """Peak memory by amount."""
    found = {}
    for kind, amounts in AMOUNTS.items():
        for amount in amounts:
            command = [sys.executable, __file__, kind, str(amount)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            where = "driver" if kind == "steps" else "rank 0"
            found[f"peak memory of the {where}, {amount:,} {kind}, GB"] = float(out)
    return found


if __name__ == "__main__":
    {"steps": read_steps, "samples": evaluate_samples}[sys.argv[1]](int(sys.argv[2]))
    print(peak_gb())
