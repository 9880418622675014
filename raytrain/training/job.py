"""The job that the driver sends to the workers."""

import itertools
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# Seconds from the cause of a change of the workers to the new group's first step, in this order.
PHASES = ("detect_s", "save_s", "wait_s", "regroup_s", "load_s", "first_step_s")


# The file that Ray Train is given as a checkpoint; it names the manifest of the real one.
POINTER = "raytrain_checkpoint.json"


class TransitionKind(StrEnum):
    """Why a worker group was started; also the kind of the event in events.jsonl."""

    BEGIN = "begin"  # the command was given
    RESIZE = "resize"
    RECLAIM = "reclaim"
    FAILURE = "failure"


@dataclass(frozen=True)
class Transition:
    """Why a worker group was started, and when the events that led to it happened. Times are seconds since the
    epoch."""

    kind: TransitionKind
    cause: str
    """In words."""
    world_size_before: int
    detected_at_s: float
    """When the driver noticed the cause; for a failure, when it last heard from the group."""
    asked_at_s: float | None
    """When the previous group was asked to save and leave; None: it was not asked."""
    left_at_s: float
    """When the previous group had ended."""
    started_at_s: float
    """When there was room for this group and its start began."""

    @classmethod
    def asked(cls, kind: TransitionKind, cause: str, world_size: int, seen_at_s: float | None = None) -> "Transition":
        """A group of this size is asked to leave now. `seen_at_s`: when the cause was noticed; None: now."""
        now_s = time.time()
        return cls(kind, cause, world_size, now_s if seen_at_s is None else seen_at_s, now_s, now_s, now_s)

    @property
    def left_by_failure(self) -> bool:
        """Whether the previous group ended without being asked to."""
        return self.kind is not TransitionKind.BEGIN and self.asked_at_s is None

    def phases(self, entered_at_s: float, loaded_at_s: float, first_step_at_s: float) -> dict[str, float]:
        """Seconds of each phase from the cause to the new group's first step.

        Args:
            entered_at_s: When the new group's workers had formed their process group.
            loaded_at_s: When model and state were loaded.
            first_step_at_s: When its first step was done.
        """
        asked_at_s = self.left_at_s if self.asked_at_s is None else self.asked_at_s
        left_at_s, started_at_s = self.left_at_s, self.started_at_s
        moments = (self.detected_at_s, asked_at_s, left_at_s, started_at_s, entered_at_s, loaded_at_s, first_step_at_s)
        lengths = (end_s - begin_s for begin_s, end_s in itertools.pairwise(moments))
        return {name: round(max(0.0, length_s), 3) for name, length_s in zip(PHASES, lengths, strict=True)}


@dataclass(frozen=True)
class Job:
    """Plain JSON, validated by the command."""

    config: dict[str, Any]
    run_root: str
    prepared_root: str
    use_gpu: bool
    fencing_token: int | None = None
    """Of this group; see `raytrain.checkpoint.fence`. None for an evaluation, which may run beside the training."""
    transition: dict[str, Any] | None = None
    """Fields of the Transition that led to this group; None for an evaluation."""
    snapshot: dict[str, Any] | None = None
    """Fields of the Snapshot to resume from; None: from the newest checkpoint."""
    evaluate_split: str | None = None
    """Evaluate the run's best model on this split instead of training."""
    until_step: int | None = None
    """Save and stop at this step of the run; None: continue to its end."""
