"""The state of a watch, and who is told of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raytrain.runs.observer import Observer
from raytrain.serving.token import Token

PAGE_EVERY_S = 5.0
"""Between two versions of the page."""


@dataclass(frozen=True)
class Watched:
    """The state of a watch."""

    path: str
    """Its folder."""
    num_texts: int
    num_quarantined: int
    window: int
    """Texts that `shares` is of."""
    shares: dict[str, float]
    """Of each label among the last texts."""
    holding: list[str]
    """The rules that hold now."""
    num_events: int
    webhook: str = ""
    """What is wrong with it."""


class WatchObserver(Observer):
    """What a watch tells; this base class ignores it."""

    def receiving(self, url: str, token: Token | None) -> None:
        """Rows can be sent there from now on."""

    def watched(self, status: Watched) -> None:
        """Some texts were predicted, or nothing has happened for a while."""

    def alert(self, event: dict[str, Any]) -> None:
        """A rule begins or ends to hold: a line of alerts.jsonl."""


class AlertCalls(WatchObserver):
    """Calls a function with each event."""

    def __init__(self, on_alert: Callable[[dict[str, Any]], None] | None):
        self._on_alert = on_alert

    def alert(self, event: dict[str, Any]) -> None:
        """Hand on an event. Raises what the function raises."""
        if self._on_alert is not None:
            self._on_alert(event)
