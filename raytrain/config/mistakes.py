"""Turns pydantic's errors into sentences: the dotted option, its value, what is allowed, what was probably meant."""

import difflib
import math
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from raytrain.config import RunConfig
from raytrain.config.fields import all_fields, models_in, options_of, type_below, type_of
from raytrain.config.other_words import OTHER_NAMES, OTHER_VALUES, OTHER_WORDS, VALUE_OF_SECTION
from raytrain.config.yaml import to_word
from raytrain.errors import did_you_mean

# Words that many sections use for different things: the field of that name in another section is not what was meant.
GENERIC = ("name", "kind", "path", "config", "format", "mode", "metric", "group", "min", "max", "args", "source")

# Pydantic's error type -> what is allowed, with the values of the error's context.
ALLOWED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer with fewer digits",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_unicode": "text without broken characters",
    "list_type": "a list",
    "dict_type": "a mapping, key: value",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "string_pattern_mismatch": "text that matches {pattern}",
}
PATTERNS = {
    "name": "letters, digits, dots, dashes and underscores, since it names a folder",
    "task.target": "a class, as package.module:Class",
    "data.clean.custom": "a function, as package.module:function",
    "data.augment.custom": "a function, as package.module:function",
}
"""Field with a pattern -> the pattern in words."""
MOST_SHOWN = 100  # characters of a value


def describe_all(details: Iterable[ErrorDetails], root: type[BaseModel] = RunConfig) -> list[tuple[ErrorDetails, str]]:
    """(error, sentence) for each mistake. Pydantic reports one error for each member of a union, such as
    `text or a list`: these are one mistake."""
    mistakes: list[tuple[ErrorDetails, str]] = []
    unions: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for detail in details:
        if (union := _union_of(detail["loc"], root)) is None:
            mistakes.append((detail, describe([detail], root)))
        else:
            unions.setdefault(union, []).append(detail)
    for union, members in unions.items():
        # If something inside the value is wrong, its type is the intended one, and the other members do not matter.
        inside = [detail for detail in members if len(resolve(detail["loc"], root)[0]) > len(union)]
        groups = [[detail] for detail in inside] or [members]
        mistakes += [(group[0], describe(group, root)) for group in groups]
    return mistakes


def describe(group: Sequence[ErrorDetails], root: type[BaseModel] = RunConfig) -> str:
    """A mistake as a sentence: dotted path, what is allowed, the value.

    Args:
        group: Its error; of a union, the errors of all members.
        root: The class that was validated.
    """
    detail = group[0]
    location, section = resolve(detail["loc"], root)
    path = ".".join(location)
    kind, given, context = detail["type"], detail.get("input"), detail.get("ctx") or {}
    if kind == "extra_forbidden":
        return f"  {path}: unknown key{_nearest(detail['loc'], root)}"
    if kind == "missing":
        return f"  {path}: required, but not given"
    if kind == "invalid_key":
        return f"  {path}: a key must be text"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"  {path}.kind: {_wrong_kind(kind, context, section)}"
    if kind == "value_error":  # most of our own validators name the dotted path themselves
        text = str(context["error"])
        return f"  {text}" if path in text else f"  {path}: {text}"
    if kind in ("model_type", "model_attributes_type"):
        return f"  {path}: expected a section with keys, got {written(given)}{_single_value(path, given)}"
    allowed = ", or ".join(dict.fromkeys(_allowed(one, path) for one in group))
    close = [hint for one in group if (hint := _close_value(one, location[-1] if location else ""))]
    return f"  {path}: must be {allowed}, got {written(given)}{close[0] if close else ''}"


def _allowed(detail: ErrorDetails, path: str) -> str:
    context = detail.get("ctx") or {}
    if detail["type"] == "string_pattern_mismatch" and path in PATTERNS:
        return PATTERNS[path]
    if detail["type"] not in ALLOWED:  # an error type of a later pydantic
        return detail["msg"].removeprefix("Input should be ")
    return ALLOWED[detail["type"]].format(**context)


def _wrong_kind(kind: str, context: dict[str, Any], section: Any) -> str:
    if kind == "union_tag_not_found":
        allowed = ", ".join(tag for option in models_in(section) for tag in _tags(option))
        return f"required, but not given; allowed: {allowed}"
    tags = str(context.get("expected_tags")).replace("'", "").split(", ")
    hint = _meant("kind", str(context.get("tag")), tags)
    return f"{context.get('tag')!r} is not known; allowed: {', '.join(tags)}{hint}"


def _close_value(detail: ErrorDetails, name: str) -> str:
    """A hint at the allowed value that a mistyped one resembles, or that it means. `name`: of the field."""
    given = detail.get("input")
    if detail["type"] not in ("enum", "literal_error") or isinstance(given, bool) or not isinstance(given, str | int):
        return ""
    allowed = str((detail.get("ctx") or {}).get("expected", "")).replace("'", "").replace(",", "").split(" ")
    return _meant(name, str(given), allowed)


def _meant(name: str, given: str, allowed: Sequence[str]) -> str:
    """'; did you mean x?' for a value that is not allowed, or nothing."""
    meant = OTHER_VALUES.get(name, {}).get(given.lower().replace(" ", "_"))
    return f"; did you mean {meant}?" if meant in allowed else did_you_mean(given, allowed)


def _single_value(section: str, given: Any) -> str:
    """'; did you mean x=VALUE?' for a value where a section is expected, or nothing."""
    field = VALUE_OF_SECTION.get(section)
    if field is None or not isinstance(given, str | int):
        return ""
    meant = OTHER_VALUES.get(field.rpartition(".")[2], {}).get(str(given).lower())
    return f"; did you mean {field}={meant or written(given)}?"


def described(raw: Any) -> str:
    """What is in the place of a mapping, for messages."""
    if raw is None:
        return "nothing"
    kinds = {list: "a list", str: "the text", int: "the number", float: "the number", bool: "the value"}
    return f"{kinds.get(type(raw), type(raw).__name__)} {written(raw)}"


def written(value: Any) -> str:
    """A value as it is written in YAML, with text in quotes; cut when it is long."""
    try:
        is_special = isinstance(value, float) and not math.isfinite(value)
        text = repr(value) if isinstance(value, str) or is_special else to_word(value)
    except Exception:  # a Python object that YAML can't hold
        text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _nearest(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """'; did you mean x?' for an unknown key, or else the keys that are allowed there."""
    path, section = resolve(location[:-1], root)
    here = [".".join((*path, name)) for model in models_in(section) for name in model.model_fields]
    key = nearest_field(str(location[-1]), ".".join(path), here, root)
    if key == ".".join((*path, str(location[-1]))):  # a field of the section, but of another kind
        others = models_in(type_of(".".join(path), root))
        kinds = [tag for model in others if location[-1] in model.model_fields for tag in _tags(model)]
        return f" of this kind; those that have it: {', '.join(kinds)}"
    if key is not None:
        return f"; did you mean {key}?"
    allowed = dict.fromkeys(key.rpartition(".")[2] for key in here)
    return f"; allowed here: {', '.join(allowed)}" if allowed else ""


def nearest_field(
    name: str, section: str = "", here: Sequence[str] = (), root: type[BaseModel] = RunConfig
) -> str | None:
    """Dotted key of the field that is most likely meant by a word that is not a field. One of the same section comes
    first, except that a field of the very name elsewhere is nearer than one that only looks a little alike.

    Args:
        section: Dotted key of the section that the word was given in; "": at the top.
        here: Dotted keys of that section's own fields.
    """
    usual = OTHER_WORDS.get(name) if root is RunConfig else None
    if usual is not None and usual.startswith(f"{section}." if section else ""):
        return usual
    everywhere = sorted(all_fields(root), key=lambda key: key.count("."))
    below = [key for key in everywhere if key.startswith(f"{section}.")] if section else everywhere
    if (meant := OTHER_NAMES.get(name)) and (same := [key for key in here if key.rpartition(".")[2] == meant]):
        return same[0]
    if (close := _closest(name, here, 0.75) or _closest(name, below, 1.0)) is not None:
        return close
    parts = [key for key in here if name in key.rpartition(".")[2].split("_")]
    if section and parts:
        return parts[0]
    if usual is not None:
        return usual
    elsewhere = [key for key in everywhere if not section or key.rpartition(".")[2] not in GENERIC]
    top = [key for key in elsewhere if "." not in key]
    for keys, cutoff in ((elsewhere, 1.0), (here, 0.6), (top, 0.8), (below, 0.8), (elsewhere, 0.8)):
        if (close := _closest(name, keys, cutoff)) is not None:
            return close
    return None


def _closest(name: str, keys: Sequence[str], cutoff: float) -> str | None:
    """The first of the dotted keys whose last part is nearest to a word. `cutoff`: 1.0 takes the word itself only."""
    by_name = {key.rpartition(".")[2]: key for key in reversed(keys)}
    close = difflib.get_close_matches(name, by_name, 1, cutoff=cutoff)
    return by_name[close[0]] if close else None


def resolve(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], Any]:
    """Pydantic's location without the names of union members, and the type of what is there."""
    path, annotation, _ = _walk(location, root)
    return path, annotation


def _union_of(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, ...] | None:
    """Path of the union whose member an error is of; None: of none. Sections that go by `kind` are not meant."""
    return _walk(location, root)[2]


def _walk(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], Any, tuple[str, ...] | None]:
    path: list[str] = []
    annotation: Any = root
    union: tuple[str, ...] | None = None
    for part in location:
        models = models_in(annotation)
        if tagged := [model for model in models if len(models) > 1 and part in _tags(model)]:
            annotation = tagged[0]
            continue
        members = [option for option in options_of(annotation) if option is not type(None)]
        if union != tuple(path) and len(members) > 1 and not models:
            union = tuple(path)  # the part is pydantic's name of a member, such as list[str]
            continue
        path.append(str(part))
        annotation = type_below(annotation, part)
    return path, annotation, union


def _tags(option: type[BaseModel]) -> tuple[Any, ...]:
    """The values of `kind` in a member of a union."""
    return typing.get_args(option.model_fields["kind"].annotation) if "kind" in option.model_fields else ()
