"""Who is told how a sweep goes."""

from raytrain.tuning.trials import TrialRow, TrialTable


class SweepObserver:
    """Who is told how a sweep goes. This one does nothing with it."""

    def phase(self, text: str) -> None:
        """A new phase has begun."""

    def prepared(self, rows: int, total: int | None, rows_per_s: float) -> None:
        """Rows prepared so far."""

    def begin(self, trial_table: TrialTable, num_trials: int, metric: str) -> None:
        """The trials are about to start."""

    def trial(self, row: TrialRow, event: str) -> None:
        """A trial has begun, was evaluated, or is over; `event` in words."""

    def waiting(self, seconds: float) -> None:
        """Since so many seconds there is no room for any trial; told now and then."""

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM has come; the trials save and leave."""
