"""The interface through which a run reports its progress, and the reader of the run's files that feeds it."""

from collections.abc import Callable
from typing import Any

from raytrain.storage import Storage
from raytrain.training.records import parse_jsonl


class Observer:
    """Receives the progress of a run; the terminal is one implementation. This base class ignores everything."""

    def phase(self, text: str) -> None:
        """A new phase has started."""

    def note(self, text: str) -> None:
        """Something happened that the user should know."""

    def checked(self, num_files: int, total: int, files_per_s: float) -> None:
        """Progress of the check of the source files, if it takes more than a second or two."""

    def prepared(self, rows: int, total: int | None, rows_per_s: float) -> None:
        """Progress of the preparation: rows so far, rows in total (None: unknown), rows per second."""

    def begin(self, total_steps: int) -> None:
        """Training is about to start."""

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM was received; the workers save a checkpoint and exit."""

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """New lines of metrics.jsonl, evals.jsonl or events.jsonl."""


class Follower:
    """Reads what was added to a run's files since the last call of `look`, and passes it on."""

    def __init__(self, run: Storage, *tell: Callable[[str, list[dict[str, Any]]], None]):
        """`tell`: each takes the name of a file and its new lines; see `Observer.rows`."""
        self._run, self._tell = run, tell
        self._offsets = {name: self._size(name) for name in ("events.jsonl", "metrics.jsonl", "evals.jsonl")}

    def look(self) -> None:
        """Pass on complete new lines; a line that is still being written is left for the next call."""
        for name, offset in self._offsets.items():
            try:
                if self._size(name) <= offset:
                    continue
                with self._run.open_input(name) as file:
                    text = file.read_at(file.size() - offset, offset)
            except OSError:  # temporary storage failure; the display can wait for the next call
                continue
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[name] = offset + len(whole)
            rows = parse_jsonl(whole)
            for tell in self._tell:
                tell(name, rows)

    def _size(self, name: str) -> int:
        return self._run.size_bytes(name) if self._run.exists(name) else 0
