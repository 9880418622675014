"""A command that is to run on a cluster: checked on the user's machine, with its config turned into data.

The job's own command line names files that are sent with it, and nothing of this machine.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raytrain.config import RunConfig
from raytrain.config.io import load_config, read_yaml, to_yaml
from raytrain.config.shipped import find_config
from raytrain.errors import ConfigError
from raytrain.runs.preflight import check_elsewhere, local_paths
from raytrain.runs.run import read_run_config
from raytrain.storage import Storage
from raytrain.tuning.best_trial import NEEDS_SWEEP, TRIAL_NEEDS_SWEEP
from raytrain.tuning.space.space import check_space, load_space, space_name
from raytrain.tuning.sweep import metric_of

FOLDER = "raytrain_job"  # of the files that are sent, in the job's folder
Params = dict[str, Any]
"""A command's parsed arguments and options, by the names that `cli` gives them."""


@dataclass(frozen=True)
class Request:
    """What a job does, and what it needs for that."""

    words: list[str]
    """The job's command line, after `raytrain`."""
    run: str
    """The run's or sweep's folder."""
    writes: bool = True
    """Whether the folder is the job's alone: two such jobs at once would be refused by the second's driver."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Contents by name."""
    data_paths: list[str] = field(default_factory=list)
    """What the config names in a file system."""


def make_request(command: str, params: Params) -> Request:
    """Check a command as far as this machine can, and make it ready to be sent.

    Raises:
        ConfigError: It can't run on a cluster, or its config has mistakes.
    """
    if command not in MAKERS:
        raise ConfigError(f"{command!r} can't be submitted; allowed after --: {', '.join(MAKERS)}")
    return MAKERS[command](params)


def _train(params: Params) -> Request:
    overwrite = ["--overwrite"] * params["overwrite"]
    words = [word for word in (params["config"], *(params["overrides"] or [])) if word]
    if params["from_sweep"] is not None:  # its config is the sweep's, which this machine may not reach
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
    config = check_space(space, read_yaml(find_config(params["config"])), params["overrides"] or [])
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
    if os.path.isabs(run) and os.path.isdir(run):  # a shared folder that this machine has too
        check_elsewhere(read_run_config(Storage(run), overrides))
    return Request(["resume", run, *overrides, "ray.address=null"], run)


def _eval(params: Params) -> Request:
    run = _place(params["run"], "RUN")
    return Request(["eval", run, *(params["overrides"] or []), "--split", params["split"]], run, writes=False)


def _doctor(params: Params) -> Request:
    if params["address"]:
        raise ConfigError("doctor examines the cluster that it is submitted to; leave its own --address out")
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
    """The request of a command whose config is sent."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw.pop("ray", None)  # which cluster to join, the job is told there
    name = f"{FOLDER}/config.yaml"
    return Request(
        words=[command, name, *options],
        run=f"{config.storage_path.rstrip('/')}/{folder}",
        files={name: to_yaml(raw).encode(), **(files or {})},
        data_paths=[path for _, path in local_paths(config)],
    )


def _place(path: str, what: str) -> str:
    """A run's folder, as every node finds it. Raises ConfigError."""
    if "://" not in path and not os.path.isabs(path):
        raise ConfigError(
            f"{what} {path}: a path that is relative to this machine's folder; give the absolute path of a folder that "
            f"all nodes share, or a URI. If they share this one: {os.path.abspath(os.path.expanduser(path))}"
        )
    return path.rstrip("/")
