"""Whether the workers of a group still get anything done."""

import time
from collections.abc import Callable

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
        self._seen_s, self._is_said = time.monotonic(), False

    def finds_hung(self, alive_at_s: float | None) -> bool:
        """Whether the group hangs. Called about once a second.

        The time is taken here, by a clock that stands still while the machine sleeps: workers sleep with it.

        Args:
            alive_at_s: When the group last told that something was done, seconds since the epoch; None: it has not
                begun.
        """
        if alive_at_s is None:
            return False
        if alive_at_s != self._newest_at_s:
            self._newest_at_s, self._seen_s, self._is_said = alive_at_s, time.monotonic(), False
        silent_s = time.monotonic() - self._seen_s
        if silent_s > SAY_AFTER_S and not self._is_said:
            self._is_said = True
            self._say(f"nothing got done for {SAY_AFTER_S:.0f} s: slow data, slow storage, or a worker that hangs")
        return self._patience_s is not None and silent_s > self._patience_s
