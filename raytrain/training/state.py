"""What a run is, apart from its tensors: a handful of scalars that fit in `state.json`."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from raytrain.config import RunConfig
from raytrain.data.prepared import PreparedStore
from raytrain.tasks.base import Task


@dataclass
class Progress:
    """Where the run stands. Nothing in it depends on the world size."""

    step: int = 0
    """Optimizer steps done; 0 before the first. Epoch and place in it follow from this."""
    skipped_steps: int = 0
    """Steps whose update was dropped for an fp16 overflow."""
    consecutive_skips: int = 0
    """Skipped steps in a row, up to now."""
    samples_seen: int = 0
    """Samples trained on since step 0, all workers."""
    tokens_seen: int = 0
    """Tokens trained on since step 0, all workers, padding excluded."""
    best_value: float | None = None
    """Best value of the metric that picks the best model."""
    best_step: int | None = None
    """Step at which it was reached."""
    evals_without_improvement: int = 0
    """Evaluations since the metric that early stopping watches got better."""
    watched_value: float | None = None
    """Best value that early stopping has seen (by more than min_delta)."""
    is_stopped_early: bool = False
    """Whether early stopping has ended the run."""

    @property
    def updates(self) -> int:
        """Updates that were applied to the weights; the learning rate follows these."""
        return self.step - self.skipped_steps

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**raw)


@dataclass(frozen=True)
class Timetable:
    """When things are due: a pure function of the step."""

    steps_per_epoch: int
    total_steps: int
    eval_every_steps: int | None
    """None: at the end of each epoch. Ignored when there is no validation split."""
    save_every_steps: int
    has_validation: bool

    def place_of(self, step: int) -> tuple[int, int]:
        """(epoch, step in epoch) of the step that follows `step` finished ones."""
        return divmod(step, self.steps_per_epoch)

    def is_evaluation_due(self, step: int) -> bool:
        """Whether the model is evaluated after `step` finished steps."""
        if not self.has_validation or step == 0:
            return False
        return step % (self.eval_every_steps or self.steps_per_epoch) == 0 or step == self.total_steps

    def is_save_due(self, step: int) -> bool:
        """Whether a checkpoint is taken after `step` finished steps."""
        return step > 0 and (step % self.save_every_steps == 0 or step == self.total_steps)

    def next_evaluation(self, step: int) -> int:
        """The first step after `step` at which an evaluation or the end is due."""
        if not self.has_validation:
            return self.total_steps
        every = self.eval_every_steps or self.steps_per_epoch
        return min((step // every + 1) * every, self.total_steps)


def timetable(config: RunConfig, store: PreparedStore) -> Timetable:
    """When things are due in this run."""
    samples, batch = store.manifest.splits["train"].num_samples, config.training.global_batch_size
    steps_per_epoch = samples // batch if config.data.drop_last else -(-samples // batch)
    return Timetable(
        steps_per_epoch=steps_per_epoch,
        total_steps=config.training.max_steps or config.training.epochs * steps_per_epoch,
        eval_every_steps=config.training.eval_every_steps,
        save_every_steps=config.checkpoint.save_every_steps,
        has_validation=store.has_split("validation"),
    )


def best_metric(config: RunConfig, task: Task) -> tuple[str, str]:
    """Metric that picks the best model, and its mode."""
    training = config.training
    if training.best_metric is not None:
        return training.best_metric, "min" if training.best_metric == "loss" else "max"
    if training.early_stopping is not None:
        return training.early_stopping.metric, training.early_stopping.mode
    return task.best_metric, task.best_mode


def is_better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether `value` improves on `best` by more than `min_delta`; anything improves on None, NaN on nothing."""
    if value != value:
        return False
    if best is None:
        return True
    return value > best + min_delta if mode == "max" else value < best - min_delta
