"""Terminal output of a server."""

from typing import Any

import typer

from raytrain.errors import counted
from raytrain.serving.server import ServeObserver
from raytrain.serving.token import Token
from raytrain.terminal.output import lasting_console


class ServeDisplay(ServeObserver):
    """Prints a line for each thing that happens."""

    def __init__(self) -> None:
        self._console = lasting_console()

    def __enter__(self) -> "ServeDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def phase(self, text: str) -> None:
        """A new phase has started."""
        self._say(text)

    def serving(self, url: str, about: dict[str, Any], token: Token | None) -> None:
        """Where it is, and how to ask it."""
        self._say(f"serving  {_named(about)} with {counted(about['replicas'], 'replica')}")
        self._say(f"predict  POST {url}/predict    how: {url}/docs")
        if about["task"] in ("chat", "preference", "causal_lm") and about["format"] == "hf":
            self._say(f"openai   base_url={url}/v1    model={about['name']}")
        if token is None:
            self._say("token    none: only this machine reaches it")
        else:
            self._say(f"token    {token.told}")

    def updated(self, about: dict[str, Any]) -> None:
        """The new model."""
        self._say(f"updated  {_named(about)}")

    def stopping(self) -> None:
        """What has come is still answered."""
        self._say("stopping: requests that have come are answered; Ctrl-C again ends at once")


def print_update(about: dict[str, Any]) -> None:
    """Print what is served now."""
    typer.echo(f"updated: the server answers with {_named(about)}")


def _named(about: dict[str, Any]) -> str:
    return f"{about['name']} of step {about['step']:,} ({about['hash']})"
