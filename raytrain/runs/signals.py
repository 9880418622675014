"""Ctrl-C, SIGTERM and the end of the terminal: the first one asks the run to save and stop. A second Ctrl-C or SIGTERM
ends it at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self


class StopSignals:
    """Context in which these signals request a clean stop. Enter it after `ray.init`, which installs its own handlers.

    SIGHUP, which the end of a terminal or of an ssh connection sends, is left alone where it is ignored: under `nohup`
    the run continues. Outside the main thread (in a sweep) signals are not handled. The cells of a notebook run in
    the main thread of its kernel, so that an interrupt of the kernel is a Ctrl-C.
    """

    def __init__(self) -> None:
        self._is_caught = False
        self.is_asked = False
        """Whether a signal has asked the run to save and stop."""
        self._is_acknowledged = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def catch(self) -> None:
        """From now on there is something to save, so the first signal only requests a stop. Before, it ends the
        command."""
        self._is_caught = True

    def acknowledge(self, tell: Callable[[], None]) -> None:
        """Call `tell` once after the first signal. To be called from the waiting loop, not from the handler: that may
        have interrupted a half-written line, and streams are not reentrant."""
        if self.is_asked and not self._is_acknowledged:
            self._is_acknowledged = True
            tell()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.is_asked:  # both the shell and the kernel send one
            return
        if not self._is_caught or self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
