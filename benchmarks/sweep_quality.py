"""What is lost when trials are stopped early, and what it saves: a sweep of real fine-tuning with ASHA, against the
same sweep in which every trial is trained to its end.

    python benchmarks/sweep_quality.py

Both are `raytrain tune` of MiniLM on a part of the movie reviews: random search over the learning rate, batch, warm-up,
weight decay and epochs. A space and its seed give the same configurations, so both try the very same trials, and the
one that is best without stopping can only be missed by being stopped. Worker-seconds are counted from each trial's own
files, in the way of its goodput.json: all that its workers were held for, starting and evaluations included.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import (
    arguments_with,
    middle,
    part_of_the_reviews,
    publish,
    rounds_of,
    run_command,
    spread,
    table,
    temporary_storage,
)

from raytrain.reports.goodput import goodput
from raytrain.storage import Storage
from raytrain.training.records import read_jsonl

ASHA, NO_STOP = "ASHA", "no stopping"
REDUCTION_FACTOR = 4
METRIC = "accuracy"
PARAMETERS: dict[str, dict[str, Any]] = {
    "training.optimizer.learning_rate": {"kind": "loguniform", "low": 1e-5, "high": 1e-3},
    "training.global_batch_size": {"kind": "choice", "values": [16, 32, 64]},
    "training.schedule.warmup_ratio": {"kind": "uniform", "low": 0.0, "high": 0.2},
    "training.optimizer.weight_decay": {"kind": "loguniform", "low": 1e-3, "high": 1e-1},
    "training.epochs": {"kind": "randint", "low": 2, "high": 4},
}

POINTS_TARGET = 0.5  # of accuracy, that ASHA's best may be below the other's
COST_TARGET = 0.4  # of the other's worker-seconds


@dataclass(frozen=True)
class Trial:
    """One trial."""

    values: dict[str, Any]
    status: str
    samples: int
    """That it was trained on up to its last evaluation; unlike seconds, the same on a busy machine."""
    best: float
    """Largest accuracy at any evaluation; nan: none."""
    worker_s: float
    """Worker-seconds."""
    step_worker_s: float
    """Of these, in steps."""


@dataclass(frozen=True)
class Sweep:
    """All trials of a sweep, in their order, and the wall time of the command."""

    trials: list[Trial]
    wall_s: float

    @property
    def best(self) -> float:
        return max(trial.best for trial in self.trials if trial.status != "failed" and not math.isnan(trial.best))

    def total(self, name: str) -> float:
        return sum(getattr(trial, name) for trial in self.trials)

    def count(self, status: str) -> int:
        return sum(trial.status == status for trial in self.trials)


def run_sweep(name: str, config: dict[str, Any], scheduler: dict[str, Any], arguments: argparse.Namespace) -> Sweep:
    """`raytrain tune` in the storage of the config."""
    storage = Path(config["storage_path"])
    space = {
        "metric": METRIC,
        "parameters": PARAMETERS,
        "scheduler": scheduler,
        "budget": {"trials": arguments.trials},
        "seed": config["seed"],
        "max_failed": 1.0,
    }
    paths = {"space": storage / f"{name}.yaml", "config": storage / "sweep.yaml"}
    paths["space"].write_text(yaml.safe_dump(space))
    paths["config"].write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "raytrain", "tune", str(paths["config"]), "--space", str(paths["space"])]
    wall_s = run_command(command)
    folders = sorted((storage / f"{config['name']}-{name}" / "trials").iterdir())
    return Sweep([read_trial(folder) for folder in folders], wall_s)


def read_trial(folder: Path) -> Trial:
    row = json.loads((folder / "trial.json").read_text())
    run = Storage(str(folder))
    account = goodput(read_jsonl(run, "events.jsonl"), read_jsonl(run, "metrics.jsonl"))
    classes = account.get("classes", {})
    in_steps_s = sum(classes.get(name, 0.0) for name in ("useful", "redone", "data_wait"))
    best = row["best_value"] if row["best_value"] is not None else math.nan
    samples = row["step"] * row["values"]["training.global_batch_size"]
    return Trial(row["values"], row["status"], samples, best, account.get("worker_seconds", 0.0), in_steps_s)


def one_round(seed: int, arguments: argparse.Namespace, storage: Path) -> dict[str, Sweep]:
    """The configurations of one seed, with and without stopping."""
    config = part_of_the_reviews(storage, arguments.rows, arguments.validation_rows)
    config |= {"name": f"seed_{seed}", "seed": seed, "workers": {"min": 1, "max": 2, "cpus": 1}}
    config["training"] = {"micro_batch_size": 16, "eval_every_epochs": arguments.grace}
    asha = {"kind": "asha", "grace_epochs": arguments.grace, "reduction_factor": REDUCTION_FACTOR}
    path = storage / "prepare.yaml"
    path.write_text(yaml.safe_dump(config))
    run_command([sys.executable, "-m", "raytrain", "data", "prepare", str(path)])  # which is neither's work
    found = {
        ASHA: run_sweep("asha", config, asha, arguments),
        NO_STOP: run_sweep("all", config, {"kind": "none"}, arguments),
    }
    for name, sweep in found.items():
        print(f"seed {seed}: {name}: {sweep.wall_s:.0f} s")
        for trial in sweep.trials:
            print(f"  {trial}", flush=True)
    if [trial.values for trial in found[ASHA].trials] != [trial.values for trial in found[NO_STOP].trials]:
        raise RuntimeError("the two sweeps have not tried the same configurations")
    return found


def report(rounds: Sequence[dict[str, Sweep]], arguments: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    points = [100 * (round_[ASHA].best - round_[NO_STOP].best) for round_ in rounds]
    rows = [
        [
            f"best {METRIC}",
            *(f"{middle([round_[name].best for round_ in rounds]):.4f}" for name in (ASHA, NO_STOP)),
            f"{middle(points):+.2f} points ({spread(points)})",
            f">= -{POINTS_TARGET} points",
            "yes" if middle(points) >= -POINTS_TARGET else "no",
        ]
    ]
    figures = {"worker-seconds": "worker_s", "... in steps": "step_worker_s", "samples trained on": "samples"}
    for what, name in figures.items():
        ours, theirs = ([round_[sweep].total(name) for round_ in rounds] for sweep in (ASHA, NO_STOP))
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        target = [f"<= {COST_TARGET}", "yes" if middle(ratios) <= COST_TARGET else "no"]
        rows.append([what, f"{middle(ours):.0f}", f"{middle(theirs):.0f}", f"{middle(ratios):.2f} ({spread(ratios)})"])
        rows[-1] += target if name == "worker_s" else ["", ""]
    walls = {name: [round_[name].wall_s for round_ in rounds] for name in (ASHA, NO_STOP)}
    ratios = [one / other for one, other in zip(walls[ASHA], walls[NO_STOP], strict=True)]
    wall = [f"{middle(walls[name]):.0f}" for name in (ASHA, NO_STOP)]
    rows.append(["wall time of the command, s", *wall, f"{middle(ratios):.2f} ({spread(ratios)})", "", ""])
    for what, status in {"trials stopped by ASHA": "pruned", "trials failed": "failed"}.items():
        counts = (f"{middle([round_[name].count(status) for round_ in rounds]):.0f}" for name in (ASHA, NO_STOP))
        rows.append([what, *counts, "", "", ""])
    head = (
        f"MiniLM on {arguments.rows} sentences of the movie reviews, which is a part of them, evaluated on "
        f"{arguments.validation_rows} others every {arguments.grace} epochs; trials of 1 to 2 workers. "
        f"{arguments.trials} configurations drawn at random, the same for both: learning rate 1e-5 to 1e-3, batch 16, "
        f"32 or 64, warm-up 0 to 0.2, weight decay 1e-3 to 1e-1, 2 to 4 epochs. ASHA from {arguments.grace} epochs on, "
        f"the better one of {REDUCTION_FACTOR} goes on. {rounds_of(arguments)}.\n\n"
        f"The best {METRIC} is that of the best evaluation of any trial, on the split by which trials were chosen; one "
        f"sentence is {100 / arguments.validation_rows:.2f} points. Worker-seconds: all that workers were held for.\n\n"
    )
    return head + table(["", ASHA, NO_STOP, f"{ASHA} / {NO_STOP}", "target", "met"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"trials": 12, "rows": 960, "validation_rows": 384, "grace": 0.5}
    arguments = arguments_with(parser, rounds=1, seed=0, **sizes)
    with temporary_storage() as storage:
        rounds = [one_round(arguments.seed + i, arguments, storage) for i in range(arguments.rounds)]
    publish("A sweep that stops trials early", report(rounds, arguments), arguments)


if __name__ == "__main__":
    main()
