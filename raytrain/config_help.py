"""What every field of the config means, for people: made from the schema, so that it can't fall behind."""

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from raytrain.config import RunConfig

WIDTH = 100  # columns that a sentence is broken at
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}


def describe_fields() -> str:
    """Every field of the config: its dotted path, type, allowed values and default as YAML, and below its sentence."""
    schema = RunConfig.model_json_schema()
    return "\n".join(line for field in _Fields(schema["$defs"]).of(schema, "") for line in field)


class _Fields:
    """A walk over a JSON schema."""

    def __init__(self, definitions: dict[str, Any]):
        self._definitions = definitions

    def of(self, section: dict[str, Any], prefix: str, skipped: str = "") -> Iterator[list[str]]:
        """The lines of each field of a section, and of the sections in it."""
        for name, field in section["properties"].items():
            path, members = f"{prefix}{name}", self._members(field)
            if name == skipped:
                continue
            if "discriminator" in field:
                yield from self._union(path, field["discriminator"], members)
                continue
            is_required = name in section.get("required", [])
            sections = [member for member in members if "properties" in member]
            sentence = field.get("description") or (members[0].get("description") if sections else "") or ""
            yield [f"{path}: {self._kind(members)}{_default(field, is_required, bool(sections))}", *_wrapped(sentence)]
            for member in sections:
                yield from self.of(member, f"{path}.")

    def _union(self, path: str, discriminator: dict[str, Any], members: list[dict[str, Any]]) -> Iterator[list[str]]:
        """A section whose fields depend on one of them, such as task.kind."""
        name, choices = discriminator["propertyName"], list(discriminator["mapping"])
        sentences = [f"{c}: {m['description']}" for c, m in zip(choices, members, strict=True)]
        yield [f"{path}.{name}: {' | '.join(choices)}; required", *(line for s in sentences for line in _wrapped(s))]
        for choice, member in zip(choices, members, strict=True):
            for first, *rest in self.of(member, f"{path}.", skipped=name):
                yield [f"{first}; for {path}.{name} {choice}", *rest]

    def _members(self, field: dict[str, Any]) -> list[dict[str, Any]]:
        """What a field may be: one schema, or those of a union, each looked up."""
        options = field.get("anyOf") or field.get("oneOf") or [field]
        return [self._definitions[o["$ref"].rpartition("/")[2]] if "$ref" in o else o for o in options]

    def _kind(self, members: list[dict[str, Any]]) -> str:
        return " | ".join(self._word(member) for member in members)

    def _word(self, schema: dict[str, Any]) -> str:
        if "properties" in schema:
            return "a section"
        if "const" in schema or "enum" in schema:
            return " | ".join(map(_yaml, schema.get("enum") or [schema["const"]]))
        if schema["type"] == "array":
            return f"list of {self._kind(self._members(schema['items']))}"
        if schema["type"] == "object":
            return "keys with values"
        bounds = [f"{words} {schema[key]:g}" for key, words in BOUNDS.items() if key in schema]
        return " ".join([WORDS[schema["type"]], " and ".join(bounds)]).strip()


def _default(field: dict[str, Any], is_required: bool, is_section: bool) -> str:
    if is_required:
        return "; required"
    value = field.get("default")
    return "" if is_section and value is not None else f"; default {_yaml(value)}"  # its own fields say theirs


def _yaml(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(" ".join(sentence.split()), WIDTH, initial_indent="    ", subsequent_indent="    ")
