"""The group of all commands. It reports an interruption, and answers an unknown option with the field that is meant."""

import difflib
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from raytrain.errors import ConfigError


class Commands(TyperGroup):
    """The commands. One that is interrupted ends with a message."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Typer itself would turn Ctrl-C into a silent exit."""
        words = [*ctx._protected_args, *ctx.args]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            leave("interrupted; nothing runs in the background")
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":  # Typer carries its own copy of click, and exports no such class
                _explain_unknown_option(error, words)
            raise


def leave(text: str) -> NoReturn:
    """End an interrupted command with a message and exit code 1."""
    typer.secho(text, err=True, fg="yellow")
    raise typer.Exit(1)


def _explain_unknown_option(error: Any, words: list[str]) -> None:
    """Raises ConfigError for an unknown option that is a field of the config: fields are given as `key=value`.

    Args:
        error: click's NoSuchOption.
        words: The command line, after `raytrain`.
    """
    from raytrain.config.fields import all_fields
    from raytrain.config.mistakes import nearest_field
    from raytrain.config.other_words import OTHER_WORDS

    command = error.ctx.command
    if "overrides" not in {parameter.name for parameter in command.params}:
        return
    at = next((i for i, word in enumerate(words) if word.startswith(error.option_name)), len(words))
    option, equals, value = words[at].partition("=") if at < len(words) else (error.option_name, "", "")
    if not equals:
        value = next((word for word in words[at + 1 : at + 2] if not word.startswith("-")), "VALUE")
    word = option.lstrip("-").replace("-", "_")
    section, _, name = word.rpartition(".")
    field = word if word in all_fields() else nearest_field(name, section)
    options = [text for parameter in command.params for text in getattr(parameter, "opts", []) if text[:2] == "--"]
    is_namesake = field is not None and (name in OTHER_WORDS or field.rpartition(".")[2] == name)
    if not is_namesake and difflib.get_close_matches(option, options, 1):
        return  # a mistyped option: click suggests the right one
    hint = f": {field}={value}" if field else "; `raytrain configs show --fields WORD` finds a field"
    raise ConfigError(
        f"{command.name} has no option {option}. Fields of the config are given without dashes, as key=value{hint}"
    )
