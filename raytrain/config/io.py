"""Reads a run config from a YAML file and `key=value` overrides, with errors that a person can act on.

Precedence: defaults < file < overrides. All mistakes are reported at once, each with its dotted path.
"""

import copy
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raytrain.config import RunConfig
from raytrain.config import shipped as assets
from raytrain.config.fields import type_of
from raytrain.config.mistakes import describe_all, described, resolve
from raytrain.config.yaml import parse_yaml, read_yaml, to_yaml
from raytrain.errors import ConfigError
from raytrain.redaction import find_credential

# Pairs of fields that set the same thing in two ways and exclude each other.
EITHER = (
    ("training.epochs", "training.max_steps"),
    ("training.eval_every_steps", "training.eval_every_epochs"),
)
KNOWN_BY = {
    "url": "this URI holds credentials",
    "name": "by its name this is a credential",
    "value": "by its value this is a credential",
}
IN_ENVIRONMENT = {
    "url": (
        "this URI holds credentials, which would be written to the run's folder and shown in messages. "
        "Leave them out, and set them in the environment of every node instead (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_KEY, or the machine's own role; "
        "PGPASSWORD; "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
    ),
    "name": (
        "by its name this is a credential, which would be written to the run's folder and to the model card. Leave it "
        "out and set it in the environment of every node instead, where a task of your own reads it with os.environ. "
        "If it is not a credential, give the key another name"
    ),
    "value": (
        "by its value this is a credential, which would be written to the run's folder and to the model card. Leave it "
        "out and set it in the environment of every node instead, where a task of your own reads it with os.environ"
    ),
}
"""How `find_credential` knows a credential -> what to do."""
VARIABLES = {
    "tracking.wandb": "WANDB_API_KEY",
    "tracking.mlflow": "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD,",
    "model": "HF_TOKEN",
}
"""Section of the config -> the variables from which its library reads credentials."""


def load_config(config: str, overrides: list[str] | None = None) -> RunConfig:
    """The validated config of a file or shipped config, with overrides applied.

    Args:
        config: A path to a YAML file, or the bare name of a shipped config.
        overrides: `dotted.key=value` words; the value is read as YAML.

    Raises:
        ConfigError: The file is missing or not YAML, or anything in it is wrong.
    """
    path = assets.find_config(config)
    return parse_config(read_yaml(path, RunConfig), overrides, origin=path)


def read_config(config: str) -> Any:
    """The contents of the file of a config, or of a shipped config, unchecked. Raises ConfigError if it can't be
    read."""
    return read_yaml(assets.find_config(config), RunConfig)


def parse_config(raw: Any, overrides: list[str] | None = None, origin: str = "the config") -> RunConfig:
    """Validate a copy of a raw mapping with overrides applied. Raises ConfigError naming each mistake."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: expected `key: value` lines, found {described(raw)}")
    raw = copy.deepcopy(raw)
    _refuse_both(overrides or [])
    for override in overrides or []:
        _apply_override(raw, override)
    refuse_credentials(raw)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_all_mistakes(error.errors(), overrides or [], origin)) from None


def _all_mistakes(details: list[ErrorDetails], overrides: list[str], origin: str) -> str:
    """One line per mistake. A mistake in an override names the override, not the file."""
    lines, makers = [], set()
    for detail, line in describe_all(details):
        override = next((o for o in reversed(overrides) if _is_from(detail, o.partition("=")[0])), None)
        makers.add("the command line" if override else origin)
        lines.append(line + (f" (override {override})" if override else ""))
    who = " and ".join(sorted(makers, key=lambda maker: maker != origin))
    verb = "have" if len(makers) > 1 else "has"
    return "\n".join([f"{who} {verb} {len(lines)} mistake{'s' * (len(lines) > 1)}:", *lines])


def _is_from(detail: ErrorDetails, key: str) -> bool:
    """Whether a mistake lies at the key of an override, or below it."""
    if detail["type"] == "value_error":  # concerns several fields, which the message names
        parts = key.split(".")
        keys = [key, *(".".join(parts[:end]) for end in range(2, len(parts)))]  # also of a section that it is in
        message = str((detail.get("ctx") or {}).get("error"))
        return any(re.search(rf"\b{re.escape(one)}(?!\w)", message) for one in keys)
    path = ".".join(resolve(detail["loc"], RunConfig)[0])
    path += ".kind" if detail["type"].startswith("union_tag") else ""
    is_unknown_section = detail["type"] == "extra_forbidden" and key.startswith(f"{path}.")
    return path == key or path.startswith(f"{key}.") or is_unknown_section


def refuse_credentials(raw: dict[str, Any]) -> None:
    """Refuse a config or a search space with a credential in it; `redaction` says why. It comes before all other
    checks, since their messages show values. Raises ConfigError without the value."""
    if (found := find_credential(raw)) is not None:
        key, why = found
        for section, variables in VARIABLES.items():
            if f"{key}.".startswith(f"{section}."):
                raise ConfigError(
                    f"{key}: {KNOWN_BY[why]}, which would be written to the run's folder and shown in messages. Leave "
                    f"it out, and set {variables} in the environment of every node before Ray is started there; "
                    "without a cluster, in that of the command. `raytrain submit` sends no variables along"
                )
        raise ConfigError(f"{key}: {IN_ENVIRONMENT[why]}")


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, defaults included; loading it gives the same config back."""
    raw = config.model_dump(mode="json")
    # The two ways of giving a length exclude each other, so a resolved config names only one.
    raw["training"].pop("max_steps" if config.training.max_steps is None else "epochs")
    return to_yaml(raw)


def flatten(raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, _ = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
    value = _value_of(override)
    for pair in EITHER:
        training = raw.get("training")
        if key in pair and isinstance(training, dict):
            own, other = (name.rpartition(".")[2] for name in (key, pair[1 - pair.index(key)]))
            if value is None and training.get(other) is not None:
                training.pop(own, None)
                return
            if value is not None:
                training.pop(other, None)  # the override replaces what the file has
    *parents, last = key.split(".")
    place = raw
    for i, parent in enumerate(parents):
        if not isinstance(place.get(parent), dict):
            if place.get(parent) is not None:
                raise ConfigError(f"override {key}: {'.'.join(parents[: i + 1])} is a value, not a section")
            place[parent] = {}
        place = place[parent]
    place[last] = value


def _refuse_both(overrides: list[str]) -> None:
    """Raises ConfigError for two overrides that set the same thing. One override would replace what the file has."""
    given = {override.partition("=")[0]: override for override in overrides}
    given = {key: override for key, override in given.items() if _value_of(override) is not None}
    for pair in EITHER:
        if all(key in given for key in pair):
            raise ConfigError(f"{given[pair[0]]} and {given[pair[1]]} set the same thing in two ways: give one of them")


def _value_of(override: str) -> Any:
    """The value of `key=value`, as the key's field takes it. Raises ConfigError when it is not YAML."""
    key, _, text = override.partition("=")
    return parse_yaml(text, type_of(key), origin=f"override {key}: {text!r}")
