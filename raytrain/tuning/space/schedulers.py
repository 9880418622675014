"""Which trials are stopped early, or go on from another's model: the sections of a space's `scheduler`. No Ray."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raytrain.config import PositiveInt, Section


class NoScheduler(Section):
    """Every trial trains to its end."""

    kind: Literal["none"]


class Stopping(Section):
    """Base of those that stop trials. A decision falls at the first evaluation at or after its time."""

    grace_steps: PositiveInt | None = None
    """Steps before a trial may be stopped."""
    grace_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """The same in passes over the training data, such as 0.5: for spaces that vary the batch, whose trials have seen
    different amounts of data after the same steps. Evaluations then come after each grace_epochs, unless
    training.eval_every_epochs says something else."""

    @property
    def grace(self) -> float:
        """The one that is given."""
        return self.grace_steps or self.grace_epochs or 0.0

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.grace_steps is None) == (self.grace_epochs is None):
            raise ValueError("give exactly one of scheduler.grace_steps and scheduler.grace_epochs")
        return self


class Halving(Stopping):
    """Base of those that stop the worse trials at rungs, without waiting for the others. The first rung is at the end
    of the grace."""

    reduction_factor: Annotated[float, Field(gt=1.0)] = 3.0
    """Of so many trials at a rung the best one goes on; rungs lie so many times apart."""


class Asha(Halving):
    """Asynchronous successive halving (Li et al., 2020): at each rung the worse trials are stopped, without waiting."""

    kind: Literal["asha"]


class HyperBand(Halving):
    """Asynchronous HyperBand (Li et al., 2020): several brackets of successive halving, of which the first stops
    trials as early as ASHA, and each further one a rung later. For metrics that say little at first."""

    kind: Literal["hyperband"]
    brackets: Annotated[int, Field(ge=2, le=8)] = 3
    """Most trials are in the first one, fewer in each further one."""


class MedianStopping(Stopping):
    """A trial stops when its best result is below the median of the others' mean results up to that step (Golovin et
    al., 2017)."""

    kind: Literal["median"]
    min_trials: PositiveInt = 3
    """Trials that the median is taken of, at least."""


class Generational(Section):
    """Base of those in which all trials train a generation, and then the worst go on from the models of the best. All
    are waited for, so that what comes out does not depend on the cluster."""

    every_steps: PositiveInt
    """Steps of a generation. The config's training.eval_every_steps must divide it; null there means the same,
    also instead of eval_every_epochs."""
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """Share of the trials that is replaced, and share of those that replace them; at least one."""


class Population(Generational):
    """Population-based training (Jaderberg et al., 2017): with values near those of the best."""

    kind: Literal["pbt"]
    resample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Probability that a value is drawn anew; otherwise it moves by a fifth up or down, or to a neighbour in a list."""


class Bandits(Generational):
    """Population-based bandits (Parker-Holder et al., 2020): with values from which a Gaussian process expects most,
    given what all trials have gained in each generation. Better than chance for small populations. Numbers only."""

    kind: Literal["pb2"]
    doubt: Annotated[float, Field(ge=0.0)] = 1.0
    """Standard deviations that are added to what is expected: more tries more."""


AnyScheduler = Annotated[
    NoScheduler | Asha | HyperBand | MedianStopping | Population | Bandits,
    Field(discriminator="kind"),
]
