"""The state of a run apart from its tensors: a few scalars that fit in `state.json`."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from raytrain.config import EarlyStoppingConfig, RunConfig
from raytrain.errors import ConfigError, did_you_mean
from raytrain.tasks.base import Mode, Task, TaskState

LOSS_NOISE = 1e-4
"""The loss of a model may differ by this much between numbers of workers, which must not decide which model is kept."""


@dataclass
class Progress:
    """How far the run has come. Nothing in it depends on the world size."""

    step: int = 0
    """Optimizer steps done; 0 before the first. The epoch and the position in it follow from this."""
    skipped_steps: int = 0
    """Steps whose update was skipped because of an fp16 overflow."""
    consecutive_skips: int = 0
    """Consecutive skipped steps up to now."""
    skipped_spikes: int = 0
    """Steps whose update was left out because of a spike of the loss (`training.skip_loss_spikes`)."""
    consecutive_spikes: int = 0
    """Consecutive ones up to now."""
    recent_losses: list[float] = field(default_factory=list)
    """Mean losses of the last applied steps, by which spikes are told; [] without the option."""
    samples_seen: int = 0
    """Samples trained on since step 0, all workers."""
    tokens_seen: int = 0
    """Tokens trained on since step 0, all workers, padding excluded."""
    best_metric: str | None = None
    """Metric that picks the best model, as of the last evaluation."""
    best_value: float | None = None
    """Its best value so far."""
    best_step: int | None = None
    """Step at which it was reached."""
    best_loss: float | None = None
    """The validation loss at that step; null: not known."""
    evals_without_improvement: int = 0
    """Evaluations since the metric that early stopping watches last improved."""
    watched_metric: str | None = None
    """Metric that early stopping watches, as of the last evaluation."""
    watched_value: float | None = None
    """Best value so far for early stopping (improvements by more than min_delta)."""
    is_stopped_early: bool = False
    """Whether early stopping has ended the run."""

    @property
    def updates(self) -> int:
        """Updates that were applied to the weights; the learning rate depends on these."""
        return self.step - self.skipped_steps - self.skipped_spikes

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**raw)


def best_metric(config: RunConfig, task: Task, state: TaskState | None) -> tuple[str, str]:
    """The metric that picks the best model, and its mode. Raises ConfigError when the task has no such metric.

    Args:
        state: The task's state, learned from the data; None: not known yet.
    """
    training = config.training
    if training.best_metric is not None:
        return training.best_metric, mode_of(training.best_metric, task, "training.best_metric")
    if training.early_stopping is not None:
        return training.early_stopping.metric, watched_mode(training.early_stopping, task)
    metric = task.best_metric if state is None else task.best_metric_for(state)
    return metric, task.modes[metric]


def watched_mode(stopping: EarlyStoppingConfig, task: Task) -> Mode:
    """Whether a smaller or a larger value is better for early stopping. Raises ConfigError when the task has no such
    metric, or the config says the opposite."""
    mode = mode_of(stopping.metric, task, "training.early_stopping.metric")
    if stopping.mode is not None and stopping.mode != mode:
        raise ConfigError(
            f"training.early_stopping.mode is {stopping.mode}, but a {'larger' if mode == 'min' else 'smaller'} "
            f"{stopping.metric} is worse; leave mode out"
        )
    return mode


def mode_of(metric: str, task: Task, option: str) -> Mode:
    """Whether a smaller or a larger value is better. Raises ConfigError when the task has no such metric."""
    if metric not in task.modes:
        raise ConfigError(
            f"{option} {metric!r} is not a metric of this task; allowed: {', '.join(task.modes)}"
            f"{did_you_mean(metric, task.modes)}"
        )
    return task.modes[metric]


def wins_tie(value: float, loss: float, progress: Progress) -> bool:
    """Whether an evaluation that is as good as the best one has a lower loss, by more than LOSS_NOISE."""
    if progress.best_loss is None or value != progress.best_value:
        return False
    return loss < progress.best_loss - LOSS_NOISE


def is_better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether `value` is better than `best` by more than `min_delta`. Any number is better than None; NaN and infinity
    are never better."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if mode == "max" else value < best - min_delta
