"""Reading a run config: YAML file, `key=value` overrides, and errors that a person can act on.

Precedence: defaults < file < overrides. Every mistake is reported at once, each with its dotted path.
"""

import copy
import difflib
import re
import types
import typing
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raytrain.config import RunConfig
from raytrain.config import shipped as assets
from raytrain.errors import ConfigError, did_you_mean

# Two ways each of saying the same, which exclude each other.
EITHER = (
    ("training.epochs", "training.max_steps"),
    ("training.eval_every_steps", "training.eval_every_epochs"),
)
# user:password@ before the first slash (but for host:port), or an option of the query that is named like a secret.
CREDENTIALS = re.compile(
    r"^[\w+.-]+://([^/@?]*:(?!\d+(/|$))[^@]*@"
    r"|[^?]*\?(.*&)?(sig|key|[^=&]*(access_?key|account_?key|secret|token|password|credential)[^=&]*)=)",
    re.IGNORECASE,
)


def load_config(config: str, overrides: list[str] | None = None) -> RunConfig:
    """The validated config of a file or shipped config, with overrides applied.

    Args:
        config: A path to a YAML file, or the bare name of a shipped config.
        overrides: `dotted.key=value` words; the value is read as YAML.

    Raises:
        ConfigError: The file is missing or no YAML, or anything in it is wrong.
    """
    path = assets.find_config(config)
    return parse_config(read_yaml(path), overrides, origin=path)


def parse_config(raw: Any, overrides: list[str] | None = None, origin: str = "the config") -> RunConfig:
    """Validate a copy of a raw mapping with overrides applied. Raises ConfigError naming each mistake."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: expected `key: value` lines, found {type(raw).__name__}")
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
    """A line for each mistake; one that an override has made names the override, not the file."""
    lines, makers = [], set()
    for detail in details:
        override = next((o for o in reversed(overrides) if _is_from(detail, o.partition("=")[0])), None)
        makers.add("the command line" if override else origin)
        lines.append(describe(detail) + (f" (override {override})" if override else ""))
    who = " and ".join(sorted(makers, key=lambda maker: maker != origin))
    verb = "have" if len(makers) > 1 else "has"
    return "\n".join([f"{who} {verb} {len(lines)} mistake{'s' * (len(lines) > 1)}:", *lines])


def _is_from(detail: ErrorDetails, key: str) -> bool:
    """Whether a mistake lies at the key of an override, or below it."""
    if detail["type"] == "value_error":  # between several fields, which the message names
        return re.search(rf"\b{re.escape(key)}(?!\w)", str((detail.get("ctx") or {}).get("error"))) is not None
    path = ".".join(_resolve(detail["loc"], RunConfig)[0])
    path += ".kind" if detail["type"].startswith("union_tag") else ""
    is_unknown_section = detail["type"] == "extra_forbidden" and key.startswith(f"{path}.")
    return path == key or path.startswith(f"{key}.") or is_unknown_section


def refuse_credentials(raw: dict[str, Any]) -> None:
    """Refuse a URI with a password or a key in it: a config is copied into the run's folder and its report, and shown
    in messages. Looked at before anything else, since messages show values. Raises ConfigError without the value."""
    for key, value in flatten(raw).items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, str) and CREDENTIALS.search(one) for one in values):
            raise ConfigError(
                f"{key}: this URI holds credentials, which would be written to the run's folder and shown in messages. "
                "Leave them out, and set them in the environment of every node instead (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_KEY, or the machine's own role; "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
            )


class _UniqueKeys(yaml.SafeLoader):
    """YAML wants keys to be unique; PyYAML takes the last one of two without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader. Raises yaml.constructor.ConstructorError for a key that was there before."""
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen[key.value] = key
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> Any:
    """Parse a YAML file. Raises ConfigError naming the file and the line."""
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, defaults included; loading it gives the same config back."""
    raw = config.model_dump(mode="json")
    # The two ways of giving a length exclude each other, so a resolved config names only one.
    raw["training"].pop("max_steps" if config.training.max_steps is None else "epochs")
    return to_yaml(raw)


def to_yaml(raw: dict[str, Any]) -> str:
    """As files for people are written: keys in their order, letters as they are."""
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


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
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {key}: {text!r} is not valid YAML: {error}") from None
    if isinstance(value, str):
        value = _number(value)
    for pair in EITHER:
        training = raw.get("training")
        if key in pair and isinstance(training, dict):
            own, other = (name.rpartition(".")[2] for name in (key, pair[1 - pair.index(key)]))
            if value is None and training.get(other) is not None:
                training.pop(own, None)
                return
            if value is not None:
                training.pop(other, None)  # the file's way gives way to the override's
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
    """An override takes the place of the file's other way; of two overrides neither would be more right."""
    given = {override.partition("=")[0]: override for override in overrides}
    given = {key: override for key, override in given.items() if not _is_null(override.partition("=")[2])}
    for pair in EITHER:
        if all(key in given for key in pair):
            raise ConfigError(f"{given[pair[0]]} and {given[pair[1]]} say the same in two ways: give one of them")


def _is_null(text: str) -> bool:
    try:
        return yaml.safe_load(text) is None
    except yaml.YAMLError:  # said later
        return False


def _number(text: str) -> str | float:
    """YAML reads 1e-4 as a string (it wants 1.0e-4); people mean the number."""
    try:
        return float(text) if any(c.isdigit() for c in text) else text
    except ValueError:
        return text


def describe(detail: ErrorDetails, root: type[BaseModel] = RunConfig) -> str:
    """One pydantic error as a sentence: dotted path, what is wrong, the value, what is allowed.

    `root`: the class that was validated.
    """
    location, section = _resolve(detail["loc"], root)
    path = ".".join(location)
    kind, given, context = detail["type"], detail.get("input"), detail.get("ctx") or {}
    if kind == "extra_forbidden":
        return f"  {path}: unknown key{_nearest(detail['loc'], root)}"
    if kind == "missing":
        return f"  {path}: required, but not given"
    if kind == "union_tag_invalid":
        tags = str(context.get("expected_tags")).replace("'", "").split(", ")
        hint = did_you_mean(str(context.get("tag")), tags)
        return f"  {path}.kind: {context.get('tag')!r} is not known; allowed: {', '.join(tags)}{hint}"
    if kind == "union_tag_not_found":
        allowed = ", ".join(tag for option in _models(section) for tag in _tags(option))
        return f"  {path}.kind: required, but not given; allowed: {allowed}"
    if kind == "value_error":  # most of our own validators name the dotted path themselves
        text = str(context["error"])
        return f"  {text}" if path in text else f"  {path}: {text}"
    if kind in ("model_type", "model_attributes_type"):
        return f"  {path}: expected a section with keys, got {given!r}"
    message = detail["msg"].replace("Input should be ", "must be ")
    if kind == "string_pattern_mismatch" and path == "name":
        message = "must be letters, digits, dots, dashes and underscores, since it names a folder"
    if kind in ("enum", "literal_error") and isinstance(given, str):
        close = difflib.get_close_matches(given, str(context.get("expected", "")).replace("'", "").split(" "), 1)
        message += f"; did you mean {close[0].strip(',')}?" if close else ""
    return f"  {path}: {message}, got {given!r}"


def _nearest(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """' (did you mean x?)' for an unknown key, or the allowed keys; looks for a namesake in other sections too."""
    path, section = _resolve(location[:-1], root)
    name = str(location[-1])
    allowed = [field for option in _models(section) for field in option.model_fields]
    close = difflib.get_close_matches(name, allowed, 1, cutoff=0.6)
    if close:
        return f"; did you mean {'.'.join((*path, close[0]))}?"
    elsewhere = {path.split(".")[-1]: path for path in reversed(all_fields(root))}
    close = difflib.get_close_matches(name, elsewhere, 1, cutoff=0.8)
    if close:
        return f"; did you mean {elsewhere[close[0]]}?"
    return f"; allowed here: {', '.join(allowed)}" if allowed else ""


def _resolve(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], Any]:
    """Pydantic's location without the tags of unions, and the annotation of what is there; None: nothing is known."""
    path: list[str] = []
    annotation: Any = root
    for part in location:
        options = _models(annotation)
        if tagged := [option for option in options if len(options) > 1 and part in _tags(option)]:
            annotation = tagged[0]
            continue
        path.append(str(part))
        if typing.get_origin(annotation) is dict:
            annotation = typing.get_args(annotation)[1]
        else:
            field = options[0].model_fields.get(str(part)) if options else None
            annotation = field.annotation if field else None
    return path, annotation


def _tags(option: type[BaseModel]) -> tuple[Any, ...]:
    """What `kind` is in a member of a union."""
    return typing.get_args(option.model_fields["kind"].annotation) if "kind" in option.model_fields else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Config classes inside an annotation such as `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for argument in typing.get_args(annotation) for model in _models(argument)]
    return []


def all_fields(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Dotted paths of every field of the config."""
    paths = []
    for name, field in section.model_fields.items():
        paths.append(f"{prefix}{name}")
        for model in _models(field.annotation):
            paths += all_fields(model, f"{prefix}{name}.")
    return list(dict.fromkeys(paths))
