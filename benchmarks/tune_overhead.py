"""What a sweep costs beside its trials: `raytrain tune` with one trial, against `raytrain train` of the same config.

    python benchmarks/tune_overhead.py

Both train MiniLM for a few steps on a part of the movie reviews that is prepared beforehand, with one worker, and
evaluate once. The two commands take turns, a few rounds; the first round is not counted, since it fills the caches of
the disk. What is compared is the wall time of the whole command, reports included.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from common import (
    arguments_with,
    middle,
    one_worker,
    part_of_the_reviews,
    publish,
    rounds_of,
    run_command,
    spread,
    table,
    temporary_storage,
)

TARGET_S = 10.0
RATE_KEY, LEARNING_RATE = "training.optimizer.learning_rate", 1.5e-4
ROWS, VALIDATION_ROWS = 640, 64
TUNE, TRAIN = "raytrain tune, one trial", "raytrain train"


def run_both(
    round_: int, config: Path, space: Path, overrides: list[str], storage: Path, steps: int
) -> dict[str, float]:
    """Seconds of each command, in folders of their own; the first one of the round before is the second one of this.

    Raises RuntimeError when one has not trained all steps.
    """
    name = f"round_{round_}"
    raytrain = [sys.executable, "-m", "raytrain"]
    commands = {
        TUNE: [*raytrain, "tune", str(config), "--space", str(space), f"name={name}", *overrides],
        TRAIN: [*raytrain, "train", str(config), f"name={name}", f"{RATE_KEY}={LEARNING_RATE}", *overrides],
    }
    order = (TUNE, TRAIN) if round_ % 2 else (TRAIN, TUNE)
    seconds = {command: run_command(commands[command]) for command in order}
    trained = {
        TUNE: json.loads((storage / f"{name}-{space.stem}" / "trials" / "trial_0000" / "summary.json").read_text()),
        TRAIN: json.loads((storage / name / "summary.json").read_text()),
    }
    for command, summary in trained.items():
        if summary["step"] != steps:
            raise RuntimeError(f"{command} has trained {summary['step']} of {steps} steps")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_with(parser, rounds=3, steps=20, threads=1)
    with temporary_storage() as storage:
        config = part_of_the_reviews(storage, ROWS, VALIDATION_ROWS)
        config["training"] = {"max_steps": arguments.steps, "eval_every_steps": arguments.steps}
        rate = {"kind": "grid", "values": [LEARNING_RATE]}
        space: dict[str, Any] = {"parameters": {RATE_KEY: rate}, "budget": {"trials": 1}}
        paths = storage / "config.yaml", storage / "one.yaml"
        for path, content in zip(paths, (config, space), strict=True):
            path.write_text(yaml.safe_dump(content))
        run_command([sys.executable, "-m", "raytrain", "data", "prepare", str(paths[0])])
        rounds = []
        for round_ in range(arguments.rounds + 1):
            overrides = one_worker(arguments.threads)
            rounds.append(run_both(round_, *paths, overrides, storage, arguments.steps))
            print(f"round {round_}: {rounds[-1]}", flush=True)
    publish("What a sweep of one trial costs", report(rounds[1:], arguments), arguments)


def report(rounds: list[dict[str, float]], arguments: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    more = [round_[TUNE] - round_[TRAIN] for round_ in rounds]
    ratios = [round_[TUNE] / round_[TRAIN] for round_ in rounds]
    seconds = {name: f"{middle([round_[name] for round_ in rounds]):.1f}" for name in (TUNE, TRAIN)}
    longer = [f"{middle(more):+.1f} s ({spread(more)})", f"{middle(ratios):.2f} ({spread(ratios)})"]
    rows = [
        [TUNE, seconds[TUNE], *longer, f"< {TARGET_S:g} s", "yes" if middle(more) < TARGET_S else "no"],
        [TRAIN, seconds[TRAIN], "", "1", "", ""],
    ]
    head = (
        f"MiniLM, {arguments.steps} steps on {ROWS} sentences of the movie reviews that were prepared before, one "
        f"evaluation on {VALIDATION_ROWS}, one worker with {arguments.threads} thread"
        f"{'s' * (arguments.threads != 1)}; wall time of the whole command. {rounds_of(arguments)}.\n\n"
    )
    return head + table(["command", "seconds", "longer by", "ratio", "target", "met"], rows)


if __name__ == "__main__":
    main()
