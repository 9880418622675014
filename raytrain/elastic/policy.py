"""When a running group should scale up, and how often a run may fail: pure decisions. No Ray, no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from raytrain.errors import FailureCode

# Nodes that are being added arrive one after the other; the run waits for the last one, but not indefinitely.
LONGEST_SETTLING = 6.0  # times workers.grow_delay_s
VAIN_PAUSE_S = 300.0
BACK_OFF_S = (0.0, 1.0, 5.0, 15.0, 30.0, 60.0)


@dataclass
class ScaleUpPolicy:
    """Scale up when there is capacity for more workers, when it has settled, and when it pays off.

    A resize costs every worker some seconds, which the run measures itself.
    """

    delay_s: float
    """Seconds for which the capacity must not change."""
    payback: float
    """Least ratio of the time saved to the cost of the resize."""
    _possible: int = 0
    _since_s: float = 0.0
    _changed_at_s: float = 0.0
    _not_before_s: float = 0.0

    def was_in_vain(self, now_s: float) -> None:
        """A scale-up failed because the capacity was gone. Further attempts are suppressed for VAIN_PAUSE_S."""
        self._not_before_s = now_s + VAIN_PAUSE_S

    def reset(self) -> None:
        """A new group begins: earlier observations are obsolete."""
        self._possible = 0

    def should_grow(self, now_s: float, current: int, possible: int, saved_s: float, cost_s: float) -> bool:
        """Whether to scale up from `current` to `possible` workers now.

        Args:
            now_s: Time of any monotonic clock.
            saved_s: Training time that the larger size would save.
            cost_s: Cost of a resize in seconds.
        """
        if possible <= current:
            self._possible = 0
            return False
        if possible != self._possible:
            if not self._possible:
                self._since_s = now_s
            self._possible, self._changed_at_s = possible, now_s
        has_settled = now_s - self._changed_at_s >= self.delay_s
        has_waited = now_s - self._since_s >= LONGEST_SETTLING * self.delay_s
        is_allowed = now_s >= self._not_before_s
        is_worth_it = saved_s > 0 and saved_s >= self.payback * cost_s
        return is_allowed and (has_settled or has_waited) and is_worth_it

    def saw(self, now_s: float) -> None:
        """Capacity was seen, and the scale-up has already begun."""
        self._since_s = now_s

    @property
    def seen_at_s(self) -> float:
        """When the capacity was first seen."""
        return self._since_s


class FailureKind(StrEnum):
    """Why a worker group ended prematurely."""

    RECLAIM = "reclaim"  # a node with notice was taken away; not charged to the failure budget
    NODE_LOST = "node_lost"  # a node was lost without notice; not charged either, but may not repeat at one step
    CRASH = "crash"  # a worker's process died
    ERROR = "error"  # a worker raised
    HANG = "hang"  # no progress for workers.stall_timeout_s
    NO_START = "no_start"  # the group did not start in time: its capacity was gone; not charged


# How often each kind may happen at the same step before it is no longer taken for an accident. The order of samples is
# fixed, so an error that samples cause happens there again.
AT_A_STEP = {FailureKind.ERROR: 2, FailureKind.HANG: 2, FailureKind.CRASH: 3, FailureKind.NODE_LOST: 6}
FORGET_AFTER_S = 3600.0
# Consecutive failures of any kind but reclaims, without a new step between them.
MOST_IN_A_ROW = 20


@dataclass(frozen=True)
class Failure:
    """The failure of one worker group."""

    kind: FailureKind
    step: int | None
    """The step that it was working on, from 1; None before it entered its loop."""
    message: str
    code: FailureCode = FailureCode.WORKER_ERROR


@dataclass
class FaultBudget:
    """How many failures a run may have, and how long to wait after one."""

    max_failures: int
    _spent_at_s: list[float] = field(default_factory=list)
    """When the failures that count happened, by a monotonic clock."""
    bad_step: int | None = None
    """The step that failed repeatedly, once `charge` has given up because of it."""
    given_up_for: Failure | None = None
    """The failure that `charge` quotes when it gives up."""
    _in_a_row: int = 0
    _last_step: int | None = None
    _last: Failure | None = None
    _seen: dict[tuple[FailureKind, int], list[Failure]] = field(default_factory=dict)

    @property
    def spent(self) -> int:
        """Failures that count against `max_failures`."""
        return len(self._spent_at_s)

    def charge(self, failure: Failure, now_s: float) -> str | None:
        """Count a failure. Returns why the run should give up, or None when it may continue.

        `now_s`: time of any monotonic clock. A failure counts for FORGET_AFTER_S, and until there is a new step after
        it: a run of a month may have more unrelated crashes than one of an hour, but workers that hang for half an hour
        before each failure must not do so all day.
        """
        self._last = failure
        has_progressed = failure.step is not None and (self._last_step is None or failure.step > self._last_step)
        if has_progressed:
            self._spent_at_s = [at_s for at_s in self._spent_at_s if now_s - at_s < FORGET_AFTER_S]
        self._in_a_row = 1 if has_progressed else self._in_a_row + 1
        self._last_step = failure.step if has_progressed else self._last_step
        if failure.kind is FailureKind.RECLAIM:
            return None
        if failure.kind in (FailureKind.CRASH, FailureKind.ERROR, FailureKind.HANG):
            self._spent_at_s.append(now_s)
        if failure.step is not None:
            alike = self._seen.setdefault((failure.kind, failure.step), [])
            alike.append(failure)
            if len(alike) >= AT_A_STEP.get(failure.kind, MOST_IN_A_ROW):
                self.bad_step, self.given_up_for = failure.step, alike[0]
                return f"step {failure.step} failed {len(alike)} times. The first time: {alike[0].message}"
        self.given_up_for = failure
        if self.spent > self.max_failures:
            limit = f"workers.max_failures is {self.max_failures}"
            since = "within an hour" if now_s - self._spent_at_s[0] < FORGET_AFTER_S else "without a new step"
            return f"{self.spent} failure(s) {since}, and {limit}. The last: {failure.message}"
        if self._in_a_row >= MOST_IN_A_ROW:
            return f"{self._in_a_row} failures in a row without a new step. The last: {failure.message}"
        return None

    def take_back(self) -> None:
        """The last failure, a crash, turned out not to be one."""
        self._spent_at_s, self.bad_step = self._spent_at_s[:-1], None
        self._in_a_row = max(0, self._in_a_row - 1)
        if self._last is not None and self._last.step is not None:
            self._seen[self._last.kind, self._last.step].remove(self._last)
        self._last = None

    @property
    def wait_s(self) -> float:
        """Seconds to wait before the next group: increasing while failures continue without a new step."""
        return BACK_OFF_S[min(self._in_a_row, len(BACK_OFF_S)) - 1] if self._in_a_row else 0.0
