"""After which steps a snapshot is taken. No Ray, no torch."""

# A snapshot that is overdue for longer than both is reported. Where steps take milliseconds, two intervals are short.
LATE_INTERVALS = 2
LATE_S = 30.0


class SnapshotSchedule:
    """A snapshot that can't be taken when it is due becomes overdue: it is taken after the first step at which it can
    be.

    Every worker calls this with the same arguments and gets the same answer, since a snapshot needs the parts of all.
    """

    def __init__(self, every_steps: int | None):
        """`every_steps`: None: no snapshots."""
        self._every_steps = every_steps
        self._overdue_since: int | None = None
        self._overdue_at_s: float | None = None
        self._is_reported = False

    def is_due(self, step: int, *, saved_step: int, is_possible: bool) -> bool:
        """Whether to take a snapshot now, after `step` steps.

        Args:
            saved_step: Step of the newest checkpoint that is written: older snapshots are of no use.
            is_possible: Whether one can be taken now.
        """
        if self._every_steps is None:
            return False
        if step % self._every_steps == 0 and self._overdue_since is None:
            self._overdue_since = step
        if self._overdue_since is None:
            return False
        newest_due = step - step % self._every_steps
        is_covered = saved_step >= newest_due  # not only the oldest of several that were due meanwhile
        if is_covered or is_possible:
            self._overdue_since, self._overdue_at_s, self._is_reported = None, None, False
        return is_possible and not is_covered

    def late_since(self, step: int, now_s: float) -> int | None:
        """The step since which a snapshot is overdue, if that is too long ago; returned once, until one is taken.

        Args:
            now_s: Seconds of a monotonic clock.
        """
        if self._every_steps is None or self._overdue_since is None or self._is_reported:
            return None
        if self._overdue_at_s is None:
            self._overdue_at_s = now_s
        is_late = step - self._overdue_since > LATE_INTERVALS * self._every_steps
        if not is_late or now_s - self._overdue_at_s < LATE_S:
            return None
        self._is_reported = True
        return self._overdue_since
