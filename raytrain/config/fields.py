"""Looks up, by dotted key, what a field of a config declares and its type."""

import functools
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from raytrain.config import Affects, Mark, RunConfig


@dataclass(frozen=True)
class Declared:
    """What a field declares besides its type."""

    affects: Affects | None
    """None: it declares nothing. A section declares nothing where its fields do it."""
    marks: frozenset[Mark]

    @property
    def decides_weights(self) -> bool:
        """Whether another value makes the run a different experiment."""
        return self.affects is None or bool(self.affects & (Affects.DATA | Affects.RESULT))

    @property
    def decides_step_time(self) -> bool:
        """Whether another value changes the duration of a step."""
        return self.affects is not None and Affects.SPEED in self.affects


UNKNOWN = Declared(None, frozenset())


def declared(key: str, root: type[BaseModel] = RunConfig) -> Declared:
    """What the field of a dotted key declares. A key below a field that is a mapping, such as
    `training.deepspeed.zero_optimization`, is that field's. `UNKNOWN` if there is no such field."""
    known = _declarations(root)
    while key not in known and "." in key:
        key = key.rpartition(".")[0]
    return known.get(key, UNKNOWN)


def all_fields(root: type[BaseModel] = RunConfig) -> list[str]:
    """Dotted keys of every field, sections included, in their order."""
    return list(_declarations(root))


def is_section(key: str, root: type[BaseModel] = RunConfig) -> bool:
    """Whether a field is a section that is always there, so that only the fields in it have values."""
    return bool(models_in(type_of(key, root))) and type(None) not in options_of(type_of(key, root))


def marked(mark: Mark, root: type[BaseModel] = RunConfig) -> list[str]:
    """Dotted keys of the fields with a mark."""
    return [key for key, found in _declarations(root).items() if mark in found.marks]


def with_paths(value: Any, change: Callable[[str], str]) -> Any:
    """The value of a field that names paths, as JSON, with each path changed: one, a list of them, or a list of
    sections that have a `path`. None stays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_paths(one, change) for one in value]
    return {**value, "path": with_paths(value.get("path"), change)} if isinstance(value, dict) else value


def affecting(what: Affects) -> list[str]:
    """Dotted keys of a run config's fields that affect this."""
    return [key for key, found in _declarations(RunConfig).items() if found.affects and what in found.affects]


@functools.cache
def _declarations(root: type[BaseModel]) -> dict[str, Declared]:
    return dict(_walk(root, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Declared]]:
    for name, field in section.model_fields.items():
        affects = next((one for one in field.metadata if isinstance(one, Affects)), None)
        yield f"{prefix}{name}", Declared(affects, frozenset(one for one in field.metadata if isinstance(one, Mark)))
        for model in models_in(field.annotation):
            yield from _walk(model, f"{prefix}{name}.")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type such as `X | None` allows."""
    return [one for one in options_of(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]


def options_of(annotation: Any) -> list[Any]:
    """The members of a union, without what they are annotated with; of any other type itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return options_of(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [one for argument in typing.get_args(annotation) for one in options_of(argument)]
    return [annotation]


def type_of(key: str, root: type[BaseModel] = RunConfig) -> Any:
    """Type of the field of a dotted key; Any: nothing is known of it."""
    return functools.reduce(type_below, key.split("."), root)


def type_below(annotation: Any, name: str | int) -> Any:
    """Type of what a section, mapping or list holds under a name; Any: nothing is known of it. Of sections that differ
    in it, such as those of the kinds of a task, a union."""
    found = []
    for option in options_of(annotation):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is list and isinstance(name, int):
            return arguments[0]
        if origin is dict and isinstance(name, str):
            return arguments[1]
        if isinstance(option, type) and issubclass(option, BaseModel) and name in option.model_fields:
            found.append(option.model_fields[str(name)].annotation)
    return typing.Union[tuple(found)] if found else Any  # noqa: UP007  # of types that are known at run time


def of_kind(annotation: Any, kind: str) -> Any:
    """Of a union of sections the one whose field `kind` is this; the union when there is none."""
    for model in models_in(annotation):
        field = model.model_fields.get("kind")
        if field is not None and kind in typing.get_args(field.annotation):
            return model
    return annotation
