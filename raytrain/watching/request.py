"""What is to be watched, checked, and what a watch needs of a source."""

import os
from dataclasses import dataclass
from typing import Any, Protocol

from raytrain.errors import ConfigError
from raytrain.watching.files import Files, Line
from raytrain.watching.rules import MOST_TEXTS
from raytrain.watching.webhook import check_url


@dataclass(frozen=True)
class WatchRequest:
    """What to watch, and how it is told."""

    source: str
    out: str
    alerts: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    webhook: str | None = None
    window: int = 500
    """Texts of which the terminal and the page show the shares."""
    threshold: float | None = None
    """With several labels per text, the probability from which on a label is given."""
    interval_s: float = 1.0
    """Between two looks for new texts."""
    is_once: bool = False
    """End when all that is there has been read."""
    token_file: str | None = None
    """Where texts arrive by HTTP: the file with the token of clients."""


class Source(Protocol):
    """Where the texts come from."""

    name: str
    """By which a watch knows that it continues with the same one."""
    notes: list[str]
    """What the user should know, which the watch takes."""

    def lines(self, most: int, *, is_last: bool = False) -> list[Line]:
        """Up to `most` lines that were not given yet."""
        ...

    def to_json(self) -> list[dict[str, Any]]:
        """How far it was read."""
        ...

    def committed(self) -> None:
        """What was read is counted."""
        ...


def checked_path(request: WatchRequest) -> str:
    """The source, a folder or a file. Raises ConfigError."""
    if "://" in request.source:
        raise ConfigError(
            f"{request.source}: a local folder or file can be watched, or http://HOST:PORT; copy the files to one"
        )
    source = os.path.abspath(os.path.expanduser(request.source))
    _check_apart(source, os.path.abspath(os.path.expanduser(request.out)))
    Files(source)
    return source


def check_request(request: WatchRequest) -> None:
    """Raises ConfigError for options that can't be used."""
    if not 0 < request.window <= MOST_TEXTS:
        raise ConfigError(f"--window {request.window}: give a number of texts from 1 to {MOST_TEXTS:,}")
    if request.is_once and request.source.startswith(("http://", "https://")):
        raise ConfigError("--once is for files: texts may arrive by HTTP at any time")
    if request.webhook is not None:
        check_url(request.webhook)
        if not request.alerts:
            raise ConfigError("--webhook is told of alerts: give --alert too")


def _check_apart(source: str, out: str) -> None:
    """What is written would be read."""
    if source == out or os.path.dirname(source) == out:
        raise ConfigError(f"--out {out}: this is where the texts come from; give another folder")
