"""A live display, and the parts of its bar: counts, times and rates."""

import os
import time
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from raytrain.terminal.notebook import NotebookLive
from raytrain.terminal.output import make_console

WIDE = 160  # characters of a line of a table in a file


class LiveDisplay:
    """Keeps the output of `_render` up to date on a terminal or in a notebook. Elsewhere subclasses print plain lines
    instead."""

    def __init__(self, console: Console | None, refresh_per_second: float):
        self.console = console or make_console()
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = WIDE  # a file has no width: tables are not cut
        self._refresh_per_second = refresh_per_second
        self._live: Live | NotebookLive | None = None
        self.is_live = self.console.is_terminal or self.console.is_jupyter
        """Whether there is a live display; lines that it shows are not printed."""

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self.console,
                refresh_per_second=self._refresh_per_second,
                transient=True,
            )
            self._live.start()
        elif self.console.is_jupyter:
            self._live = NotebookLive(self._render, self.console.width, 2 / self._refresh_per_second)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _render(self) -> RenderableType:
        raise NotImplementedError


class CountColumn(ProgressColumn):
    """The amount done and the total. Empty until something is counted."""

    def render(self, task: Task) -> Text:
        """Such as 1,200/8,454, or 1,200 while the total is unknown."""
        if task.total is None and not task.completed:
            return Text("")
        total = f"/{task.total:,.0f}" if task.total is not None else ""
        return Text(f"{task.completed:,.0f}{total}", style="progress.download")


class ElapsedColumn(ProgressColumn):
    """Time since the bar was first shown. A new phase does not reset it."""

    def __init__(self) -> None:
        super().__init__()
        self._began_s = time.monotonic()

    def render(self, task: Task) -> Text:
        """Such as elapsed 0:00:31."""
        return Text(f"elapsed {_clock(time.monotonic() - self._began_s)}", style="progress.elapsed")


class RemainingColumn(ProgressColumn):
    """Estimated time until the end of training. Empty in other phases, whose length is unknown."""

    def render(self, task: Task) -> Text:
        """Such as remaining 0:04:07."""
        remaining_s = task.fields.get("remaining_s")
        text = "" if remaining_s is None else f"remaining {_clock(remaining_s)}"
        return Text(text, style="progress.remaining")


def _clock(seconds: float) -> str:
    """Such as 0:04:07."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_bar(console: Console) -> Progress:
    """A bar with the amount done, the elapsed time and the remaining time (the field `remaining_s` of its task)."""
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        CountColumn(),
        ElapsedColumn(),
        RemainingColumn(),
        console=console,
    )


class Rate:
    """Samples or steps per second over the last lines of metrics.jsonl."""

    def __init__(self, keep: int = 50):
        self._keep = keep
        self._points: list[tuple[float, int]] = []

    def add(self, count: int) -> None:
        """Record that `count` samples or steps are done now."""
        self._points = [*self._points[-self._keep :], (time.monotonic(), count)]

    def per_s(self) -> float | None:
        """The rate; None until there are two points in time to compare."""
        if not self._points:
            return None
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None
