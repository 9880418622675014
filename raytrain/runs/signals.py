"""Ctrl-C and SIGTERM: the first asks the run to save and leave, the second ends it at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self


class StopSignals:
    """Context in which both signals ask for a clean stop. To be entered after `ray.init`, which sets its own handlers.

    Outside the main thread (in a notebook's or a sweep's thread) signals are left alone.
    """

    def __init__(self) -> None:
        self._is_caught = False
        self.is_asked = False
        """Whether a signal has asked the run to save and leave."""
        self._is_acknowledged = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def catch(self) -> None:
        """From now on there is something to save, and the first signal only asks. Before, a signal ends the command."""
        self._is_caught = True

    def acknowledge(self, tell: Callable[[], None]) -> None:
        """Call `tell` once when the first signal has come. For the loop that waits, not for the handler: that may
        have interrupted a half-written line, and a stream is not to be entered twice."""
        if self.is_asked and not self._is_acknowledged:
            self._is_acknowledged = True
            tell()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_caught or self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
