"""The interface through which a run reports its progress, and the reader of the run's logs that feeds it."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.training.log_feed import MOST_BYTES, LogLines
from raytrain.training.records import parse_jsonl
from raytrain.training.run_log import EVALS, EVENTS, METRICS
from raytrain.training.segments import read_from, segments_of

# Between two looks for missing lines that a worker has yet to upload.
READ_EVERY_S = 5.0


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
    """Passes on what is added to a run's logs, each line once.

    While a worker group writes, its lines come to `take`, and nothing is read in storage. What did not come is read in
    the files when the group has ended. By then a line that has come is recognized by its position in metrics.jsonl,
    which only the group writes; in the other logs, to which an evaluation beside the training adds, by its text.
    """

    def __init__(self, run: Storage, *tell: Callable[[str, list[dict[str, Any]]], None]):
        """`tell`: each takes the name of a file and its new lines; see `Observer.rows`."""
        self._run, self._tell = run, tell
        # Bytes that were passed on, of metrics.jsonl; of the others, bytes that were read.
        self._known = retrying(self._sizes, f"reading the logs of {run.path_of()}")
        self._told: Counter[tuple[str, int]] = Counter()  # hashes of lines of the others that were not read
        self._is_new_group = True
        self._waiting: deque[LogLines] = deque()  # lines of metrics.jsonl behind a gap
        self._next_read_s = 0.0

    def take(self, lines: Sequence[LogLines]) -> None:
        """Pass on lines of the group that is at work, in its order of writing."""
        for one in lines:
            if one.name == METRICS:
                self._take_metrics(one)
            else:
                self._told.update((one.name, hash(line)) for line in one.data.splitlines())
                self._pass_on(one.name, one.data)

    def look(self) -> None:
        """Pass on what is new in the files: a group has ended, or the command does. A line that is still being written
        is left for the next call."""
        self._waiting.clear()
        for name in self._known:
            self._read(name, is_complete=True)
        self._told.clear()
        self._is_new_group = True

    def _take_metrics(self, one: LogLines) -> None:
        """Pass on lines, unless others are missing before them that are not in storage yet: then they wait."""
        if self._is_new_group:  # lines of an earlier one that were never stored are not in the file
            self._known[METRICS] = min(self._known[METRICS], one.position)
            self._is_new_group = False
        self._waiting.append(one)
        if self._waiting[0].position > self._known[METRICS]:
            self._fill_gap()
        while self._waiting and (begin := self._known[METRICS] - self._waiting[0].position) >= 0:
            data = self._waiting.popleft().data[begin:]  # without what was read in the file
            self._known[METRICS] += len(data)
            self._pass_on(METRICS, data)
        if sum(len(one.data) for one in self._waiting) > MOST_BYTES:
            self._waiting.clear()  # they will be in the file

    def _fill_gap(self) -> None:
        """Read what the feed has dropped, if it is there."""
        if time.monotonic() >= self._next_read_s:
            self._next_read_s = time.monotonic() + READ_EVERY_S
            self._read(METRICS)

    def _read(self, name: str, *, is_complete: bool = False) -> None:
        """Pass on the complete lines of a file that are new. `is_complete`: no worker has lines that are not in it."""
        try:
            size = self._size(name)
            if is_complete:
                self._known[name] = min(self._known[name], size)  # what was lost with a worker is done again
            known = self._known[name]
            if size <= known:
                return
            text = read_from(self._run, name, known)
        except OSError:  # temporary storage failure; the display can wait for the next call
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._known[name] = known + len(whole)
        self._pass_on(name, whole if name == METRICS else self._without_told(name, whole))

    def _without_told(self, name: str, data: bytes) -> bytes:
        new = []
        for line in data.splitlines(keepends=True):
            key = name, hash(line.rstrip(b"\n"))
            if self._told[key] > 0:
                self._told[key] -= 1
            else:
                new.append(line)
        return b"".join(new)

    def _pass_on(self, name: str, data: bytes) -> None:
        if rows := parse_jsonl(data):
            for tell in self._tell:
                tell(name, rows)

    def _sizes(self) -> dict[str, int]:
        return {name: self._size(name) for name in (EVENTS, METRICS, EVALS)}

    def _size(self, name: str) -> int:
        return sum(size for _, size in segments_of(self._run, name))
