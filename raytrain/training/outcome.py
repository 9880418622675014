"""How a run ends, or a part of it: a worker group, a command. Frozen and picklable; no Ray, no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from raytrain.errors import FailureCode
from raytrain.training.progress import Progress


class RunStatus(StrEnum):
    """Of a run, as in summary.json."""

    FINISHED = "finished"  # all steps are done
    STOPPED_EARLY = "stopped_early"  # early stopping has ended it
    STOPPED = "stopped"  # it has saved, and can be resumed
    FAILED = "failed"

    @property
    def is_done(self) -> bool:
        """Whether the run reached its end, by all its steps or by early stopping."""
        return self in (RunStatus.FINISHED, RunStatus.STOPPED_EARLY)


class StopReason(StrEnum):
    """Why a run was stopped that can be resumed."""

    REQUESTED = "requested"  # by a signal, or since the sweep ends
    NODE_RECLAIMED = "node_reclaimed"  # that of the command
    PAUSED = "paused"  # Job.until_step is reached: the sweep resumes it


@dataclass(frozen=True)
class Finished:
    """It came to its end, or an evaluation did."""

    progress: Progress = field(default_factory=Progress)
    final_metrics: dict[str, float] = field(default_factory=dict)
    """Of the best model on the test split, or on the split that was to be evaluated."""

    @property
    def status(self) -> RunStatus:
        """FINISHED or STOPPED_EARLY."""
        return RunStatus.STOPPED_EARLY if self.progress.is_stopped_early else RunStatus.FINISHED


@dataclass(frozen=True)
class Stopped:
    """It has saved a checkpoint before its end."""

    progress: Progress = field(default_factory=Progress)
    reason: StopReason = StopReason.REQUESTED
    status = RunStatus.STOPPED


@dataclass(frozen=True)
class Failed:
    """It ended by an error; another worker group would not do better."""

    code: FailureCode
    message: str
    """For people."""
    progress: Progress = field(default_factory=Progress)
    status = RunStatus.FAILED


Outcome = Finished | Stopped | Failed
