"""A config and overrides as Python gives them: paths, mappings and RunConfigs."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from raytrain.config import RunConfig
from raytrain.config.io import load_config, parse_config, read_config
from raytrain.errors import ConfigError

Override = str | Mapping[str, Any]


def words_of(overrides: Iterable[Override]) -> list[str]:
    """Overrides as `dotted.key=value` words. A value of a mapping is written as JSON, which YAML reads as the same
    value: the string "off" stays a string. Raises ConfigError for an override of another type."""
    words: list[str] = []
    for override in overrides:
        if isinstance(override, str):
            words.append(override)
        elif isinstance(override, Mapping):
            words += [
                f"{key}={json.dumps(value, default=_plain, ensure_ascii=False)}" for key, value in override.items()
            ]
        else:
            raise ConfigError(
                f"override {override!r} is of type {type(override).__name__}; give 'dotted.key=value' strings, or "
                "mappings of dotted keys such as {'training.epochs': 1}"
            )
    return words


def _plain(value: Any) -> Any:
    """A path or a section of the config as a type that YAML supports."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True)
    raise ConfigError(f"override value {value!r} is of type {type(value).__name__}, which a config can't hold")


def parse(config: Any, overrides: Iterable[Override]) -> RunConfig:
    """The validated config. Raises ConfigError."""
    if isinstance(config, str | os.PathLike):
        return load_config(os.fspath(config), words_of(overrides))
    return parse_config(raw_of(config), words_of(overrides))


def raw_of(config: Any) -> dict[str, Any]:
    """A config as it was given, unchecked. Raises ConfigError."""
    if isinstance(config, RunConfig):
        return config.model_dump(mode="json", exclude_unset=True)
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, str | os.PathLike):
        raw: dict[str, Any] = read_config(os.fspath(config))
        return raw
    raise ConfigError(
        f"a config is a path, the name of a shipped config, a mapping or a RunConfig, not {type(config).__name__}"
    )
