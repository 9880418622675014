"""Which trials are stopped early, or continue from another trial's model: the sections of a space's `scheduler`. No
Ray."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raytrain.config import PositiveInt, Section


class NoScheduler(Section):
    """Every trial trains to its end."""

    kind: Literal["none"]


WHICH_GRACE = (
    "Epochs compare trials after the same share of the data, also where the space varies the batch size; steps do "
    "where it does not"
)


class Stopping(Section):
    """Base of the schedulers that stop trials. A decision is made at the first evaluation at or after its due time."""

    grace_steps: PositiveInt | None = None
    """Steps before a trial may be stopped."""
    grace_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """The same in passes over the training data, such as 0.5: for spaces that vary the batch size, whose trials have
    seen different amounts of data after the same number of steps. Trials are then evaluated every grace_epochs, unless
    training.eval_every_epochs is set."""

    @property
    def grace(self) -> float:
        """The grace period that is set."""
        return self.grace_steps or self.grace_epochs or 0.0

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if self.grace_steps is None and self.grace_epochs is None:
            raise ValueError(
                "scheduler.grace_steps or scheduler.grace_epochs is required: how long a trial trains before it may be "
                f"stopped. {WHICH_GRACE}"
            )
        if self.grace_steps is not None and self.grace_epochs is not None:
            raise ValueError(
                f"scheduler.grace_steps {self.grace_steps} and scheduler.grace_epochs {self.grace_epochs:g} are both "
                f"given: remove one of them. {WHICH_GRACE}"
            )
        return self


class Halving(Stopping):
    """Base of the schedulers that stop the worse trials at rungs, without waiting for the others. The first rung is at
    the end of the grace period."""

    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """At each rung the best one of this many trials continues; each rung lies this many times later than the one
    before."""


class Asha(Halving):
    """Asynchronous successive halving (Li et al., 2020): the worse trials are stopped at each rung, without waiting."""

    kind: Literal["asha"]


class HyperBand(Halving):
    """Asynchronous HyperBand (Li et al., 2020): several brackets of successive halving. The first stops trials as early
    as ASHA, each further one a rung later. For metrics that say little early in the training."""

    kind: Literal["hyperband"]
    brackets: Annotated[int, Field(ge=2, le=8)] = 3
    """Number of brackets. Most trials are in the first one, fewer in each further one."""


class MedianStopping(Stopping):
    """Stops a trial when its best result is below the median of the others' mean results up to that step (Golovin et
    al., 2017)."""

    kind: Literal["median"]
    min_trials: PositiveInt = 3
    """Least number of trials to take the median of."""


class Generational(Section):
    """Base of the schedulers whose trials train in generations: after each one, the worst trials continue from the
    models of the best. A generation ends when all trials have trained it, so that the result does not depend on the
    cluster."""

    every_steps: PositiveInt
    """Steps per generation. The config's training.eval_every_steps must divide it; if that is null, this value is used
    for it, also in place of eval_every_epochs."""
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """Share of the trials that are replaced, and share that replace them; at least one trial each."""


class Population(Generational):
    """Population-based training (Jaderberg et al., 2017): replaced trials get values near those of the best."""

    kind: Literal["pbt"]
    resample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Probability that a value is drawn again; otherwise it moves a fifth up or down, or to a neighbor in a list."""


class Bandits(Generational):
    """Population-based bandits (Parker-Holder et al., 2020): replaced trials get the values for which a Gaussian
    process, fitted to the gains of all trials in each generation, predicts the largest gain. Better than random changes
    for small populations. Numeric ranges only."""

    kind: Literal["pb2"]
    doubt: Annotated[float, Field(ge=0.0)] = 1.0
    """Standard deviations added to the predicted gain: a larger value explores more."""


AnyScheduler = Annotated[
    NoScheduler | Asha | HyperBand | MedianStopping | Population | Bandits,
    Field(discriminator="kind"),
]
