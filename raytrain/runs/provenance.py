"""The provenance of a run: one line per command in commands.jsonl, with versions, machine, commit and data.

The command line is recorded without credentials. The environment is not recorded, since it may contain secrets.
"""

import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import raytrain
from raytrain.data.prepared import SplitInfo
from raytrain.redaction import redact
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.training.records import COMMANDS, JsonlWriter

PACKAGES = ("ray", "torch", "deepspeed", "transformers")
MOST_LABELS = 200  # whose counts are recorded
TOOL_TIMEOUT_S = 5.0  # a git or nvidia-smi that hangs must not delay the run


def observe_command() -> "Future[dict[str, Any]]":
    """What `record_command` writes of this command, found out in a thread: git and nvidia-smi may take seconds."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="provenance")
    observed = thread.submit(_observed, os.getcwd())
    thread.shutdown(wait=False)
    return observed


def record_command(
    run: Storage, splits: Mapping[str, SplitInfo], observed: "Future[dict[str, Any]]", epoch: Sequence[str] = ()
) -> None:
    """Append this command's line to the run's commands.jsonl.

    Args:
        splits: By name, those of the prepared data.
        observed: Of `observe_command`; waited for.
        epoch: What an epoch has, where it is not each sample once.
    """
    writer = JsonlWriter(run, COMMANDS)
    data = {name: _counts(asdict(split)) for name, split in splits.items()}
    labels = label_counts({name: split.label_counts for name, split in splits.items()})
    found = {"data": data, "labels": labels, "epoch": "; ".join(epoch)}
    writer.write({"time": time.time(), **observed.result(), **{name: what for name, what in found.items() if what}})
    retrying(writer.sync, f"writing {run.path_of(COMMANDS)}")
    writer.close()


def label_counts(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """How often each label occurs in each split; of many labels the MOST_LABELS that occur most often in all splits.

    Args:
        counts: Split -> label -> count.

    Returns:
        Label -> split -> count, in the order of the labels' names.
    """
    total: Counter[str] = Counter()
    for of_split in counts.values():
        total.update(of_split)
    kept = sorted(label for label, _ in total.most_common(MOST_LABELS))
    return {label: {split: of_split.get(label, 0) for split, of_split in counts.items()} for label in kept}


def _observed(folder: str) -> dict[str, Any]:
    return {
        "command": command_line(sys.argv),
        "versions": _versions(),
        "machine": _machine(),
        "git": git_state(folder),
    }


def command_line(argv: Sequence[str]) -> str | None:
    """The command as it can be typed again; for a Python script its name alone, since its arguments may be secret.

    None in a process that Ray has started, such as a trial of a sweep.
    """
    path = Path(argv[0])
    if path.name == "default_worker.py":
        return None
    if path.name in ("raytrain", "__main__.py"):
        return redact(shlex.join(["raytrain", *argv[1:]]))
    return f"python {path.name}".strip()


def git_state(folder: str) -> dict[str, Any] | None:
    """Commit of the working directory and whether tracked files differ from it; None outside a repository."""
    commit = _output_of("git", "-C", folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output_of("git", "-C", folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "is_modified": changes != ""}


def _versions() -> dict[str, str]:
    found = {"raytrain": raytrain.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # built from source and not installed
            continue
    return found


def _machine() -> dict[str, Any]:
    """The machine on which the command was given; workers may run on other machines."""
    # Asked of nvidia-smi: torch would initialize CUDA in this process and hold GPU memory.
    gpus = _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus.splitlines() if gpus else [],
    }


def _output_of(*command: str) -> str | None:
    """The output of a tool; None when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _counts(split: dict[str, Any]) -> dict[str, int]:
    """The counts of a split, without its list of files."""
    counts = {name.removeprefix("num_"): count for name, count in split.items() if isinstance(count, int)}
    rows = {name: split["rows"][name] for name in ("read", "dropped") if name in split["rows"]}
    return {**counts, **rows, "removed": sum(split["num_removed"].values())}
