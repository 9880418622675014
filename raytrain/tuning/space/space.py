"""What a sweep tries: a YAML file of dotted config keys with their ranges, a scheduler, a searcher and a budget.

Everything is checked against the run config before anything starts: a key that is not a config field, or a range whose
ends are not valid configs, is reported as a mistake of the space. No Ray, no torch.
"""

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from raytrain.config import Mark, PositiveInt, RunConfig, Section
from raytrain.config import shipped as assets
from raytrain.config.fields import declared, marked
from raytrain.config.io import parse_config, refuse_credentials
from raytrain.config.mistakes import describe_all, described
from raytrain.config.yaml import read_yaml, to_word
from raytrain.errors import ConfigError
from raytrain.tuning.space.domains import AnyDomain, Domain, Grid, Range
from raytrain.tuning.space.schedulers import AnyScheduler, Bandits, Generational, NoScheduler, Stopping

Values = dict[str, Any]
"""Dotted config key -> value: what a trial changes in the sweep's config."""


class RandomSearch(Section):
    """Values are drawn independently for each trial."""

    kind: Literal["random"]


class TpeSearch(Section):
    """Optuna's tree-structured Parzen estimator: values near those of good trials are more likely."""

    kind: Literal["tpe"]
    startup_trials: PositiveInt = 10
    """Number of trials that are drawn at random first."""


AnySearcher = Annotated[RandomSearch | TpeSearch, Field(discriminator="kind")]


NUM_PARAMETERS = "num_parameters"


class Objective(Section):
    """One more metric to optimize."""

    metric: str
    """Metric of the validation split, or num_parameters: the number of parameters of the model."""
    mode: Literal["min", "max"] | None = None
    """Whether smaller or larger is better; null: min for loss and num_parameters, max for all others."""

    @property
    def better(self) -> str:
        """`mode`, or its default if it is null."""
        return self.mode or ("min" if self.metric in ("loss", NUM_PARAMETERS) else "max")

    @property
    def sign(self) -> float:
        """+1.0 to maximize, -1.0 to minimize; multiplied by it, larger is always better."""
        return 1.0 if self.better == "max" else -1.0


class Budget(Section):
    """Limits after which no new trial is started. Running trials continue to their end, except after `hours`, which
    stops them."""

    trials: Annotated[PositiveInt, Mark.MID_RUN] = 16
    """Configurations to try. With grids, the number of draws for each combination of their values is this divided by
    the number of combinations, rounded up."""
    steps: Annotated[PositiveInt | None, Mark.MID_RUN] = None
    """Optimizer steps of all trials together; null: no limit."""
    hours: Annotated[float | None, Field(gt=0.0), Mark.MID_RUN] = None
    """Wall time; null: no limit."""


class Space(Section):
    """A search space, as its YAML file defines it."""

    metric: str | None = None
    """Metric of the validation split that trials are compared by; null: the one that picks the config's best model."""
    mode: Literal["min", "max"] | None = None
    """Whether smaller or larger is better; null: min for loss, max for all others."""
    also: list[Objective] = []
    """Further metrics that count as much as `metric`. A trial's values are those of its best model; the sweep shows the
    Pareto front: the trials that no other one beats in everything. Needs a scheduler that stops no trial."""
    parameters: Annotated[dict[str, AnyDomain], Field(min_length=1)]
    """Dotted config keys and their ranges."""
    scheduler: AnyScheduler = NoScheduler(kind="none")
    """Which trials are stopped early, or continue from another trial's model."""
    searcher: AnySearcher = RandomSearch(kind="random")
    """How values are chosen."""
    budget: Budget = Budget()
    """How much is tried."""
    repeats: PositiveInt = 1
    """Runs of each configuration, each with its own seed."""
    max_failed: Annotated[float, Field(ge=0.0, le=1.0), Mark.MID_RUN] = 0.5
    """Share of failed trials above which the sweep ends, once four trials are over."""
    seed: int = 0
    """Seed of the drawn values: the same space and seed give the same configurations."""

    def with_trials(self, trials: int | None) -> "Space":
        """The space with a budget of this many configurations; None: with its own."""
        if trials is None:
            return self
        return self.model_copy(update={"budget": self.budget.model_copy(update={"trials": trials})})

    @property
    def grids(self) -> dict[str, Grid]:
        """The parameters of kind grid."""
        return {key: domain for key, domain in self.parameters.items() if isinstance(domain, Grid)}

    @property
    def num_configurations(self) -> int:
        """Number of configurations to try, without repeats."""
        combinations = math.prod(len(grid.values) for grid in self.grids.values())
        return combinations * max(1, -(-self.budget.trials // combinations)) if self.grids else self.budget.trials

    @property
    def num_trials(self) -> int:
        """Number of runs, repeats included."""
        return self.num_configurations * self.repeats

    @model_validator(mode="after")
    def _conditions_are_known(self) -> Self:
        seen: set[str] = set()
        for key, domain in self.parameters.items():
            for other in domain.when:
                if other not in seen:
                    raise ValueError(f"parameters.{key}.when names {other}, which does not precede it in the space")
            seen.add(key)
        if isinstance(self.searcher, TpeSearch) and self.grids:
            raise ValueError("searcher.kind tpe chooses values by itself: use kind choice instead of grid")
        return self

    @model_validator(mode="after")
    def _nobody_is_stopped_by_one_metric(self) -> Self:
        if self.also and not isinstance(self.scheduler, NoScheduler):
            raise ValueError(f"scheduler.kind {self.scheduler.kind} compares by one metric; with also, it must be none")
        names = [objective.metric for objective in self.also]
        if len({self.metric, *names}) <= len(names):
            raise ValueError(f"also repeats a metric, or names that of the space: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _population_can_change(self) -> Self:
        if not isinstance(self.scheduler, Generational):
            return self
        kind = f"scheduler.kind {self.scheduler.kind}"
        for key, domain in self.parameters.items():
            if isinstance(self.scheduler, Bandits) and (domain.when or not isinstance(domain, Range)):
                raise ValueError(f"{kind} needs numeric ranges, and parameters.{key} is not one: use kind pbt")
            if Mark.MID_RUN not in declared(key).marks:
                allowed = ", ".join(marked(Mark.MID_RUN))
                raise ValueError(f"{kind} can't change {key} in the middle of a run; it can change: {allowed}")
        if self.repeats > 1 or self.searcher.kind != "random" or self.num_configurations < 2:
            raise ValueError(f"{kind} needs searcher.kind random, repeats 1, and budget.trials of 2 or more")
        return self


def draw_values(space: Space, index: int) -> Values:
    """Values of the configuration with this index: a pure function of the space, its seed and the index."""
    rng = np.random.default_rng([space.seed, index])
    combination = dict(zip(space.grids, _combination(space, index), strict=True))
    drawn: Values = {}
    for key, domain in space.parameters.items():
        value = combination[key] if isinstance(domain, Grid) else domain.draw(rng)  # drawn even when it is not used
        if applies(domain, drawn):
            drawn[key] = value
    return drawn


def applies(domain: Domain, chosen: Values) -> bool:
    """Whether the values chosen so far meet a parameter's conditions."""
    return all(other in chosen and chosen[other] in allowed for other, allowed in domain.when.items())


def overrides_of(values: Values) -> list[str]:
    """The values as `key=value` words."""
    return [f"{key}={to_word(value)}" for key, value in values.items()]


def short(key: str) -> str:
    """The last word of a key, with the one before if it says too little."""
    words = key.split(".")
    return " ".join(words[-2:]) if words[-1] in ("kind", "path") else words[-1]


def in_words(values: Values) -> str:
    """The short name and value of each key."""
    return "  ".join(
        f"{short(key)} {f'{value:.3g}' if isinstance(value, float) else value}" for key, value in values.items()
    )


def load_space(space: str) -> Space:
    """The space of a file, or the shipped one of that name. Raises ConfigError naming each mistake."""
    path = assets.find_space(space)
    return parse_space(read_yaml(path), path)


def parse_space(raw: Any, origin: str) -> Space:
    """Validate a raw mapping. `origin`: its source, for messages. Raises ConfigError naming each mistake."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: expected `key: value` lines, found {described(raw)}")
    refuse_credentials(raw)
    try:
        return Space.model_validate(raw)
    except ValidationError as error:
        lines = [line for _, line in describe_all(error.errors(), Space)]
        raise ConfigError("\n".join([f"{origin} has {len(lines)} mistake{'s' * (len(lines) > 1)}:", *lines])) from None


def space_name(space: str) -> str:
    """The name that a sweep's folder gets from its space: the file's name without its ending."""
    return Path(space).name.removesuffix(".yaml").removesuffix(".yml")


def check_space(space: Space, raw: dict[str, Any], overrides: list[str]) -> RunConfig:
    """Check the ends of every range against the config. Returns the config without the space's values.

    Args:
        raw: The config as read from its file.
        overrides: Overrides of the command line. None of them may be a key of the space.

    Raises:
        ConfigError: Naming each key, the value and what is wrong with it.
    """
    config = parse_config(raw, overrides, origin="the config")
    mistakes = [
        f"{key} is a parameter of the space and is given on the command line too; leave one out"
        for key in space.parameters
        if any(override.partition("=")[0] == key for override in overrides)
    ]
    if isinstance(space.scheduler, Stopping) and space.scheduler.grace_epochs:
        mistakes += [
            f"parameters.{key}: scheduler.grace_epochs needs it to be the same for all trials; set it in the config"
            for key in space.parameters
            if key.startswith("training.eval_every_")
        ]
    mistakes += [
        f"parameters.{key}: it must be the same for all trials of a sweep; set it in the config"
        for key in space.parameters
        if Mark.SHARED in declared(key).marks
    ]
    for key, domain in space.parameters.items():
        for value in domain.ends():
            try:
                parse_config(raw, [*overrides, *_needed(space, domain), *overrides_of({key: value})])
            except ConfigError as error:
                reason = re.sub(r" \(override [^)]*\)", "", without_headline(str(error)))
                mistakes.append(f"parameters.{key}: {value!r} is not possible: {reason.removeprefix(f'{key}: ')}")
                break
    if isinstance(space.scheduler, Generational):
        config = _evaluated_each(space.scheduler.every_steps, config, mistakes)
    if isinstance(space.scheduler, Stopping) and space.scheduler.grace_epochs:
        config = _evaluated_in_epochs(space.scheduler.grace_epochs, config, mistakes)
    if mistakes:
        lines = [f"  {mistake}" for mistake in mistakes]
        raise ConfigError("\n".join([f"the space has {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}:", *lines]))
    return config


def _evaluated_each(every_steps: int, config: RunConfig, mistakes: list[str]) -> RunConfig:
    """The config with an evaluation at the end of each generation, unless it already sets the interval."""
    eval_every_steps = config.training.eval_every_steps
    if eval_every_steps is None:  # also instead of eval_every_epochs: generations are counted in steps
        cadence = ["training.eval_every_epochs=null", f"training.eval_every_steps={every_steps}"]
        return parse_config(config.model_dump(mode="json", exclude_unset=True), cadence)
    if every_steps % eval_every_steps:
        mistakes.append(
            f"scheduler.every_steps {every_steps} is not a multiple of training.eval_every_steps {eval_every_steps}; a "
            "generation ends with an evaluation"
        )
    return config


def _evaluated_in_epochs(grace_epochs: float, config: RunConfig, mistakes: list[str]) -> RunConfig:
    """The config with an evaluation at the end of the grace period, unless it already sets the interval."""
    training = config.training
    if config.data.validation is None:
        mistakes.append("data.validation: a sweep compares trials on the validation split; name one")
        return config
    if training.eval_every_steps is not None:
        mistakes.append(
            f"training.eval_every_steps {training.eval_every_steps}: trials are compared after the same share of the "
            "data (scheduler.grace_epochs). Set training.eval_every_steps=null: evaluations then follow every "
            f"{grace_epochs:g} epochs; training.eval_every_epochs sets another interval. Or replace "
            "scheduler.grace_epochs by scheduler.grace_steps"
        )
    if training.eval_every_steps is None and training.eval_every_epochs is None:
        return parse_config(
            config.model_dump(mode="json", exclude_unset=True), [f"training.eval_every_epochs={grace_epochs}"]
        )
    return config


def _needed(space: Space, domain: Domain) -> Iterator[str]:
    """What must also be set where a parameter applies: its conditions, and theirs in turn."""
    for other, allowed in domain.when.items():
        yield from _needed(space, space.parameters[other])
        yield from overrides_of({other: allowed[0]})


def _combination(space: Space, index: int) -> tuple[Any, ...]:
    """One value of each grid; the last grid varies fastest."""
    combinations = itertools.product(*(grid.values for grid in space.grids.values()))
    number = index % math.prod(len(grid.values) for grid in space.grids.values())
    return next(itertools.islice(combinations, number, None))


def without_headline(text: str) -> str:
    """A list of mistakes without its first line."""
    _, newline, rest = text.partition("\n")
    return rest.replace("\n", "; ").strip() if newline else text
