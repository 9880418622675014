"""Where shipped YAML files live: inside the package, in a wheel and in a checkout alike."""

import difflib
import os
from importlib import resources

from raytrain.errors import ConfigError


def config_names() -> list[str]:
    """Bare names of the shipped run configs."""
    folder = resources.files("raytrain") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def find_config(config: str) -> str:
    """Path of a run config given as a path, or as the bare name of a shipped one.

    Raises:
        ConfigError: There is neither; the nearest name is given.
    """
    if os.path.isfile(config):
        return config
    if config in config_names():
        return str(resources.files("raytrain") / "configs" / f"{config}.yaml")
    close = difflib.get_close_matches(config, config_names(), 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"no config file {config!r}, nor a shipped config of that name ({', '.join(config_names())}){hint}"
    )
