"""Reading what a run's folder holds."""

import json
from collections.abc import Sequence

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.config.yaml import parse_yaml
from raytrain.errors import ConfigError
from raytrain.storage import Storage

SWEEP = "sweep.yaml"
"""The file that makes a folder a sweep's, as config.yaml makes it a run's."""


def read_run_config(run: Storage, overrides: Sequence[str] = ()) -> RunConfig:
    """The run's resolved config, adapted to where its folder is now: it may have been moved, or be on an object store.

    Raises ConfigError when the folder is not a run's, or an override is wrong.
    """
    path = run.path_of("config.yaml")
    if not run.exists("config.yaml"):
        raise ConfigError(f"{run.path_of()} is not a run's folder: it has no config.yaml")
    raw = parse_yaml(run.read_bytes("config.yaml"), RunConfig, origin=path)
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
