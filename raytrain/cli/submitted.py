"""Parses the command that `raytrain submit` sends, and reads what its parameters declare."""

import inspect
import typing
from typing import Any

import typer

from raytrain.errors import ConfigError
from raytrain.launch.arguments import Argument, Sent, Submittable


def parse_command(ctx: typer.Context, words: list[str]) -> tuple[Submittable, list[Argument]]:
    """Parse the command that is to be submitted, by its own parser: mistakes are reported as if it ran here.

    Args:
        ctx: The context of `submit`.
        words: The command, after `raytrain`.

    Returns:
        What the command declares, and its arguments that have a value, in the order of their declaration.

    Raises:
        ConfigError: The command can't be submitted, or its arguments exclude each other.
    """
    group: Any = ctx.parent.command if ctx.parent else None
    commands = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    allowed = [name for name, command in commands.items() if hasattr(command.callback, "submittable")]
    if words[0] not in allowed:
        raise ConfigError(f"{words[0]!r} can't be submitted; allowed after --: {', '.join(allowed)}")
    command = commands[words[0]]
    inner = command.make_context(words[0], words[1:], parent=ctx.parent)
    submittable: Submittable = command.callback.submittable
    submittable.check(inner.params)
    return submittable, _arguments(command, inner)


def _arguments(command: Any, inner: Any) -> list[Argument]:
    declared = inspect.signature(command.callback).parameters
    found = []
    for parameter in command.params:
        value = inner.params.get(parameter.name)
        if parameter.name not in declared or value in (None, "", [], ()):
            continue  # --help, or not given and without a default
        sent = sent_as(declared[parameter.name].annotation)
        source = inner.get_parameter_source(parameter.name)
        is_typed = source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
        if not is_typed and sent is Sent.AS_TYPED:
            continue  # the cluster has the same default
        words = [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
        found.append(Argument(parameter.name, value, sent, words, _option(parameter, value)))
    return found


def sent_as(annotation: Any) -> Sent:
    """What the annotation of a parameter declares."""
    return next((one for one in typing.get_args(annotation)[1:] if isinstance(one, Sent)), Sent.AS_TYPED)


def _option(parameter: Any, value: Any) -> str:
    """The name of an option; empty for an argument. A flag with two names has the one that gives the value."""
    if parameter.param_type_name == "argument":
        return ""
    names = parameter.secondary_opts if value is False else parameter.opts
    return str(names[0])
