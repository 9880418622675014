"""The result of a run, and its file summary.json."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from raytrain.errors import ConfigError, FailureCode, did_you_mean
from raytrain.reports.inline import Picture, html_table
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus, StopReason

SUMMARY = "summary.json"


@dataclass(frozen=True)
class RunResult:
    """The result of a run; the contents of summary.json."""

    status: RunStatus
    run_path: str
    step: int = 0
    skipped_steps: int = 0
    skipped_spikes: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metric: str | None = None
    final_metrics: dict[str, float] = field(default_factory=dict)
    """Test metrics of the best model."""
    duration_s: float = 0.0
    """Wall time of this command, seconds."""
    failures: int = 0
    """Worker groups that failed during this command."""
    resizes: int = 0
    """Planned changes of the world size during this command, including those for reclaimed nodes."""
    goodput: float | None = None
    """Share of the run's worker-seconds, over all its commands, that was spent on evaluations and on steps not
    redone."""
    failure_code: FailureCode | None = None
    """The error of a run that has failed."""
    stop_reason: StopReason | None = None
    """Why a run was stopped; it can be resumed."""
    message: str = ""
    """For people."""
    exit_code: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the run reached its end, by all its steps or by early stopping."""
        return self.status.is_done

    def plot(self, figure: str = "loss") -> Picture:
        """A figure of the run's report, which a notebook shows: loss, validation, learning_rate, gradient_norm,
        throughput, world_size, confusion and others.

        Raises ConfigError when the run has no such figure; the message names those that it has.
        """
        from raytrain.reports.curves import read_run
        from raytrain.reports.plots import draw_all  # it imports matplotlib

        drawn = draw_all(read_run(Storage(self.run_path)))
        if figure not in drawn:
            has = ", ".join(drawn) or "none yet"
            raise ConfigError(f"{self.run_path} has no figure {figure!r}; it has: {has}{did_you_mean(figure, drawn)}")
        return Picture(drawn[figure])

    def _repr_html_(self) -> str:
        best = None
        if self.best_value is not None:
            best = f"{self.best_metric} {self.best_value:.4f} at step {self.best_step}"
        rows = {"status": self.status, "step": self.step, "best validation": best, "test": self.final_metrics}
        rows |= {"resizes": self.resizes or None, "failures": self.failures or None, "goodput": self.goodput}
        return html_table({**rows, "run": self.run_path, "message": self.message})


_RESULT = TypeAdapter(RunResult)


def read_result(run: Storage) -> RunResult | None:
    """The result of the run's last command. None while there is none, and for a file of another form: the run is then
    resumed, and at its end the file is written again."""
    try:
        return _RESULT.validate_json(run.read_bytes(SUMMARY))
    except (FileNotFoundError, ValidationError):
        return None
