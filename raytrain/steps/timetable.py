"""At which steps evaluations, saves and the end of the run are due: pure functions of the step. No Ray, no torch."""

import math
from dataclasses import dataclass

from raytrain.config import RunConfig

ROUNDING = 1e-6  # steps; absorbs floating-point error, so that 3 x 1/3 epochs make one


@dataclass(frozen=True)
class Timetable:
    """Decides what is due at a step."""

    steps_per_epoch: int
    total_steps: int
    eval_every_steps: float | None
    """May be fractional: an evaluation is then due at the first step after each multiple. None: at the end of each
    epoch. Ignored when there is no validation split."""
    save_every_steps: int
    has_validation: bool
    pause_at: int | None = None
    """The run saves and stops after this many steps. None: at its end."""

    def place_of(self, step: int) -> tuple[int, int]:
        """(epoch, step in epoch) of the next step after `step` finished ones."""
        return divmod(step, self.steps_per_epoch)

    def is_evaluation_due(self, step: int) -> bool:
        """Whether the model is evaluated after `step` finished steps."""
        if not self.has_validation or step == 0:
            return False
        return self._num_evaluations(step) > self._num_evaluations(step - 1) or step == self.total_steps

    def is_save_due(self, step: int) -> bool:
        """Whether a checkpoint is saved after `step` finished steps."""
        return step > 0 and (step % self.save_every_steps == 0 or step == self.total_steps)

    def is_pause_due(self, step: int) -> bool:
        """Whether the run stops after `step` finished steps, to be resumed later."""
        return self.pause_at is not None and step >= self.pause_at

    def next_evaluation(self, step: int) -> int:
        """The first step after `step` at which an evaluation or the end is due."""
        if not self.has_validation:
            return self.total_steps
        return min(self._due(self._num_evaluations(step) + 1), self.total_steps)

    def _due(self, number: int) -> int:
        """The step after which the evaluation with this ordinal (from 1) is due, ignoring the one at the run's end."""
        every = self.eval_every_steps or self.steps_per_epoch
        return number * every if isinstance(every, int) else math.ceil(number * every - ROUNDING)

    def _num_evaluations(self, step: int) -> int:
        """Evaluations that were due in the first `step` steps, ignoring the one at the end of the run."""
        number = int(step // (self.eval_every_steps or self.steps_per_epoch)) + 1
        while number > 0 and self._due(number) > step:
            number -= 1
        return number


def make_timetable(
    config: RunConfig, num_samples: int, *, has_validation: bool, pause_at: int | None = None
) -> Timetable:
    """The timetable of a run whose training data has `num_samples` samples."""
    num_samples = config.data.samples_per_epoch(num_samples)
    batch = config.training.global_batch_size
    steps_per_epoch = num_samples // batch if config.data.drop_last else -(-num_samples // batch)
    part = config.training.eval_every_epochs
    return Timetable(
        steps_per_epoch=steps_per_epoch,
        total_steps=config.training.max_steps or config.training.epochs * steps_per_epoch,
        eval_every_steps=part * steps_per_epoch if part else config.training.eval_every_steps,
        save_every_steps=config.checkpoint.save_every_steps,
        has_validation=has_validation,
        pause_at=pause_at,
    )
