"""The result of a run, and its file summary.json."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from raytrain.errors import FailureCode
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


_RESULT = TypeAdapter(RunResult)


def read_result(run: Storage) -> RunResult | None:
    """The result of the run's last command. None while there is none, and for a file of another form: the run is then
    resumed, and at its end the file is written again."""
    try:
        return _RESULT.validate_json(run.read_bytes(SUMMARY))
    except (FileNotFoundError, ValidationError):
        return None
