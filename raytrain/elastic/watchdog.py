"""Whether the workers of a group still get anything done."""

import math
import time
from collections.abc import Callable

LONGEST_LOOK_S = 10.0  # between two looks, on a busy machine
LONGEST_START_S = 1800.0  # a model may have to come over a slow network
SAY_AFTER_S = 300.0  # seconds without anything done after which the terminal says so


class Watchdog:
    """Of one worker group after the other."""

    def __init__(self, patience_s: float | None, say: Callable[[str], None]):
        """Args:
        patience_s: Seconds without anything done, after which a group hangs; None: never.
        say: Shows the user what is going on.
        """
        self._patience_s, self._say = patience_s, say
        self.begin()

    def begin(self) -> None:
        """A group begins."""
        self._newest_at_s: float | None = None
        self._looked_s, self._silent_s, self._is_said = time.monotonic(), 0.0, False

    def finds_hung(self, alive_at_s: float | None) -> bool:
        """Whether the group hangs. Called about once a second.

        The time is counted here, look by look: while nobody looks, for the machine sleeps or is paused, workers do so
        too.

        Args:
            alive_at_s: When the group last told that something was done, seconds since the epoch; None: it has not
                loaded its state yet, which may take `LONGEST_START_S` at least.
        """
        now_s = time.monotonic()
        self._silent_s += min(now_s - self._looked_s, LONGEST_LOOK_S)
        self._looked_s = now_s
        if alive_at_s != self._newest_at_s:
            self._newest_at_s, self._silent_s, self._is_said = alive_at_s, 0.0, False
        if self._silent_s > SAY_AFTER_S and not self._is_said:
            self._is_said = True
            self._say(f"nothing got done for {SAY_AFTER_S:.0f} s: slow data, slow storage, or a worker that hangs")
        return self._silent_s > self.patience_s(alive_at_s)

    def patience_s(self, alive_at_s: float | None) -> float:
        """Seconds without anything done after which a group hangs; inf: never."""
        if self._patience_s is None:
            return math.inf
        return max(self._patience_s, LONGEST_START_S) if alive_at_s is None else self._patience_s
