"""Reading what a run's folder holds."""

import contextlib
import json
from collections.abc import Sequence

from raytrain.checkpoint.fence import LEASE
from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.config.yaml import parse_yaml
from raytrain.errors import ConfigError, did_you_mean
from raytrain.storage import Storage

CONFIG, TRIALS = "config.yaml", "trials"
DEEPEST = 3  # folders around one that are looked at
MOST_LOOKED_AT = 1000  # names in a folder
MOST_NAMED = 5  # runs in a message
SWEEP = "sweep.yaml"
"""The file that makes a folder a sweep's, as config.yaml makes it a run's."""


def read_run_config(run: Storage, overrides: Sequence[str] = ()) -> RunConfig:
    """The run's resolved config, adapted to where its folder is now: it may have been moved, or be on an object store.

    Raises ConfigError when the folder is not a run's, or an override is wrong.
    """
    path = run.path_of(CONFIG)
    if not run.exists(CONFIG):
        raise ConfigError(f"{run.path_of()} is not a run's folder: {_why_none(run)}")
    raw = parse_yaml(run.read_bytes(CONFIG), RunConfig, origin=path)
    parent, name = run.place()
    if isinstance(raw, dict):
        raw |= {"storage_path": parent, "name": name}
    return parse_config(raw, list(overrides), origin=path)


def used_gpu(run: Storage) -> bool | None:
    """Whether the run's workers had GPUs; None if it is not recorded."""
    try:
        return json.loads(run.read_bytes("plan.json"))["use_gpu"]
    except (OSError, ValueError, KeyError):
        return None


def _why_none(folder: Storage) -> str:
    """Why a folder is not a run's, and which one is probably meant."""
    path = folder.path_of()
    if not folder.exists():
        return f"there is no such folder{_beside(folder)}"
    if folder.exists(SWEEP):
        trials = runs_in(folder.at(TRIALS))
        such_as = f", such as {path}/{TRIALS}/{trials[0]}" if trials else ""
        return (
            f"it is a sweep's, whose trials are runs{such_as}. `raytrain report {path}` reports on the sweep, and the "
            "`raytrain tune` command that began it resumes it"
        )
    if runs := runs_in(folder):
        return f"it holds runs: give one of them, such as {path}/{runs[0]} ({named(runs)})"
    if (outer := _around(folder, LEASE)) is not None:  # the user may have a config.yaml above the runs
        return f"it is a part of one: give {outer.path_of()}"
    if (outer := _around(folder, SWEEP)) is not None:
        return f"it is a part of a sweep: give one of its trials, {outer.path_of(TRIALS)}/..."
    return f"it has no {CONFIG}"


def why_no_sweep(folder: Storage) -> str:
    """Why a folder is not a sweep's, and which one is probably meant."""
    path = folder.path_of()
    if not folder.exists():
        return f"there is no such folder{_beside(folder, SWEEP)}"
    if (outer := _around(folder, SWEEP)) is not None:
        return f"it is a part of one: give {outer.path_of()}"
    if folder.exists(CONFIG):
        return "it is a single run's"
    if sweeps := runs_in(folder, SWEEP):
        return f"it holds sweeps: give one of them, such as {path}/{sweeps[0]} ({named(sweeps)})"
    return f"it has no {SWEEP}"


def _beside(folder: Storage, file: str = CONFIG) -> str:
    """The runs, or the sweeps, of the folder in which a missing one would be."""
    parent, name = folder.place()
    found, what = runs_in(Storage(parent), file), "runs" if file == CONFIG else "sweeps"
    return f"; {parent} has the {what} {named(found)}{did_you_mean(name, found)}" if found else ""


def _around(folder: Storage, file: str) -> Storage | None:
    """The nearest folder around this one that has a file."""
    for _ in range(DEEPEST):
        parent, name = folder.place()
        if not name or parent == folder.path_of():
            return None
        folder = Storage(parent)
        if folder.exists(file):
            return folder
    return None


def runs_in(folder: Storage, file: str = CONFIG) -> list[str]:
    """Names of the runs in a folder; with SWEEP as `file`, of the sweeps. [] when it can't be read."""
    with contextlib.suppress(OSError):
        names = sorted(folder.list_names())[:MOST_LOOKED_AT] if folder.exists() else []
        return [name for name in names if folder.exists(f"{name}/{file}")]
    return []


def named(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
