"""What the benchmarks share: running raytrain and watching it from outside, ratios, and the table of results."""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
DATA = PROJECT / "data" / "movie_reviews"
MODEL = PROJECT / "models" / "minilm-l6"
POLL_S = 0.01  # how finely the time at which a line of metrics.jsonl appears is known

# One worker with all the threads, one batch of 32 at once, fp32: what the plain loops do too.
LIKE_THE_PLAIN_LOOPS = ["training.global_batch_size=32", "training.micro_batch_size=32", "training.precision=fp32"]
NEVER_SAVE = "checkpoint.save_every_steps=1000000"


def one_worker(num_threads: int) -> list[str]:
    """Overrides: one worker that computes with this many threads."""
    return ["workers.min=1", "workers.max=1", f"workers.cpus={num_threads}"]


@dataclass
class RaytrainRun:
    """A run of the command `raytrain train`, seen from outside. All times are seconds since the command was given."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """metrics.jsonl."""
    row_times_s: list[float] = field(default_factory=list)
    """When each row appeared."""
    lines: list[tuple[float, str]] = field(default_factory=list)
    """What the command printed, and when."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """events.jsonl; `time` is made relative too."""
    duration_s: float = 0.0

    def rate(self, column: str, skip: int) -> float:
        """How fast a counting column (samples_seen, tokens_seen) grew, by the clock, after the first `skip` steps."""
        first, last = self.rows[skip - 1], self.rows[-1]
        return (last[column] - first[column]) / (self.row_times_s[-1] - self.row_times_s[skip - 1])


def training_only(storage: Path, max_steps: int) -> str:
    """Path of a config that trains the movie reviews for so many steps, without evaluation and logging."""
    raw = yaml.safe_load((PROJECT / "raytrain" / "configs" / "movie_reviews.yaml").read_text())
    raw["data"] = {"train": raw["data"]["train"], "max_length": raw["data"]["max_length"]}
    raw["training"] = {"max_steps": max_steps, "optimizer": raw["training"]["optimizer"]}
    raw["tracking"] = {"tensorboard": False}
    path = storage / f"{max_steps}_steps.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def part_of_the_reviews(storage: Path, num_rows: int, num_validation_rows: int) -> dict[str, Any]:
    """A config with the first rows of the movie reviews' splits, which are in random order; all runs in `storage`."""
    import pyarrow.parquet as pq

    raw = yaml.safe_load((PROJECT / "raytrain" / "configs" / "movie_reviews.yaml").read_text())
    raw["data"] = {"max_length": raw["data"]["max_length"]}
    for split, count in {"train": num_rows, "validation": num_validation_rows}.items():
        path = storage / f"{split}_{count}.parquet"
        pq.write_table(pq.read_table(DATA / f"{split}.parquet").slice(0, count), path)
        raw["data"][split] = {"path": str(path)}
    kept = {name: raw[name] for name in ("name", "task", "model", "data")}
    return {**kept, "storage_path": str(storage), "tracking": {"tensorboard": False}}


def padding_of(rows: Sequence[dict[str, Any]]) -> float:
    """Share of padding among all tokens that were computed in these rows of metrics.jsonl."""
    tokens = [row["tokens_per_s"] * row["step_s"] for row in rows]
    computed = [count / (1 - row["padding"]) for count, row in zip(tokens, rows, strict=True)]
    return 1 - sum(tokens) / sum(computed)


def run_raytrain(config: str, overrides: Sequence[str], storage: Path) -> RaytrainRun:
    """Run `raytrain train` in a fresh run folder below `storage`. Raises RuntimeError when it fails."""
    name = f"bench_{time.monotonic_ns()}"
    places = [f"name={name}", f"storage_path={storage}", f"data.prepared_path={storage / 'prepared'}"]
    command = [sys.executable, "-m", "raytrain", "train", config, *places, *overrides]
    folder = storage / name
    started_at_s = time.time()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    run, output, metrics = RaytrainRun(), Lines(), Lines()
    is_running = True
    while is_running:
        is_running = process.poll() is None  # looked at first, so that what was written last is still read
        now_s = time.time() - started_at_s
        run.lines += [(now_s, line.decode(errors="replace")) for line in output.add(process.stdout.read() or b"")]
        for line in metrics.add(read_from(folder / "metrics.jsonl", metrics.offset)):
            run.rows.append(json.loads(line))
            run.row_times_s.append(now_s)
        time.sleep(POLL_S if is_running else 0)
    run.duration_s = time.time() - started_at_s
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(line for _, line in run.lines[-30:]))
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        run.events.append({**event, "time": event["time"] - started_at_s})
    return run


def run_command(command: Sequence[str]) -> float:
    """Run a command to its end; returns the seconds that it took. Raises RuntimeError when it fails."""
    began_s = time.monotonic()
    result = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout[-4000:]}")
    return time.monotonic() - began_s


class Lines:
    """Cuts bytes that arrive in pieces into whole lines."""

    def __init__(self) -> None:
        self.offset = 0
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        self.offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


def read_from(path: Path, offset: int) -> bytes:
    """What a file that grows holds from `offset` on; nothing when it is not there yet."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def run_script(script: str, *arguments: str) -> dict[str, Any]:
    """Run another script of this folder; the last line that it prints is JSON. Raises RuntimeError when it fails."""
    command = [sys.executable, str(Path(__file__).resolve().parent / script), *arguments]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def arguments_with(parser: argparse.ArgumentParser, **defaults: float) -> argparse.Namespace:
    """Parse the command line; each default becomes an option."""
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"({default})")
    parser.add_argument("--no-write", action="store_true", help="print the table, leave RESULTS.md alone")
    arguments = parser.parse_args()
    if not (DATA / "train.parquet").exists() or not MODEL.exists():
        sys.exit("data or model missing: run `python examples/fetch_data.py movie_reviews minilm` first")
    return arguments


@contextmanager
def temporary_storage() -> Iterator[Path]:
    """A folder for runs, on the disk of the project rather than in memory."""
    (PROJECT / "runs").mkdir(exist_ok=True)  # which git ignores
    with tempfile.TemporaryDirectory(prefix="bench-", dir=PROJECT / "runs", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def middle(values: Sequence[float]) -> float:
    """Median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Smallest and largest, in few digits."""
    return f"{min(values):.3g}-{max(values):.3g}" if len(values) > 1 else "one run"


def rounds_of(arguments: argparse.Namespace) -> str:
    """How often it was measured."""
    return f"{arguments.rounds} round{'s' * (arguments.rounds != 1)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(title: str, text: str, arguments: argparse.Namespace) -> None:
    """Print a section, and put it into RESULTS.md in the place of the one with the same title."""
    command = " ".join(["python", *map(_relative, sys.argv)])
    stamp = f"Measured {time.strftime('%Y-%m-%d')} with `{command}`: {machine()}."
    section = f"## {title}\n\n{text.strip()}\n\n{stamp}\n"
    print(section)
    if arguments.no_write:
        return
    old = RESULTS.read_text() if RESULTS.exists() else "# Benchmark results\n\nEach script writes its own section.\n"
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    kept = {part.splitlines()[0].removeprefix("## "): part.rstrip() + "\n" for part in sections}
    kept[title] = section
    RESULTS.write_text("\n".join([head.rstrip() + "\n", *kept.values()]))


def _relative(argument: str) -> str:
    path = Path(argument)
    return str(path.resolve().relative_to(PROJECT)) if path.exists() and PROJECT in path.resolve().parents else argument


def peak_gb() -> float:
    """Peak memory of this program. `getrusage` would count what the process that started it had."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) / 1e6


def machine() -> str:
    """What it was measured on, in a few words."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "deepspeed", "transformers"))
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {packages}"
