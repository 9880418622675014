"""Detects whether the workers of a group still make progress."""

import time
from collections.abc import Callable
from typing import Any

LONGEST_LOOK_S = 10.0  # between two checks, on a busy machine
LONGEST_START_S = 1800.0  # a model may have to come over a slow network
SAY_AFTER_S = 300.0  # seconds without progress after which the terminal says so


class Watchdog:
    """Watches one worker group after the other."""

    def __init__(self, patience_s: float | None, say: Callable[[str], None]):
        """Args:
        patience_s: Seconds without progress after which a group counts as hung; None: never.
        say: Shows a message to the user.
        """
        self._patience_s, self._say = patience_s, say
        self.begin()

    def begin(self) -> None:
        """A group begins."""
        self._newest: Any = None
        self._looked_s, self._silent_s, self._is_said = time.monotonic(), 0.0, False

    def finds_hung(self, signs: Any) -> str | None:
        """Why the group hangs, or None. Called about once a second.

        The time is counted here, check by check: while nothing checks, because the machine sleeps or is suspended, the
        workers are suspended too.

        Args:
            signs: Signs of life: a value that changes whenever there is progress. None: the group has not loaded its
                state yet, which may take at least `LONGEST_START_S`.
        """
        now_s = time.monotonic()
        self._silent_s += min(now_s - self._looked_s, LONGEST_LOOK_S)
        self._looked_s = now_s
        if signs != self._newest:
            self._newest, self._silent_s, self._is_said = signs, 0.0, False
        if self._silent_s > SAY_AFTER_S and not self._is_said:
            self._is_said = True
            self._say(f"no progress for {SAY_AFTER_S:.0f} s: slow data, slow storage, or a worker that hangs")
        if self._patience_s is None:
            return None
        patience_s = max(self._patience_s, LONGEST_START_S) if signs is None else self._patience_s
        if self._silent_s <= patience_s:
            return None
        if signs is None:
            return f"their start made no progress for {patience_s:g} s (workers.stall_timeout_s, or more)"
        return f"no step, evaluated batch or save for workers.stall_timeout_s {patience_s:g} s"
