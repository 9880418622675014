"""Watching a sweep from outside, by what its command prints of trials and by the lines that they write."""

import json
import math
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from common import PROJECT, Lines, read_from

POLL_S = 0.05
TOLD = re.compile(r"\s*(trial_\d+) (started|finished|stopped_early|pruned|failed)\b")


@dataclass
class Trial:
    """One trial, seen from outside. Times are seconds since the command."""

    started_at_s: float = math.nan
    status: str = "waiting"
    steps: list[tuple[float, int]] = field(default_factory=list)
    """When each line of metrics.jsonl appeared, and its step."""
    losses: dict[int, float] = field(default_factory=dict)
    """On the validation split, by step."""

    @property
    def num_counting(self) -> int:
        """Steps that count."""
        last = max(self.losses, default=0)
        return len({step for _, step in self.steps if step <= last})


@dataclass
class Sweep:
    """What one system made of the sweep."""

    makespan_s: float
    is_cut: bool
    """Ended at the limit."""
    trials: list[Trial]

    @property
    def num_steps(self) -> int:
        """Steps that count."""
        return sum(trial.num_counting for trial in self.trials)

    @property
    def num_in_vain(self) -> int:
        """Steps redone, or trained after a trial's last evaluation."""
        return sum(len(trial.steps) for trial in self.trials) - self.num_steps

    @property
    def waits_s(self) -> list[float]:
        """From each trial's start to its first step; of one that did none, until the end."""
        started = [trial for trial in self.trials if not math.isnan(trial.started_at_s)]
        return [(t.steps[0][0] if t.steps else self.makespan_s) - t.started_at_s for t in started]

    def count(self, *statuses: str) -> int:
        return sum(trial.status in statuses for trial in self.trials)

    @property
    def num_over(self) -> int:
        return self.count("finished", "stopped_early", "pruned", "failed")


def watch(command: list[str], environment: dict[str, str], out: Path, limit_s: float, num_trials: int) -> Sweep:
    """Run a command whose trials write to `out`/trials/trial_0000 and so on. Raises RuntimeError when it fails."""
    trials = [Trial() for _ in range(num_trials)]
    folders = [out / "trials" / f"trial_{i:04d}" for i in range(num_trials)]
    began_s = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**os.environ, **environment, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    output, printed, metrics = Lines(), [""], [Lines() for _ in trials]
    is_running, is_cut = True, False
    try:
        while is_running and not is_cut:
            is_running = process.poll() is None  # looked at first, so that what was written last is still read
            now_s = time.monotonic() - began_s
            is_cut = is_running and now_s > limit_s
            for line in output.add(process.stdout.read() or b""):
                printed.append(line.decode(errors="replace"))
                if told := TOLD.match(printed[-1]):
                    _note(trials[int(told[1].removeprefix("trial_"))], told[2], now_s)
            for trial, folder, lines in zip(trials, folders, metrics, strict=True):
                rows = lines.add(read_from(folder / "metrics.jsonl", lines.offset))
                trial.steps += [(now_s, json.loads(row)["step"]) for row in rows]
            time.sleep(POLL_S if is_running else 0)
        makespan_s = time.monotonic() - began_s
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # a private Ray goes with its driver
            process.wait()
    if process.returncode and not is_cut:
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(printed[-60:]))
    for trial, folder in zip(trials, folders, strict=True):
        evals = [json.loads(row) for row in Lines().add(read_from(folder / "evals.jsonl", 0))]
        trial.losses = {row["step"]: row["loss"] for row in evals if row["split"] == "validation"}
    return Sweep(makespan_s, is_cut, trials)


def _note(trial: Trial, what: str, now_s: float) -> None:
    if what != "started":
        trial.status = what
    elif math.isnan(trial.started_at_s):
        trial.started_at_s, trial.status = now_s, "running"
