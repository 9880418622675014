"""Prepares a command to run on a cluster: validates it on the user's machine and turns its config into data.

The job's command line only names files that are sent with it, none of this machine.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain.config import RunConfig
from raytrain.config.io import load_config, read_config
from raytrain.config.yaml import to_yaml
from raytrain.errors import ConfigError
from raytrain.runs.folder import read_run_config
from raytrain.runs.preflight import check_elsewhere, local_paths
from raytrain.storage import Storage
from raytrain.tuning.best_trial import NEEDS_SWEEP, TRIAL_NEEDS_SWEEP
from raytrain.tuning.space.space import check_space, load_space, space_name
from raytrain.tuning.sweep import metric_of

FOLDER = "raytrain_job"  # holds the files that are sent, inside the job's working directory
Params = dict[str, Any]
"""A command's parsed arguments and options, keyed by their names in `cli`."""


@dataclass(frozen=True)
class Request:
    """A job's command, and the files that it needs."""

    words: list[str]
    """The job's command line, after `raytrain`."""
    run: str
    """Folder of the run or sweep."""
    writes: bool = True
    """Whether the job needs the folder for itself: the driver of a second such job would refuse to start."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name -> contents."""
    data_paths: list[str] = field(default_factory=list)
    """Paths on file systems that the config names."""


def make_request(command: str, params: Params) -> Request:
    """Validate a command as far as this machine can, and prepare it for sending.

    Raises:
        ConfigError: It can't run on a cluster, or its config has mistakes.
    """
    if command not in MAKERS:
        raise ConfigError(f"{command!r} can't be submitted; allowed after --: {', '.join(MAKERS)}")
    return MAKERS[command](params)


def _train(params: Params) -> Request:
    overwrite = ["--overwrite"] * params["overwrite"]
    words = [word for word in (params["config"], *(params["overrides"] or [])) if word]
    if params["from_sweep"] is not None:  # the config is the sweep's, which this machine may be unable to read
        sweep = _place(params["from_sweep"], "--from-sweep")
        run = f"{sweep}-{params['trial'] or 'best'}{'-all-data' * params['all_data']}"
        chosen = [*(["--trial", params["trial"]] if params["trial"] else []), *["--all-data"] * params["all_data"]]
        return Request(["train", "--from-sweep", sweep, *chosen, *words, "ray.address=null", *overwrite], run)
    if params["all_data"] or params["trial"]:
        raise ConfigError(NEEDS_SWEEP if params["all_data"] else TRIAL_NEEDS_SWEEP)
    if not words:
        raise ConfigError("train needs a CONFIG: a YAML file, or the name of a shipped one (`raytrain configs list`)")
    config = load_config(words[0], words[1:])
    check_elsewhere(config)
    return _with_config("train", overwrite, config, config.name)


def _tune(params: Params) -> Request:
    space = load_space(params["space"])
    config = check_space(space, read_config(params["config"]), params["overrides"] or [])
    metric_of(space, config)
    check_elsewhere(config)
    name = space_name(params["space"])
    shipped = f"{FOLDER}/{name}.yaml" if name != "config" else f"{FOLDER}/space/{name}.yaml"
    words = ["--space", shipped]
    for option in ("trials", "max_concurrent"):
        if params[option] is not None:
            words += [f"--{option.replace('_', '-')}", str(params[option])]
    raw = space.model_dump(mode="json", exclude_unset=True)
    return _with_config("tune", words, config, f"{config.name}-{name}", {shipped: to_yaml(raw).encode()})


def _resume(params: Params) -> Request:
    run, overrides = _place(params["run"], "RUN"), params["overrides"] or []
    if os.path.isabs(run) and os.path.isdir(run):  # a shared folder that is mounted here too
        check_elsewhere(read_run_config(Storage(run), overrides))
    return Request(["resume", run, *overrides, "ray.address=null"], run)


def _eval(params: Params) -> Request:
    run = _place(params["run"], "RUN")
    return Request(["eval", run, *(params["overrides"] or []), "--split", params["split"]], run, writes=False)


def _doctor(params: Params) -> Request:
    if params["address"]:
        raise ConfigError("doctor examines the cluster that it is submitted to; omit its own --address")
    storage = ["--storage", _place(params["storage"], "--storage")] if params["storage"] else []
    options = [*storage, *["--json"] * params["json"]]
    if not params["config"]:
        return Request(["doctor", *options], "", writes=False)
    config = load_config(params["config"], params["overrides"] or [])
    check_elsewhere(config)
    return replace(_with_config("doctor", options, config, config.name), writes=False)


MAKERS: dict[str, Callable[[Params], Request]] = {
    "train": _train,
    "tune": _tune,
    "resume": _resume,
    "eval": _eval,
    "doctor": _doctor,
}


def _with_config(
    command: str, options: list[str], config: RunConfig, folder: str, files: dict[str, bytes] | None = None
) -> Request:
    """The request of a command whose config is sent along."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw.pop("ray", None)  # the job is told on the cluster which Ray to join
    name = f"{FOLDER}/config.yaml"
    return Request(
        words=[command, name, *options],
        run=f"{config.storage_path.rstrip('/')}/{folder}",
        files={name: to_yaml(raw).encode(), **(files or {})},
        data_paths=[path for _, path in local_paths(config)],
    )


def _place(path: str, what: str) -> str:
    """The folder of a run, as every node can find it. Raises ConfigError."""
    if "://" not in path and not os.path.isabs(path):
        raise ConfigError(
            f"{what} {path}: a path relative to a folder of this machine; give the absolute path of a folder that "
            f"all nodes share, or a URI. If they share this one: {os.path.abspath(os.path.expanduser(path))}"
        )
    return path.rstrip("/")
