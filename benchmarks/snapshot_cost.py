"""What snapshots in peer memory cost: the loop with one every 20 steps against the loop without.

    python benchmarks/snapshot_cost.py

MiniLM on the movie reviews with real steps; nothing is written to storage meanwhile. Each round runs both. Blocked is
what the loop itself waits for a snapshot: `checkpoint_s` over `step_s` in metrics.jsonl. The whole cost, with the
background's competition for the cores, is the ratio of the times by the clock, within a round.
"""

import argparse
from pathlib import Path

from common import (
    LIKE_THE_PLAIN_LOOPS,
    NEVER_SAVE,
    RaytrainRun,
    arguments_with,
    middle,
    publish,
    rounds_of,
    run_raytrain,
    spread,
    table,
    temporary_storage,
    training_only,
)

WARMUP = 5  # steps
BLOCKED_TARGET = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_with(parser, rounds=3, steps=120, every=20, workers=2, threads=1)
    blocked, slower, step_s = [], [], []
    with temporary_storage() as storage:
        for round_ in range(arguments.rounds):
            with_them, without = (
                measure(arguments, every, round_, storage) for every in (str(arguments.every), "null")
            )
            rows = with_them.rows[WARMUP:]
            blocked.append(sum(row["checkpoint_s"] for row in rows) / sum(row["step_s"] for row in rows))
            # Equal seeds, so equal samples in equal steps.
            slower.append(without.rate("tokens_seen", WARMUP) / with_them.rate("tokens_seen", WARMUP) - 1)
            step_s.append(middle([row["step_s"] for row in without.rows[WARMUP:]]))
            print(f"round {round_}: blocked {blocked[-1]:.2%}, the loop takes {slower[-1]:+.1%}", flush=True)
    workers = f"{arguments.workers} worker{'s' * (arguments.workers > 1)}"
    head = (
        f"MiniLM, fp32, batch 32, ZeRO-2, {workers}, threads of each: {arguments.threads}; a step takes "
        f"{middle(step_s):.2f} s; a snapshot every {arguments.every} steps; {rounds_of(arguments)}.\n\n"
    )
    is_met = "yes" if middle(blocked) <= BLOCKED_TARGET else "no"
    rows_out = [
        ["the loop waits", shares(blocked), f"<= {BLOCKED_TARGET:.0%}", is_met],
        ["the loop takes longer by the clock", shares(slower), "", ""],
    ]
    publish("Snapshots in peer memory", head + table(["", "share of the loop", "target", "met"], rows_out), arguments)


def measure(arguments: argparse.Namespace, every: str, seed: int, storage: Path) -> RaytrainRun:
    """A run with a snapshot every so many steps, or with none."""
    count = arguments.workers
    workers = [f"workers.min={count}", f"workers.max={count}", f"workers.cpus={arguments.threads}"]
    overrides = [*LIKE_THE_PLAIN_LOOPS, *workers, NEVER_SAVE, f"checkpoint.snapshot_every_steps={every}"]
    overrides += [f"seed={seed}", "training.zero_stage=2", f"training.micro_batch_size={32 // count}"]
    return run_raytrain(training_only(storage, WARMUP + arguments.steps), overrides, storage)


def shares(values: list[float]) -> str:
    """Median, smallest and largest in percent."""
    return f"{middle(values):.2%} ({spread([100 * value for value in values])})"


if __name__ == "__main__":
    main()
