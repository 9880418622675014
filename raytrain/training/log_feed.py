"""New lines of a run's logs, on their way from rank 0 to the driver. No Ray.

The files are the record; the lines travel with the status that the driver asks for anyway, so that nobody looks into
storage for them. They carry their position in the file, from which the driver (`runs.observer.Follower`) knows what it
lacks: there were too many lines to keep, or the group has ended before they were fetched. That it reads in the file.
"""

import threading
from collections import deque
from dataclasses import dataclass

# Kept for a driver that does not ask; in one answer, beyond its first line.
MOST_BYTES, ANSWER_BYTES = 4 << 20, 256 << 10


@dataclass(frozen=True)
class LogLines:
    """Lines that were added to a log at once."""

    number: int
    """Counted from 1 in a worker group, over all of its logs."""
    name: str
    """Of the file."""
    position: int
    """Bytes of the file that precede them, if no other process writes to it."""
    data: bytes
    """Complete lines."""


class LogFeed:
    """The newest lines of one worker group, kept on rank 0 until its driver has them."""

    def __init__(self) -> None:
        self._lines: deque[LogLines] = deque()
        self._num_lines = self._num_bytes = 0
        self._lock = threading.Lock()

    def append(self, name: str, position: int, data: bytes) -> None:
        """Called by the training thread, in the order of writing. Arguments as in LogLines."""
        with self._lock:
            self._num_lines += 1
            self._lines.append(LogLines(self._num_lines, name, position, data))
            self._num_bytes += len(data)
            while self._num_bytes > MOST_BYTES:
                self._drop()

    def after(self, number: int) -> list[LogLines]:
        """The next lines for a driver that has all up to `number`; those are dropped. Called by the actor."""
        with self._lock:
            while self._lines and self._lines[0].number <= number:
                self._drop()
            answer: list[LogLines] = []
            num_bytes = 0
            for lines in self._lines:
                num_bytes += len(lines.data)
                if answer and num_bytes > ANSWER_BYTES:
                    break
                answer.append(lines)
            return answer

    def _drop(self) -> None:
        self._num_bytes -= len(self._lines.popleft().data)
