"""Training throughput of raytrain against the loops that one would write by hand (baseline_loops.py).

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --gpu --batch-size 128 --steps 300 --fixed-steps 300 --warmup 50

Each round runs all of them, one after the other, so that a machine that gets slower or faster in between touches all
alike; ratios are taken within a round, and the median round counts. The measure is tokens per second without padding,
after a warm-up: at 27 tokens a sentence it is samples per second, but does not depend on whether a run happened to
draw long sentences. raytrain's time is taken from outside, by when its lines appear in metrics.jsonl. On a CPU all is
fp32; on a GPU bf16: raytrain's way, and torch.autocast in the plain loops.
"""

import argparse
from pathlib import Path

from common import (
    NEVER_SAVE,
    arguments_with,
    middle,
    one_worker,
    padding_of,
    publish,
    rounds_of,
    run_raytrain,
    run_script,
    spread,
    table,
    temporary_storage,
    training_only,
)

LOOPS = {"grouped": "grouped by length", "longest": "padded to the longest", "fixed": "padded to 128"}
TARGETS = {"grouped": 0.90, "longest": 1.4, "fixed": 6.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="train on a GPU, in bf16")
    arguments = arguments_with(parser, rounds=3, steps=60, fixed_steps=8, warmup=5, threads=2, batch_size=32)
    ours: list[float] = []
    padding: list[float] = []
    loops: dict[str, list[dict[str, float]]] = {variant: [] for variant in LOOPS}
    with temporary_storage() as storage:
        for round_ in range(arguments.rounds):
            rate, share = raytrain_round(arguments, storage, round_)
            ours.append(rate)
            padding.append(share)
            for variant in LOOPS:
                loops[variant].append(plain_round(arguments, variant, round_))
                print(f"round {round_}: {variant} {loops[variant][-1]['tokens_per_s']:.0f} tokens/s", flush=True)
    tokens_per_sample = loops["grouped"][0]["tokens_per_sample"]
    rows = [["raytrain", f"{middle(ours) / tokens_per_sample:.1f}", f"{middle(padding):.1%}", "1", "", ""]]
    for variant, name in LOOPS.items():
        rates = [loop["tokens_per_s"] for loop in loops[variant]]
        ratios = [our / rate for our, rate in zip(ours, rates, strict=True)]
        is_met = "" if arguments.gpu else "yes" if middle(ratios) >= TARGETS[variant] else "no"
        share = middle([loop["padding"] for loop in loops[variant]])
        ratio = f"{middle(ratios):.2f} ({spread(ratios)})"
        samples_per_s = f"{middle(rates) / tokens_per_sample:.1f}"
        rows.append(
            [
                f"plain PyTorch, {name}",
                samples_per_s,
                f"{share:.1%}",
                ratio,
                "" if arguments.gpu else f">= {TARGETS[variant]}",
                is_met,
            ]
        )
    where = "bf16, one worker with a GPU" if arguments.gpu else f"fp32, one worker with {arguments.threads} threads"
    text = f"MiniLM on the movie reviews, batch {arguments.batch_size}, {where}; {rounds_of(arguments)}.\n\n"
    header = ["loop", "samples/s", "padding", "raytrain is faster by", "target", "met"]
    publish("Training throughput" + " on a GPU" * arguments.gpu, text + table(header, rows), arguments)


def raytrain_round(arguments: argparse.Namespace, storage: Path, seed: int) -> tuple[float, float]:
    """Tokens per second and the share of padding of one raytrain run."""
    precision, gpu = ("bf16", "true") if arguments.gpu else ("fp32", "false")
    sizes = [f"training.{name}_batch_size={arguments.batch_size}" for name in ("global", "micro")]
    how = [*sizes, f"training.precision={precision}", f"workers.gpu={gpu}", *one_worker(arguments.threads)]
    overrides = [*how, NEVER_SAVE, f"seed={seed}"]
    run = run_raytrain(training_only(storage, arguments.warmup + arguments.steps), overrides, storage)
    rate = run.rate("tokens_seen", arguments.warmup)
    print(f"round {seed}: raytrain {rate:.0f} tokens/s", flush=True)
    return rate, padding_of(run.rows)


def plain_round(arguments: argparse.Namespace, variant: str, seed: int) -> dict[str, float]:
    """Speed and padding of one plain loop."""
    is_slow = variant == "fixed" and not arguments.gpu
    count, warmup = (arguments.fixed_steps, 1) if is_slow else (arguments.steps, arguments.warmup)
    numbers = {"steps": count, "warmup": warmup, "threads": arguments.threads, "seed": seed}
    options = [f"--{name}={number}" for name, number in {**numbers, "batch-size": arguments.batch_size}.items()]
    return run_script("baseline_loops.py", variant, *options, *["--gpu"] * arguments.gpu)


if __name__ == "__main__":
    main()
