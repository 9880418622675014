"""Where shipped YAML files live: inside the package, in a wheel and in a checkout alike."""

import difflib
import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from raytrain.errors import ConfigError


def config_names() -> list[str]:
    """Bare names of the shipped run configs."""
    folder = resources.files("raytrain") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def space_names() -> list[str]:
    """Bare names of the shipped search spaces."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _spaces().iterdir() if entry.name.endswith(".yaml"))


def _spaces() -> Traversable:
    """In a wheel the folder lies inside the package, in a checkout beside it."""
    packed = resources.files("raytrain") / "_assets" / "tune_spaces"
    return packed if packed.is_dir() else Path(__file__).parents[1] / "tune_spaces"


def find_space(space: str) -> str:
    """Path of a search space given as a path, or as the bare name of a shipped one. Raises ConfigError likewise."""
    return _find(space, space_names(), "search space", _spaces())


def find_config(config: str) -> str:
    """Path of a run config given as a path, or as the bare name of a shipped one.

    Raises:
        ConfigError: There is neither; the nearest name is given.
    """
    return _find(config, config_names(), "config", resources.files("raytrain") / "configs")


def _find(name: str, shipped: list[str], what: str, folder: Traversable) -> str:
    if os.path.isfile(name):
        return name
    if name in shipped:
        return str(folder / f"{name}.yaml")
    close = difflib.get_close_matches(name, shipped, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"no {what} file {name!r}, nor a shipped {what} of that name ({', '.join(shipped)}){hint}")
