"""Running raytrain as a user does, from another process, and reading what it leaves."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny import TINY_BERT, tiny_tokenizer, write_reviews

from raytrain.config import RunConfig
from raytrain.config.io import dump_config, parse_config
from raytrain.reports.steps import StepSample
from raytrain.storage import Storage
from raytrain.training.records import iterate_jsonl, read_jsonl

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
    ENV.pop(name, None)


def write_config(config: RunConfig, folder: Path) -> str:
    """The config as a YAML file."""
    path = folder / f"{config.name}.yaml"
    path.write_text(dump_config(config))
    return str(path)


def start_cli(*args: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `raytrain ARGS` in a process group of its own, with `env` added to the environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "raytrain", *args],
        cwd=cwd,
        env={**ENV, **{k: v for k, v in os.environ.items() if k.startswith("AWS_")}, **(env or {})},  # see s3.py
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """In a new process: a shell that started the tests in the background has turned SIGINT off for all of them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_cli(*args: str, cwd: Path | None = None, timeout_s: float = 240) -> tuple[int, str]:
    """Run `raytrain ARGS` to its end: exit code and all that it printed."""
    process = start_cli(*args, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_all(process)
        output, _ = process.communicate()
        raise AssertionError(f"raytrain {' '.join(args)} did not end in {timeout_s} s:\n{output}") from None
    return process.returncode, output


def kill_all(process: subprocess.Popen[Any]) -> None:
    """SIGKILL a command and all that it started, as the end of a machine does."""
    import psutil

    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()


def worker_processes(pid: int | None = None, name: str = "TrainingWorker") -> list[Any]:
    """The workers (or actors of another name) among all that a process has started, as psutil's processes; None: this
    one."""
    import psutil

    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 180) -> Any:
    """Poll until the condition holds; fails the test with `what` otherwise."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain: {what}")


def losses(run: Path | Storage) -> dict[int, float]:
    """Loss of each step, the last attempt's where a step was redone."""
    sample = StepSample(iterate_jsonl(_storage(run), "metrics.jsonl"), most=10**6)
    return {row["step"]: row["loss"] for row in sample.rows}


def steps_done(run: Path) -> int:
    """Newest step in metrics.jsonl."""
    return max((row["step"] for row in read_jsonl(Storage(str(run)), "metrics.jsonl")), default=0)


def _storage(run: Path | Storage) -> Storage:
    return run if isinstance(run, Storage) else Storage(str(run))


def samples_of_steps(run: Path | Storage) -> dict[int, list[int]]:
    """Sorted sample ids of each step over all workers, of the last attempt that did the step."""
    by_attempt: dict[int, dict[int, list[int]]] = {}
    for name in _storage(run).list_names("samples"):
        for row in read_jsonl(_storage(run), f"samples/{name}"):
            by_attempt.setdefault(row["step"], {}).setdefault(row["attempt"], []).extend(row["ids"])
    return {step: sorted(attempts[max(attempts)]) for step, attempts in sorted(by_attempt.items())}


def committed_steps(run: Path) -> list[int]:
    """Steps of the committed checkpoints."""
    folder = run / "checkpoints"
    return sorted(int(p.parent.name[5:].split("-")[0]) for p in folder.glob("step_*/manifest.json"))


def assert_same_curve(one: dict[int, float], other: dict[int, float], tolerance: float = 1e-4) -> None:
    """Equal steps, and losses that differ by rounding at most."""
    assert one.keys() == other.keys()
    worst = max(one, key=lambda step: abs(one[step] - other[step]))
    assert np.isclose(one[worst], other[worst], rtol=0, atol=tolerance), (worst, one[worst], other[worst])


def summary(run: Path) -> dict[str, Any]:
    """summary.json."""
    return json.loads((run / "summary.json").read_text())


def resolved(run: Path) -> dict[str, Any]:
    """config.yaml of a run."""
    return yaml.safe_load((run / "config.yaml").read_text())


def tiny_run(folder: Path, name: str, *overrides: str, num_rows: int = 403) -> RunConfig:
    """A sentiment run over `num_rows` tiny reviews that trains in milliseconds a step: fp32, dropout, batches of 8,
    so that curves can be compared. Data, tokenizer and prepared store are shared by all runs in `folder`."""
    data = {split: folder / "data" / f"{split}.parquet" for split in ("train", "validation", "test")}
    if not (folder / "tokenizer").exists():
        tiny_tokenizer(folder / "tokenizer")
        for seed, (split, path) in enumerate(data.items()):
            write_reviews(path, num_rows if split == "train" else 37, seed)
    raw = {
        "name": name,
        "storage_path": str(folder / "runs"),
        "task": {"kind": "sequence_classification"},
        "model": {"config": TINY_BERT, "tokenizer": str(folder / "tokenizer")},
        "data": {split: {"path": str(path)} for split, path in data.items()},
        "training": {
            "epochs": 3,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "precision": "fp32",
            "zero_stage": 2,  # auto would be 0 for a model this small, and shard nothing
            "dropout": 0.1,
            "optimizer": {"learning_rate": 2e-3},
        },
        "checkpoint": {"save_every_steps": 5},
        "ray": {"num_cpus": 6},
    }
    raw["data"]["record_samples"] = True
    return parse_config(raw, list(overrides))


def start_local_ray() -> None:
    """Connect this process to a Ray of its own."""
    try:
        _start_local_ray()
    except Exception:  # the machine was too busy for the 30 s that Ray gives its node
        _start_local_ray()


def _start_local_ray() -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=512 << 20,
        # What tests define is found by Ray's processes too.
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}},
    )
