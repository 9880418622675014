"""Receives the progress of a sweep."""

from raytrain.tuning.trials import TrialRow, TrialTable


class SweepObserver:
    """Receives the progress of a sweep. This base class ignores it."""

    def phase(self, text: str) -> None:
        """A new phase has begun."""

    def checked(self, num_files: int, total: int, files_per_s: float) -> None:
        """Source files checked so far, if that takes more than a second or two."""

    def prepared(self, rows: int, total: int | None, rows_per_s: float) -> None:
        """Rows prepared so far."""

    def begin(self, trial_table: TrialTable, num_trials: int, metric: str) -> None:
        """The trials are about to start."""

    def trial(self, row: TrialRow, event: str) -> None:
        """A trial has started, was evaluated, or has ended. `event`: a description."""

    def waiting(self, seconds: float) -> None:
        """No trial has fit on the cluster for this many seconds. Called from time to time."""

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM has come; the trials save and leave."""
