"""Terminal output of a watch: one line that is kept up to date, and a line for each event."""

import time
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from raytrain.errors import counted
from raytrain.serving.token import Token
from raytrain.terminal.display import LiveDisplay
from raytrain.terminal.run import PLAIN_EVERY_S
from raytrain.watching.status import Watched, WatchObserver

MOST_LABELS = 6  # of the line; the page has all


class WatchDisplay(LiveDisplay, WatchObserver):
    """Shows a watch."""

    def __init__(self, console: Console | None = None):
        super().__init__(console, refresh_per_second=2)
        self._text, self._told = "", ""
        self._next_line_s = 0.0

    def phase(self, text: str) -> None:
        """Show what is done now."""
        self._text = f"{text} ..."
        if self._live is None:
            self.console.print(self._text, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(text, soft_wrap=True)

    def receiving(self, url: str, token: Token | None) -> None:
        """Where rows are sent to, and with which token."""
        told = "none: only this machine reaches it" if token is None else token.told
        self.note(f"rows     POST {url}")
        self.note(f"token    {told}")

    def alert(self, event: dict[str, Any]) -> None:
        """Print an event."""
        style = "bold red" if event["event"] == "begins" else "green"
        share = f"{event['share']:.1%} of {event['window_texts']:,} texts"
        told = f"{event['time']}  {event['rule']} {event['event']}: {share}"
        self.console.print(Text(told, style=style), soft_wrap=True)

    def watched(self, status: Watched) -> None:
        """Keep the line up to date. Where there is no terminal, a line is printed now and then if it has changed."""
        self._text = line_of(status)
        if self._live is None and self._text != self._told and time.monotonic() >= self._next_line_s:
            self._told, self._next_line_s = self._text, time.monotonic() + PLAIN_EVERY_S
            self.console.print(self._text, soft_wrap=True)

    def _render(self) -> RenderableType:
        return Text(self._text, overflow="ellipsis", no_wrap=True)


def line_of(status: Watched) -> str:
    """The state of a watch in a line."""
    parts = [counted(status.num_texts, "text")]
    if status.window:
        first = sorted(status.shares.items(), key=lambda one: -one[1])[:MOST_LABELS]
        parts.append(f"last {status.window:,}: " + ", ".join(f"{label} {share:.1%}" for label, share in first))
    if status.num_quarantined:
        parts.append(f"{status.num_quarantined:,} quarantined")
    parts += [f"ALERT {rule}" for rule in status.holding]
    parts += [status.webhook] if status.webhook else []
    return " | ".join(parts)


def print_watched(console: Console, status: Watched) -> None:
    """Print the counts and the paths, at the end."""
    console.print(line_of(status), soft_wrap=True)
    console.print(f"page         {status.path}/watch.html", soft_wrap=True)
    console.print(f"predictions  {status.path}/predictions", soft_wrap=True)
    if status.num_quarantined:
        console.print(f"quarantined  {status.path}/quarantined.jsonl", soft_wrap=True)
    if status.num_events:
        events = counted(status.num_events, "event")
        console.print(f"alerts       {status.path}/alerts.jsonl  ({events})", soft_wrap=True)
