"""What commands declare for `raytrain submit`, in the place where they are declared (see `cli`).

A parameter declares how it is sent to the cluster, in its annotation:

    config: Annotated[str, typer.Argument(metavar="CONFIG"), Sent.CONFIG]

A parameter without such a declaration is sent as it was typed. The command is marked by `can_be_submitted`. `request`
needs nothing else, so that a new option or command can be submitted without a change there. This module is light:
`raytrain --help` imports it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

Command = TypeVar("Command", bound=Callable[..., Any])


class Sent(Enum):
    """How a parameter is sent to the cluster."""

    AS_TYPED = auto()
    """It means the same on every machine."""
    CONFIG = auto()
    """A config. It is validated here with the overrides, and packed as a file."""
    OVERRIDES = auto()
    """Overrides of the config. They are packed with it; those of a RUN or SWEEP are sent as typed."""
    SPACE = auto()
    """A search space. It is validated here with the config, and packed as a file."""
    RUN = auto()
    """The folder of the run that the command works on, with its config: an absolute path, or a URI."""
    SWEEP = auto()
    """The folder of a sweep whose winner the command trains, with its config: an absolute path, or a URI. When it is
    given, what was typed for CONFIG is one more override."""
    FOLDER = auto()
    """Any other folder: an absolute path, or a URI."""
    NEVER = auto()
    """It says where to find a cluster. A submitted command runs in the cluster, so the option is refused."""


@dataclass(frozen=True)
class Submittable:
    """What a command declares about itself."""

    needs_folder_alone: bool
    """Whether it trains in the folder of its run: a second such job would refuse to start."""
    check: Callable[[Mapping[str, Any]], None]
    """Checks the combination of the parameters (by name). Raises ConfigError."""


@dataclass(frozen=True)
class Argument:
    """An argument or option of a command that was typed."""

    name: str
    """The name of the function's parameter."""
    value: Any
    sent: Sent
    words: list[str]
    """The value as words of a command line, without the option's name."""
    option: str = ""
    """The option's name, such as --trials; empty for an argument."""


def can_be_submitted(
    *, needs_folder_alone: bool = False, check: Callable[[Mapping[str, Any]], None] = lambda parameters: None
) -> Callable[[Command], Command]:
    """Decorator of a command that `raytrain submit` may send to a cluster. For the parameters see `Submittable`."""

    def mark(command: Command) -> Command:
        command.submittable = Submittable(needs_folder_alone, check)  # type: ignore[attr-defined]
        return command

    return mark
