"""What checkpoints cost: how long training is blocked by a save, and how long a restore at another world size takes.

    python benchmarks/checkpoint.py

Blocked: one worker trains MiniLM with a save every 20 steps. The time between two lines of metrics.jsonl is that of the
step, plus the save if there was one between them; the difference of the medians is what a save blocks.

Restore: a ZeRO-1 state of MiniLM is saved by two processes and restored by one, by raytrain (hashes checked, then
loaded) and by DeepSpeed (its `ds_to_universal` command, then `load_checkpoint`). See checkpoint_restore.py.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import (
    LIKE_THE_PLAIN_LOOPS,
    PROJECT,
    arguments_with,
    middle,
    one_worker,
    publish,
    rounds_of,
    run_raytrain,
    spread,
    table,
    temporary_storage,
    training_only,
)

BLOCKED_TARGET = 0.03
RESTORE_TARGET = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["blocked", "restore"])
    arguments = arguments_with(parser, rounds=3, steps=121, save_every=20, threads=2)
    with temporary_storage() as storage:
        if arguments.only != "restore":
            publish("Training blocked by saving", blocked(arguments, storage), arguments)
        if arguments.only != "blocked":
            publish("Restore at another world size", restore(arguments, storage), arguments)


def blocked(arguments: argparse.Namespace, storage: Path) -> str:
    """The table of blocked time, from one run a round."""
    save_every = arguments.save_every
    overrides = [*LIKE_THE_PLAIN_LOOPS, *one_worker(arguments.threads), f"checkpoint.save_every_steps={save_every}"]
    blocked_s, step_s, shares, slowdowns = [], [], [], []
    for round_ in range(arguments.rounds):
        run = run_raytrain(training_only(storage, arguments.steps), [*overrides, f"seed={round_}"], storage)
        gaps = list(zip(run.rows[1:], run.row_times_s[1:], run.row_times_s[:-1], strict=True))
        extra = {row["step"]: now_s - before_s - row["step_s"] for row, now_s, before_s in gaps}
        saved = [value for step, value in extra.items() if (step - 1) % save_every == 0]
        others = [value for step, value in extra.items() if (step - 1) % save_every]
        blocked_s.append(middle(saved) - middle(others))
        step_s.append(middle([row["step_s"] for row in run.rows]))
        shares.append(blocked_s[-1] / save_every / step_s[-1])
        slowdowns.append(slowdown_while_writing(run.rows, save_every))
        print(f"round {round_}: blocked {blocked_s[-1]:.3f} s, a step takes {step_s[-1]:.3f} s", flush=True)
    is_met = "yes" if middle(shares) <= BLOCKED_TARGET else "no"
    row = [f"{1000 * middle(blocked_s):.0f} ms", f"{1000 * middle(step_s):.0f} ms"]
    row += [f"{middle(shares):.2%} ({spread([100 * share for share in shares])})", f"<= {BLOCKED_TARGET:.0%}", is_met]
    head = (
        f"MiniLM, batch 32, one worker with {arguments.threads} threads, a save every {save_every} steps; "
        f"{rounds_of(arguments)}.\n\n"
    )
    tail = (
        f"\n\nWhile files are written in the background, they compete for the cores: the tokens per second of the step "
        f"after a save are {middle(slowdowns):.0%} of those of the other steps."
    )
    header = ["blocked by a save", "a step", "share of a step's time, each step", "target", "met"]
    return head + table(header, [row]) + tail


def slowdown_while_writing(rows: list[dict[str, Any]], save_every: int) -> float:
    """Speed of the steps right after a save, as a share of the others'."""
    after = [row["tokens_per_s"] for row in rows[1:] if (row["step"] - 1) % save_every == 0]
    others = [row["tokens_per_s"] for row in rows[1:] if (row["step"] - 1) % save_every]
    return middle(after) / middle(others)


def restore(arguments: argparse.Namespace, storage: Path) -> str:
    """The table of restore times."""
    launch("save", 2, storage)
    rounds = []
    for round_ in range(arguments.rounds):
        ours = launch("restore_raytrain", 1, storage)
        theirs = convert(storage / f"universal_{round_}", storage) | launch(
            "restore_deepspeed", 1, storage, f"universal_{round_}"
        )
        rounds.append({**ours, **theirs})
        print(f"round {round_}: {rounds[-1]}", flush=True)
    ours_s = [r["verify_s"] + r["load_s"] for r in rounds]
    theirs_s = [r["convert_s"] + r["universal_load_s"] for r in rounds]
    ratios = [their / our for our, their in zip(ours_s, theirs_s, strict=True)]
    is_met = "yes" if middle(ratios) >= RESTORE_TARGET else "no"

    def of(name: str) -> str:
        return f"{middle([r[name] for r in rounds]):.2f}"

    rows = [
        ["raytrain", f"check every hash {of('verify_s')} + load {of('load_s')}", f"{middle(ours_s):.2f}", "", "", ""],
        [
            "DeepSpeed",
            f"`ds_to_universal` {of('convert_s')} (imports {of('import_s')}) + load {of('universal_load_s')}",
            f"{middle(theirs_s):.2f}",
            f"{middle(ratios):.1f} ({spread(ratios)})",
            f">= {RESTORE_TARGET:g}",
            is_met,
        ],
    ]
    head = f"ZeRO-1 state of MiniLM, saved at world size 2, restored at 1; seconds; {rounds_of(arguments)}.\n\n"
    return head + table(["", "what", "seconds", "raytrain is faster by", "target", "met"], rows)


def launch(role: str, world_size: int, storage: Path, *more: str) -> dict[str, float]:
    """Run checkpoint_restore.py on `world_size` processes; what rank 0 printed last."""
    script = str(Path(__file__).with_name("checkpoint_restore.py"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        place = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, script, role, str(storage), *more]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **place}, **output))
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{role} failed:\n{output[-4000:]}")
    lines = [line for line in outputs[0].splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def convert(target: Path, storage: Path) -> dict[str, float]:
    """Run DeepSpeed's offline conversion, as a user does: a command. Its imports are timed apart as well."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    module = "deepspeed.checkpoint.ds_to_universal"
    command = [sys.executable, "-m", module, "--input_folder", str(storage / "deepspeed" / "global_step2")]
    command += ["--output_folder", str(target), "--inject_missing_state"]
    started_at_s = time.perf_counter()
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    convert_s = time.perf_counter() - started_at_s
    if result.returncode:
        raise RuntimeError(f"ds_to_universal failed:\n{result.stderr[-4000:]}")
    started_at_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, capture_output=True, check=True)
    return {"convert_s": convert_s, "import_s": time.perf_counter() - started_at_s}


if __name__ == "__main__":
    main()
