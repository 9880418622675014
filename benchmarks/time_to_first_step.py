"""How long from the command to the first step, by phase, against a plain TorchTrainer script with the same model.

    python benchmarks/time_to_first_step.py

Three commands in turn, a few rounds: raytrain on data that it has prepared before, raytrain on new data, and
baseline_ray_train.py. All train MiniLM on the movie reviews with one worker; the first round is not counted, since it
fills the caches of the disk and compiles what DeepSpeed compiles once.
"""

import argparse
import shutil
import time
from pathlib import Path

from common import (
    LIKE_THE_PLAIN_LOOPS,
    NEVER_SAVE,
    arguments_with,
    middle,
    one_worker,
    publish,
    rounds_of,
    run_raytrain,
    run_script,
    spread,
    table,
    temporary_storage,
    training_only,
)

TARGET = 1.15
STEPS = 2
PREPARED, NEW, PLAIN = "raytrain, data prepared before", "raytrain, new data", "plain TorchTrainer"

Phases = dict[str, float]  # what was over -> when, seconds since the command


def raytrain_phases(storage: Path, num_threads: int) -> Phases:
    """When each phase of a raytrain run ended: its printed phases, its workers' start, and the first row of metrics."""
    overrides = [*LIKE_THE_PLAIN_LOOPS, *one_worker(num_threads), NEVER_SAVE]
    run = run_raytrain(training_only(storage, STEPS), overrides, storage)
    started = {line.strip(): at_s for at_s, line in reversed(run.lines)}  # of a line printed twice, the first time
    order = ["starting Ray", "preparing data", "starting workers"]
    names = ["start, checks", "Ray", "data"]
    phases = {name: started[line] for name, line in zip(names, order, strict=True) if line in started}
    phases["workers"] = next(event["time"] for event in run.events if event["kind"] == "start")
    phases["first step"] = run.row_times_s[0]
    return phases


def plain_phases(num_threads: int) -> Phases:
    """When each phase of the plain script ended."""
    options = ["--steps", str(STEPS), "--warmup", "0", "--threads", str(num_threads), "--pad", "longest"]
    return run_script("baseline_ray_train.py", *options, "--started-at", str(time.time()))["times_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_with(parser, rounds=3, threads=1)
    found: dict[str, list[Phases]] = {PREPARED: [], NEW: [], PLAIN: []}
    with temporary_storage() as storage:
        for round_ in range(arguments.rounds + 1):
            shutil.rmtree(storage / "prepared", ignore_errors=True)
            measured = {
                NEW: raytrain_phases(storage, arguments.threads),  # prepares the data that the next one finds
                PREPARED: raytrain_phases(storage, arguments.threads),
                PLAIN: plain_phases(arguments.threads),
            }
            for name, phases in measured.items():
                print(f"round {round_}: {name}: {phases}", flush=True)
                if round_ > 0:
                    found[name].append(phases)
    publish("Time to the first step", report(found, arguments), arguments)


def report(found: dict[str, list[Phases]], arguments: argparse.Namespace) -> str:
    """The totals as a table, then each command's phases as a sentence."""
    rows = []
    for name, rounds in found.items():
        totals = [phases["first step"] for phases in rounds]
        plain = [phases["first step"] for phases in found[PLAIN]]
        ratios = [total / other for total, other in zip(totals, plain, strict=True)]
        target = ["", ""] if name != PREPARED else [f"<= {TARGET}", "yes" if middle(ratios) <= TARGET else "no"]
        rows.append([name, f"{middle(totals):.1f}", f"{middle(ratios):.2f} ({spread(ratios)})", *target])
    head = f"Seconds from the command to the end of the first step, one worker; {rounds_of(arguments)}.\n\n"
    sentences = [f"- {name}: {lengths(rounds)}" for name, rounds in found.items()]
    header = ["command", "seconds", "against the plain script", "target", "met"]
    return head + table(header, rows) + "\n\nSeconds in each phase:\n\n" + "\n".join(sentences)


def lengths(rounds: list[Phases]) -> str:
    """Median length of each phase."""
    names = list(rounds[0])
    parts = []
    for index, name in enumerate(names):
        before = [phases[names[index - 1]] if index else 0.0 for phases in rounds]
        parts.append(f"{name} {middle([p[name] - b for p, b in zip(rounds, before, strict=True)]):.1f}")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
