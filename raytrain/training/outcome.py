"""The outcome of a run, or of a part of it: a worker group, a command. Frozen and picklable; no Ray, no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from raytrain.errors import FailureCode
from raytrain.redaction import redact
from raytrain.training.progress import Progress


class RunStatus(StrEnum):
    """The status of a run, as in summary.json."""

    FINISHED = "finished"  # all steps are done
    STOPPED_EARLY = "stopped_early"  # ended by early stopping
    STOPPED = "stopped"  # it has saved and can be resumed
    FAILED = "failed"

    @property
    def is_done(self) -> bool:
        """Whether the run reached its end, by all its steps or by early stopping."""
        return self in (RunStatus.FINISHED, RunStatus.STOPPED_EARLY)


class StopReason(StrEnum):
    """Why a run was stopped; it can be resumed."""

    REQUESTED = "requested"  # by a signal, or because the sweep ends
    NODE_RECLAIMED = "node_reclaimed"  # the node of the command
    PAUSED = "paused"  # Job.until_step was reached: the sweep resumes it
    CALLBACK = "callback"  # a callback of the user's returned StopTraining


@dataclass(frozen=True)
class Finished:
    """The training, or an evaluation, reached its end."""

    progress: Progress = field(default_factory=Progress)
    final_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the best model on the test split, or on the split to be evaluated."""
    failures: int = 0
    """Worker groups of the command that have failed; the driver fills it in, here and below."""

    @property
    def status(self) -> RunStatus:
        """FINISHED or STOPPED_EARLY."""
        return RunStatus.STOPPED_EARLY if self.progress.is_stopped_early else RunStatus.FINISHED


@dataclass(frozen=True)
class Stopped:
    """The run has saved a checkpoint before its end."""

    progress: Progress = field(default_factory=Progress)
    reason: StopReason = StopReason.REQUESTED
    failures: int = 0
    detail: str = ""
    """More about the reason, for people."""
    status = RunStatus.STOPPED

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", redact(self.detail))  # a callback may have written it


@dataclass(frozen=True)
class Failed:
    """The run ended with an error that another worker group would hit again."""

    code: FailureCode
    message: str
    """For people, without credentials."""
    progress: Progress = field(default_factory=Progress)
    failures: int = 0
    status = RunStatus.FAILED

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redact(self.message))  # it may quote another program


Outcome = Finished | Stopped | Failed
