"""The help on all fields of a config or a search space. It is made from the schema, so that it is never out of date.

`raytrain configs show --fields` prints these rows, and the reference in docs/ is built from them.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import BaseModel

from raytrain import config as sections
from raytrain.config import RunConfig
from raytrain.config.fields import declared
from raytrain.config.yaml import plain_value, to_word
from raytrain.errors import ConfigError

WIDTH = 100  # columns that a sentence is broken at
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
ANY_KEY = "KEY"  # stands in a dotted path for a key that the user chooses


@dataclass(frozen=True)
class FieldHelp:
    """The help on a field."""

    path: str
    """Dotted path."""
    kind: str
    """Its type and the allowed values."""
    default: str | None
    """As YAML. None for a section that always exists, whose fields have defaults of their own."""
    sentence: str
    """Its meaning."""
    choices: dict[str, str] = field(default_factory=dict)
    """Allowed value -> its meaning, where the meaning is known."""
    condition: str = ""
    """Such as `task.kind token_classification`: the field exists only then."""
    is_required: bool = False
    is_section: bool = False
    may_change: bool = False
    """Whether the value may be changed when a run is resumed."""

    def lines(self) -> list[str]:
        """The lines for the terminal."""
        default = "" if self.default is None else f"; default {self.default}"
        first = f"{self.path}: {self.kind}{'; required' if self.is_required else default}"
        below = [self.sentence, *(f"{value}: {meaning}" for value, meaning in self.choices.items())]
        below += ["May be changed when a run is resumed."] if self.may_change else []
        return [
            f"{first}; for {self.condition}" if self.condition else first,
            *(line for text in below for line in _wrapped(text)),
        ]


def describe_fields(words: Sequence[str] = (), root: type[BaseModel] = RunConfig) -> str:
    """The help on every field of a config: dotted path, type, allowed values, default as YAML, and its meaning.

    Args:
        words: Only fields whose help contains all of these words.

    Raises:
        ConfigError: There is no such field.
    """
    texts = ["\n".join(row.lines()) for row in fields_of(root)]
    found = [text for text in texts if all(word.lower() in " ".join(text.lower().split()) for word in words)]
    if not found:
        raise ConfigError(f"no field has {' and '.join(map(repr, words))} in its name, its values or its sentence")
    return "\n".join(found)


def json_schema(root: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a config or a search space, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root.model_json_schema()}


def fields_of(model: type[BaseModel]) -> Iterator[FieldHelp]:
    """The help on each field of a model and of its sections, in their order."""
    schema = model.model_json_schema()
    return _Fields(model, schema.get("$defs", {})).of(schema, "")


class _Fields:
    """A walk over a JSON schema."""

    def __init__(self, root: type[BaseModel], definitions: dict[str, Any]):
        self._root = root
        self._definitions = definitions

    def of(self, section: dict[str, Any], prefix: str, condition: str = "", skipped: str = "") -> Iterator[FieldHelp]:
        """The rows of a section's fields, and of the sections in it."""
        for name, found in section["properties"].items():
            path, members = f"{prefix}{name}", self._members(found)
            if name == skipped:
                continue
            is_required = name in section.get("required", [])
            if "discriminator" in found:
                yield from self._union(path, found, is_required)
                continue
            subsections = [member for member in members if "properties" in member]
            sentence = found.get("description") or (members[0].get("description") if subsections else "") or ""
            yield FieldHelp(
                path=path,
                kind=self._kind(members),
                default=None if is_required else _default(found, is_section=bool(subsections)),
                sentence=_one_line(sentence),
                choices=self._meanings(found),
                condition=condition,
                is_required=is_required,
                is_section=bool(subsections),
                may_change=not declared(path, self._root).decides_weights,
            )
            for member in [*subsections, *self._listed(members)]:
                yield from self.of(member, f"{path}.", condition)
            values = found.get("additionalProperties")  # true: anything
            if isinstance(values, dict) and "discriminator" in values:
                yield from self._union(f"{path}.{ANY_KEY}", values, is_required=True)

    def _union(self, path: str, found: dict[str, Any], is_required: bool) -> Iterator[FieldHelp]:
        """The rows of a section whose fields depend on one of them, such as task.kind."""
        name, places = found["discriminator"]["propertyName"], found["discriminator"]["mapping"]
        members = {value: self._definitions[place.rpartition("/")[2]] for value, place in places.items()}
        yield FieldHelp(
            path=f"{path}.{name}",
            kind=" | ".join(members),
            default=None if is_required else _written(found["default"][name]),
            sentence=_one_line(found.get("description", "")),
            choices={value: _one_line(member.get("description", "")) for value, member in members.items()},
            is_required=is_required,
        )
        for value, member in members.items():
            yield from self.of(member, f"{path}.", condition=f"{path}.{name} {value}", skipped=name)

    def _members(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """The schemas that a field may have: one, or the members of a union. References are resolved."""
        options = found.get("anyOf") or found.get("oneOf") or [found]
        return [self._definitions[o["$ref"].rpartition("/")[2]] if "$ref" in o else o for o in options]

    def _listed(self, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The sections of a list of sections."""
        lists = [member for member in members if member.get("type") == "array"]
        items = [item for found in lists for item in self._members(found.get("items", {}))]
        return [item for item in items if "properties" in item]

    def _meanings(self, found: dict[str, Any]) -> dict[str, str]:
        """The meanings of the values of an enumeration, from the comments in its class."""
        names = [o["$ref"].rpartition("/")[2] for o in found.get("anyOf") or [found] if "$ref" in o]
        enums = [kind for name in names if inspect.isclass(kind := getattr(sections, name, None))]
        return {value: said for kind in enums if issubclass(kind, Enum) for value, said in _comments(kind).items()}

    def _kind(self, members: list[dict[str, Any]]) -> str:
        return " | ".join(self._word(member) for member in members)

    def _word(self, schema: dict[str, Any]) -> str:
        if "properties" in schema:
            return "a section"
        if "const" in schema or "enum" in schema:
            return " | ".join(map(_written, schema.get("enum") or [schema["const"]]))
        if "type" not in schema:
            return "anything"
        if schema["type"] == "array":
            items = self._kind(self._members(schema.get("items", {})))
            return "list of sections" if items == "a section" else f"list of {items}"
        if schema["type"] == "object":
            return "keys with values"
        bounds = [f"{words} {schema[key]:g}" for key, words in BOUNDS.items() if key in schema]
        return " ".join([WORDS[schema["type"]], " and ".join(bounds)]).strip()


def _comments(kind: type[Enum]) -> dict[str, str]:
    """Value -> the comment behind it in the source."""
    found = re.findall(r'^ +[A-Z0-9_]+ = "([^"]*)"  # (.+)$', inspect.getsource(kind), re.MULTILINE)
    return dict(found)


def _default(found: dict[str, Any], *, is_section: bool) -> str | None:
    value = found.get("default")
    return None if is_section and value is not None else _written(value)  # its fields have defaults of their own


def _written(value: Any) -> str:
    """A value as people write it: `off` without the quotes that a reader of YAML 1.1 would need."""
    return value if isinstance(value, str) and plain_value(value) == value else to_word(value)


def _one_line(sentence: str) -> str:
    return " ".join(sentence.split())


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, initial_indent="    ", subsequent_indent="    ")
