"""How long a sweep takes with one pool of workers for all trials, against Ray Tune with trials of a fixed size, and
against Ray Tune with Ray Train's own elastic trials (baseline_ray_tune.py).

    python benchmarks/sweep_makespan.py

The same trials (learning rates), model, data, steps and ASHA for all three, one after the other, on 4 slots: CPUs that
hold one worker each. Four trials live at once. They differ in what a trial may have: one to four of the slots in
raytrain's pool, one, or one to four by Ray Train's elasticity.

All slots share this machine's cores. So the model is tiny, and a worker sleeps in a step for each of its samples, in
all three alike: that time stands in for a GPU's work, and more workers make a step shorter. Idle is the slots' time in
which no step that counts is slept. A step counts once, and only up to its trial's last evaluation: what a trial has
trained beyond it when it is stopped is of no use.

All are seen from outside alike: by what the command prints of a trial's start and end, and by when lines appear in
metrics.jsonl. A system that has not ended after `--limit` seconds is ended; what it is then compared with is that time.
"""

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from common import (
    PROJECT,
    Lines,
    arguments_with,
    middle,
    publish,
    rounds_of,
    spread,
    table,
    temporary_storage,
)
from sweep_watch import Sweep, watch

sys.path.append(str(PROJECT / "tests"))

from tiny import TINY_BERT, tiny_tokenizer, write_reviews

RAYTRAIN, FIXED, ELASTIC = "raytrain", "fixed", "elastic"
SYSTEMS = {RAYTRAIN: "raytrain tune", FIXED: "Ray Tune, fixed trials", ELASTIC: "Ray Tune, elastic trials"}
SLOTS = 4  # and trials at once, and workers of an elastic trial at most
BATCH = 24  # samples a step, on all workers together: 1 to 4 of them get equally many
NUM_SAMPLES, NUM_VALIDATION = 50 * BATCH, 96
REDUCTION_FACTOR = 3
LEARNING_RATES = (1e-4, 3e-2)  # least and largest
GROW_AFTER_S = 2.0  # room for more is looked at so often by Ray Train, and must be there so long for raytrain

MAKESPAN_TARGETS = {FIXED: 0.7, ELASTIC: 0.6}
IDLE_TARGET = 0.1
WAIT_TARGET = 2.0  # the longest wait against the mean


def idle(sweep: Sweep, seconds_per_sample: float) -> float:
    """Share of the slots' time in which no step that counts was slept."""
    return 1 - sweep.num_steps * BATCH * seconds_per_sample / (SLOTS * sweep.makespan_s)


def run_raytrain(folder: Path, rates: Sequence[float], arguments: argparse.Namespace) -> Sweep:
    """`raytrain tune`, with the sleep in its steps."""
    config = {
        "name": "raytrain",
        "storage_path": str(folder),
        "task": {"kind": "sequence_classification", "labels": ["negative", "positive"]},
        "model": {"config": TINY_BERT, "tokenizer": str(folder / "tokenizer")},
        "data": {name: {"path": str(folder / f"{name}.parquet")} for name in ("train", "validation")},
        "training": {
            "max_steps": arguments.steps,
            "eval_every_steps": arguments.grace,
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH // 12,  # as many for 1 to 4 workers
            "precision": "fp32",
            "schedule": {"kind": "constant", "warmup_ratio": 0.0},
        },
        "workers": {"max": SLOTS, "data_cpus": 1 / SLOTS, "grow_delay_s": GROW_AFTER_S},
        "tracking": {"tensorboard": False},
        "ray": {"num_cpus": SLOTS + 1},  # one for all data pipelines together
    }
    space = {
        "metric": "loss",
        "parameters": {"training.optimizer.learning_rate": {"kind": "grid", "values": list(rates)}},
        "scheduler": {"kind": "asha", "grace_steps": arguments.grace, "reduction_factor": REDUCTION_FACTOR},
        "budget": {"trials": len(rates)},
        "max_failed": 1.0,
    }
    for name, content in {"raytrain": config, "space": space}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "raytrain", "tune", str(folder / "raytrain.yaml")]
    command += ["--space", str(folder / "space.yaml"), "--max-concurrent", str(SLOTS)]
    paths = [str(PROJECT / "benchmarks" / "pace"), *filter(None, [os.environ.get("PYTHONPATH")])]
    pace = {"PYTHONPATH": os.pathsep.join(paths), "SLEEP_S_A_SAMPLE": str(arguments.pace_ms / 1000)}
    out = folder / "raytrain-space"
    sweep = watch(command, pace, out, arguments.limit, len(rates))
    _check_pace(out, arguments.pace_ms / 1000)
    return sweep


def _check_pace(out: Path, seconds_per_sample: float) -> None:
    """Whoever started the workers: the sleep must have been in their steps. Raises RuntimeError."""
    for file in out.glob("trials/*/metrics.jsonl"):
        for line in Lines().add(file.read_bytes()):
            row = json.loads(line)
            if row["step_s"] < BATCH * seconds_per_sample / row["world_size"]:
                raise RuntimeError(f"{file}: step {row['step']} took {row['step_s']} s, so nobody slept in it")


def run_plain(folder: Path, rates: Sequence[float], arguments: argparse.Namespace, system: str) -> Sweep:
    """Ray Tune over TorchTrainers of a fixed size, or elastic ones."""
    out = folder / system
    out.mkdir()
    settings: dict[str, Any] = {
        "out": str(out),
        "model": TINY_BERT,
        "tokenizer": str(folder / "tokenizer"),
        "train": str(folder / "train.parquet"),
        "validation": str(folder / "validation.parquet"),
        "learning_rates": list(rates),
        "slots": SLOTS,
        "most_workers": 1 if system == FIXED else SLOTS,
        "steps": arguments.steps,
        "eval_every": arguments.grace,
        "grace_steps": arguments.grace,
        "reduction_factor": REDUCTION_FACTOR,
        "global_batch_size": BATCH,
        "seconds_per_sample": arguments.pace_ms / 1000,
        "resize_every_s": GROW_AFTER_S,
    }
    path = folder / f"{system}.json"
    path.write_text(json.dumps(settings))
    command = [sys.executable, str(Path(__file__).with_name("baseline_ray_tune.py")), str(path)]
    return watch(command, {}, out, arguments.limit, len(rates))


def one_round(seed: int, arguments: argparse.Namespace, storage: Path) -> dict[str, Sweep]:
    """Each system with the learning rates of one seed."""
    folder = storage / f"seed_{seed}"
    folder.mkdir(parents=True)
    tiny_tokenizer(folder / "tokenizer")
    write_reviews(folder / "train.parquet", NUM_SAMPLES, seed=0)
    write_reviews(folder / "validation.parquet", NUM_VALIDATION, seed=1)
    rng = random.Random(seed)
    least, largest = map(math.log, LEARNING_RATES)
    rates = [math.exp(rng.uniform(least, largest)) for _ in range(arguments.trials)]
    found: dict[str, Sweep] = {}
    for system in arguments.systems:
        is_ours = system == RAYTRAIN
        found[system] = (
            run_raytrain(folder, rates, arguments) if is_ours else run_plain(folder, rates, arguments, system)
        )
        print(f"seed {seed}: {system}: {found[system].makespan_s:.0f} s, {found[system].num_over} trials over")
        for i, trial in enumerate(found[system].trials):
            first_s = f"{trial.steps[0][0]:.0f}" if trial.steps else "-"
            steps = f"{trial.num_counting} of {len(trial.steps)} steps count"
            print(
                f"  {i}: {trial.status}, started {trial.started_at_s:.0f} s, first step {first_s} s, {steps}, "
                f"losses {trial.losses}",
                flush=True,
            )
    return found


def report(rounds: Sequence[dict[str, Sweep]], arguments: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    systems = {system: [round_[system] for round_ in rounds] for system in arguments.systems}
    others = [system for system in arguments.systems if system != RAYTRAIN and RAYTRAIN in arguments.systems]
    pace_s = arguments.pace_ms / 1000
    rows = [
        makespan_row(systems, others, rounds),
        per_step_row(systems, others, rounds),
        idle_row(systems, pace_s, len(others)),
        wait_row(systems, len(others)),
        *count_rows(systems, len(others)),
    ]
    rungs = ", ".join(map(str, rungs_of(arguments)))
    head = (
        f"{arguments.trials} learning rates, at most {SLOTS} trials at once on {SLOTS} slots; a tiny BERT, ZeRO-2, "
        f"fp32, {BATCH} samples a step, {arguments.steps} steps, evaluated every {arguments.grace}; ASHA at steps "
        f"{rungs} keeps the better one of {REDUCTION_FACTOR}. A trial is 1 to {SLOTS} workers of raytrain's pool; a "
        f"TorchTrainer of 1 worker (fixed); one of 1 to {SLOTS} by Ray Train's elasticity (elastic). A worker sleeps "
        f"{pace_s:g} s for each of its samples ({BATCH * pace_s:g} s a step on one worker, {BATCH * pace_s / SLOTS:g} "
        f"s on {SLOTS}): that stands in for a GPU's work, and all else is overhead. {rounds_of(arguments)}.\n\n"
        "Makespan: from the command to its end, starting Ray included. Idle: slot time in which no step that counts "
        "was slept. Wait: from a trial's start to its first step. ASHA stops trials as they come to a rung, so the "
        "three do not train equally many steps: see the second line. Medians over the rounds"
        f"{cut_note(systems, arguments)}.\n\n"
    )
    header = ["", *(SYSTEMS[system] for system in systems), *(f"raytrain / {other}" for other in others)]
    return head + table([*header, "target", "met"], rows)


def cut_note(systems: dict[str, list[Sweep]], arguments: argparse.Namespace) -> str:
    """What became of those that were ended at the limit."""
    notes = [
        f"; {SYSTEMS[system]} was ended after {arguments.limit} s with {sweep.num_over} of {len(sweep.trials)} trials "
        "over, so its makespan is longer and the ratio smaller"
        for system, sweeps in systems.items()
        for sweep in sweeps
        if sweep.is_cut
    ]
    return "".join(notes)


def rungs_of(arguments: argparse.Namespace) -> Iterator[int]:
    """Steps at which ASHA decides."""
    rung = arguments.grace
    while rung < arguments.steps:
        yield rung
        rung *= REDUCTION_FACTOR


def makespan_row(systems: dict[str, list[Sweep]], others: list[str], rounds: Sequence[dict[str, Sweep]]) -> list[str]:
    row = ["makespan, s"]
    for sweeps in systems.values():
        is_cut = any(sweep.is_cut for sweep in sweeps)
        row.append(f"{'> ' * is_cut}{middle([sweep.makespan_s for sweep in sweeps]):.0f}")
    is_met = []
    for other in others:
        ratios = [round_[RAYTRAIN].makespan_s / round_[other].makespan_s for round_ in rounds]
        is_cut = any(sweep.is_cut for sweep in systems[other])
        row.append(f"{'< ' * is_cut}{middle(ratios):.2f} ({spread(ratios)})")
        is_ours_cut = any(sweep.is_cut for sweep in systems[RAYTRAIN])
        is_met.append(not is_ours_cut and middle(ratios) <= MAKESPAN_TARGETS[other])
    targets = ", ".join(f"<= {MAKESPAN_TARGETS[other]}" for other in others)
    return [*row, targets, ", ".join(map(met, is_met))]


def per_step_row(systems: dict[str, list[Sweep]], others: list[str], rounds: Sequence[dict[str, Sweep]]) -> list[str]:
    def per_step_s(sweep: Sweep) -> float:
        return sweep.makespan_s / max(1, sweep.num_steps)

    row = [
        "makespan by steps that count, s",
        *(f"{middle([per_step_s(s) for s in all_]):.2f}" for all_ in systems.values()),
    ]
    for other in others:
        ratios = [per_step_s(round_[RAYTRAIN]) / per_step_s(round_[other]) for round_ in rounds]
        row.append(f"{middle(ratios):.2f} ({spread(ratios)})")
    return [*row, "", ""]


def idle_row(systems: dict[str, list[Sweep]], pace_s: float, num_others: int) -> list[str]:
    shares = {system: middle([idle(sweep, pace_s) for sweep in sweeps]) for system, sweeps in systems.items()}
    row = ["idle", *(f"{share:.1%}" for share in shares.values()), *[""] * num_others]
    return [*row, *([f"< {IDLE_TARGET:.0%}", met(shares[RAYTRAIN] < IDLE_TARGET)] if RAYTRAIN in shares else ["", ""])]


def wait_row(systems: dict[str, list[Sweep]], num_others: int) -> list[str]:
    waits = {system: [wait_s for sweep in sweeps for wait_s in sweep.waits_s] for system, sweeps in systems.items()}
    row = ["wait of a trial, s: mean (longest)"]
    row += [f"{sum(w) / len(w):.1f} ({max(w):.1f})" if w else "-" for w in waits.values()]
    row += [""] * num_others
    ours = waits.get(RAYTRAIN)
    is_met = bool(ours) and max(ours) < WAIT_TARGET * sum(ours) / len(ours)
    return [*row, *([f"longest < {WAIT_TARGET:g}x the mean", met(is_met)] if ours else ["", ""])]


def count_rows(systems: dict[str, list[Sweep]], num_others: int) -> list[list[str]]:
    """What is there to understand the others by."""
    figures = {
        "s from the command to the first step": lambda s: min((t.steps[0][0] for t in s.trials if t.steps), default=0),
        "steps that count": lambda s: s.num_steps,
        "steps redone, or after a trial's last evaluation": lambda s: s.num_in_vain,
        "trials finished": lambda s: s.count("finished", "stopped_early"),
        "trials stopped by ASHA": lambda s: s.count("pruned"),
        "trials failed": lambda s: s.count("failed"),
        "trials not over": lambda s: len(s.trials) - s.num_over,
    }
    rows = [
        [what, *(f"{middle([figure(s) for s in sweeps]):.0f}" for sweeps in systems.values()), *[""] * num_others]
        for what, figure in figures.items()
    ]
    best = [min((min(t.losses.values()) for s in sweeps for t in s.trials if t.losses), default=math.nan)
            for sweeps in systems.values()]  # fmt: skip
    rows.append(["best validation loss", *(f"{loss:.3f}" for loss in best), *[""] * num_others])
    return [[*row, "", ""] for row in rows]


def met(is_met: bool) -> str:
    return "yes" if is_met else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="fewer: only prints")
    sizes = {"trials": 16, "steps": 24, "grace": 3, "pace_ms": 120}
    arguments = arguments_with(parser, rounds=1, seed=0, limit=500, **sizes)
    with temporary_storage() as storage:
        rounds = [one_round(arguments.seed + i, arguments, storage) for i in range(arguments.rounds)]
    arguments.no_write = arguments.no_write or set(arguments.systems) != set(SYSTEMS)
    publish("Sweeps on one pool", report(rounds, arguments), arguments)


if __name__ == "__main__":
    main()
