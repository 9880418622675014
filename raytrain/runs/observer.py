"""Who is told how a run goes, and what reads a run's files for it."""

from collections.abc import Callable
from typing import Any

from raytrain.storage import Storage
from raytrain.training.records import parse_jsonl


class Observer:
    """Who is told how a run goes; the terminal is one. This one does nothing with it."""

    def phase(self, text: str) -> None:
        """A new phase has begun."""

    def note(self, text: str) -> None:
        """Something happened that the user wants to know."""

    def prepared(self, rows: int, total: int | None, rows_per_s: float) -> None:
        """Rows prepared so far."""

    def begin(self, total_steps: int) -> None:
        """Training is about to start."""

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM has come; the workers save a checkpoint and leave."""

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """New lines of metrics.jsonl, evals.jsonl or events.jsonl."""


class Follower:
    """Reads what has been added to a run's files since the last look, and passes it on."""

    def __init__(self, run: Storage, *tell: Callable[[str, list[dict[str, Any]]], None]):
        """`tell`: each takes the name of a file and its new lines; see `Observer.rows`."""
        self._run, self._tell = run, tell
        self._offsets = {name: self._size(name) for name in ("events.jsonl", "metrics.jsonl", "evals.jsonl")}

    def look(self) -> None:
        """Pass on whole new lines; a line that is still being written waits for the next look."""
        for name, offset in self._offsets.items():
            try:
                if self._size(name) <= offset:
                    continue
                with self._run.open_input(name) as file:
                    text = file.read_at(file.size() - offset, offset)
            except OSError:  # storage hiccups; the display can wait for the next look
                continue
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[name] = offset + len(whole)
            rows = parse_jsonl(whole)
            for tell in self._tell:
                tell(name, rows)

    def _size(self, name: str) -> int:
        return self._run.size_bytes(name) if self._run.exists(name) else 0
