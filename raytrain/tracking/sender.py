"""Runs a tracker on its own thread, so that training neither fails nor waits because of it."""

import logging
import threading

from raytrain.errors import first_line
from raytrain.tracking.base import Opener, RefusedError, Row, Tracker

logger = logging.getLogger(__name__)

MOST_ROWS = 10_000  # rows queued for a slow tracker before new ones are dropped
ROWS_AT_ONCE = 100
RETRY_S = 30.0  # between two attempts to open a tracker
PREDECESSOR_S = 120.0
_last: dict[str, threading.Thread] = {}  # keyed by tracker and run; the process outlives worker groups


class Sender:
    """Queues rows for a tracker, which is opened with the first one."""

    def __init__(self, name: str, run_path: str, opener: Opener):
        """`name`: name of the tracker, for messages. `run_path`: path of the run's folder."""
        self.name = name
        self._key, self._opener = f"{name} {run_path}", opener
        self._changed = threading.Condition()
        self._rows: list[Row] = []
        self._status: str | None = None  # set when it is to be closed
        self._thread: threading.Thread | None = None
        self._complaint: str | None = None
        self._has_complained = False

    def log(self, row: Row) -> None:
        """Queue a row. Returns at once."""
        if self._thread is None:
            self._start()
        with self._changed:
            if len(self._rows) < MOST_ROWS:
                self._rows.append(row)
                self._changed.notify()
                return
        self._complain(f"takes values too slowly; with {MOST_ROWS:,} steps waiting, values are dropped")

    def close(self, status: str) -> None:
        """Let it send what it has, then end. Returns at once. `status`: see `Tracker.close`."""
        with self._changed:
            self._status = status
            self._changed.notify()

    def wait(self, wait_s: float) -> bool:
        """After `close`, wait until the tracker has ended, for at most `wait_s`; then it continues in the background.

        Returns whether it has ended.
        """
        if self._thread is not None:
            self._thread.join(max(0.0, wait_s))
        has_ended = self._thread is None or not self._thread.is_alive()
        if not has_ended and self._status != "stopped":
            self._complain("has not taken all values by the end of the run")
        return has_ended

    def take_complaint(self) -> str | None:
        """The first problem, once; None before and after."""
        complaint, self._complaint = self._complaint, None
        return complaint

    def _start(self) -> None:
        before = _last.get(self._key)
        self._thread = threading.Thread(target=self._work, args=(before,), name=f"tracker-{self.name}", daemon=True)
        _last[self._key] = self._thread
        self._thread.start()

    def _work(self, before: threading.Thread | None) -> None:
        if before is not None:  # the previous worker group in this process may still be sending
            before.join(PREDECESSOR_S)
        tracker: Tracker | None = None
        while rows := self._next_rows():
            try:
                tracker = tracker or self._open(rows[0])
                if tracker is None:
                    return
                tracker.log(rows)
            except Exception as error:  # these rows are lost; the next ones may succeed
                self._complain(reason_of(error))
        try:
            if tracker is not None:
                tracker.close(self._status or "stopped")
        except Exception as error:
            self._complain(reason_of(error))

    def _next_rows(self) -> list[Row]:
        """Rows to send. Empty: the tracker is to be closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._status is not None)
            rows, self._rows = self._rows[:ROWS_AT_ONCE], self._rows[ROWS_AT_ONCE:]
            return rows

    def _open(self, first: Row) -> Tracker | None:
        """Retry until it opens or is to be closed."""
        while True:
            try:
                return self._opener(first)
            except Exception as error:
                self._complain(reason_of(error))
            with self._changed:
                if self._changed.wait_for(lambda: self._status is not None, RETRY_S):
                    return None

    def _complain(self, text: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            self._complaint = text
            logger.warning("%s: %s", self.name, text)


def reason_of(error: Exception) -> str:
    """An error of a tracker, in one line."""
    if isinstance(error, RefusedError):
        return str(error)
    return f"{type(error).__name__}: {first_line(str(error))}"[:300]
