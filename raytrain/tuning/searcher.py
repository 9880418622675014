"""Chooses the next configuration: at random, on a grid, or as Optuna proposes based on earlier results.

A sweep's own files record what was tried, so no state of Tune or Optuna is stored: a resumed sweep assigns the same
configurations to its trials and reports their results again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from ray.tune.search import Searcher

from raytrain.tuning.space.domains import Choice, Domain, LogUniform, QUniform, RandInt, Range
from raytrain.tuning.space.space import Space, TpeSearch, Values, applies, draw_values
from raytrain.tuning.trial import VALUE, TrialPlan


class Proposer(Protocol):
    """Proposes values, one configuration at a time."""

    def propose(self, index: int, known: Values | None) -> Values:
        """Values of the configuration with this ordinal. `known`: its values, if it was tried before; to be
        recorded."""

    def tell(self, index: int, reached: list[float] | None) -> None:
        """Report its result in each objective, negated if lower is better. None: it failed."""


class Drawn:
    """Values that depend only on the space, its seed and the ordinal."""

    def __init__(self, space: Space):
        self._space = space

    def propose(self, index: int, known: Values | None) -> Values:
        """See Proposer."""
        return known or draw_values(self._space, index)

    def tell(self, index: int, reached: list[float] | None) -> None:
        """See Proposer."""


class Tpe:
    """Optuna's TPE."""

    def __init__(self, space: Space, searcher: TpeSearch):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._searcher = space, searcher
        self._study = optuna.create_study(directions=["maximize"] * (1 + len(space.also)))
        self._trials: dict[int, Any] = {}

    def propose(self, index: int, known: Values | None) -> Values:
        """See Proposer."""
        from optuna.samplers import TPESampler

        # Seeded by the ordinal: a resumed sweep must not draw the same values as before.
        seed = int(np.random.default_rng([self._space.seed, index]).integers(2**31))
        self._study.sampler = TPESampler(seed=seed, n_startup_trials=self._searcher.startup_trials)
        if known is not None:
            self._study.enqueue_trial({key: _choice_of(self._space.parameters[key], v) for key, v in known.items()})
        trial = self._trials[index] = self._study.ask()
        values: Values = {}
        for key, domain in self._space.parameters.items():
            if applies(domain, values):
                values[key] = _suggest(trial, key, domain)
        return values

    def tell(self, index: int, reached: list[float] | None) -> None:
        """See Proposer."""
        from optuna.trial import TrialState

        if reached is None:
            self._study.tell(self._trials[index], state=TrialState.FAIL)
        else:
            self._study.tell(self._trials[index], reached)


class SweepSearcher(Searcher):
    """The searcher that Tune asks for trials."""

    def __init__(
        self,
        space: Space,
        known: Sequence[Values],
        make_plan: Callable[[int, Values], TrialPlan],
        may_start: Callable[[], bool],
        reached: Callable[[int], list[float] | None],
    ):
        """Args:
        known: Values of the configurations that were tried before, in order.
        make_plan: Maps the ordinal of a trial and its values to its plan.
        may_start: Whether the budget allows another trial.
        reached: Maps the ordinal of a trial to its best model's value in each objective, negated if lower is better.
            None: it failed, or was never evaluated.
        """
        super().__init__(metric=VALUE, mode="max")
        self._space, self._known, self._make_plan, self._may_start = space, known, make_plan, may_start
        self._reached_by = reached
        tpe = space.searcher if isinstance(space.searcher, TpeSearch) else None
        self._proposer: Proposer = Tpe(space, tpe) if tpe else Drawn(space)
        self._num_trials = 0
        self._values: Values = {}
        self._of_trial: dict[str, int] = {}
        self._results: dict[int, list[list[float] | None]] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial as a Tune config. Repeats of a configuration have the same values."""
        index = self._num_trials
        if index >= self._space.num_trials or (
            index >= len(self._known) * self._space.repeats and not self._may_start()
        ):
            return Searcher.FINISHED
        configuration, repeat = divmod(index, self._space.repeats)
        if repeat == 0:
            known = self._known[configuration] if configuration < len(self._known) else None
            self._values = self._proposer.propose(configuration, known)
        self._num_trials += 1
        self._of_trial[trial_id] = index
        return {"plan": asdict(self._make_plan(index, self._values))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report the mean of a configuration's repeats."""
        index = self._of_trial.pop(trial_id)
        configuration = index // self._space.repeats
        reached = self._results.setdefault(configuration, [])
        reached.append(None if error else self._reached_by(index))
        if len(reached) == self._space.repeats:
            good = [values for values in reached if values is not None]
            means = [sum(column) / len(good) for column in zip(*good, strict=True)]
            self._proposer.tell(configuration, means or None)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its parts for its own way of resuming, which is not used

    def save(self, checkpoint_path: str) -> None:
        """No effect: see the top of this file."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def _suggest(trial: Any, key: str, domain: Domain) -> Any:
    """Draw a value from an Optuna trial."""
    if isinstance(domain, Choice):
        return domain.values[trial.suggest_categorical(key, list(range(len(domain.values))))]
    if isinstance(domain, RandInt):
        return trial.suggest_int(key, domain.low, domain.high)
    if isinstance(domain, QUniform):
        return trial.suggest_float(key, domain.low, domain.high, step=domain.step)
    assert isinstance(domain, Range)
    return trial.suggest_float(key, domain.low, domain.high, log=isinstance(domain, LogUniform))


def _choice_of(domain: Domain, value: Any) -> Any:
    """Optuna's name of a value. Choices are named by their index, since they may be lists or mappings."""
    return domain.values.index(value) if isinstance(domain, Choice) else value
