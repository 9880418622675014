"""Runs the trials with Ray Tune."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

from raytrain.runs.signals import StopSignals
from raytrain.training.records import EPOCHS
from raytrain.tuning.callback import SweepCallback, trial_name
from raytrain.tuning.pool.broker import Broker
from raytrain.tuning.searcher import SweepSearcher
from raytrain.tuning.space.schedulers import Halving, HyperBand, MedianStopping, Stopping
from raytrain.tuning.space.space import Space
from raytrain.tuning.state import Sweep
from raytrain.tuning.trial import SETTLED, STEP, VALUE, TrialPlan

TRIAL_RESOURCES = {"node:__internal_head__": 0.001}
"""The process of a trial's controller needs no resources, but Tune requires some. It runs on the cluster's head."""


def run_trials(
    sweep: Sweep, broker: Broker, at_once: int, signals: StopSignals, check_lease: Callable[[], None]
) -> None:
    """Run the trials with Tune until they end.

    Tune's own files go to a temporary folder: a sweep resumes from its own files, see `trial`.

    Args:
        at_once: Trials that may be started and not ended. The pool decides how many of them have workers.
    """
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    begun = list(sweep.trial_table.rows.values())[:: sweep.space.repeats]
    known = [{key: row.values[key] for key in sweep.space.parameters if key in row.values} for row in begun]
    searcher = SweepSearcher(sweep.space, known, sweep.plan_of(broker.name), sweep.may_start, sweep.reached)
    local = tempfile.mkdtemp(prefix="raytrain-tune-")
    try:
        tune.Tuner(
            tune.with_resources(_trainable, tune.PlacementGroupFactory([TRIAL_RESOURCES])),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(sweep.space),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=local,
                name="tune",
                verbose=0,
                callbacks=[SweepCallback(sweep, broker, at_once, signals, check_lease)],
            ),
        ).fit()
    finally:
        shutil.rmtree(local, ignore_errors=True)


def _trainable(config: dict[str, Any]) -> None:
    """The function that Tune runs in a trial's process, for one trial after the other."""
    from raytrain.tuning.trial import run_trial

    # Tune waits this long for a trial that it stopped; then the next one, which would reuse its process, fails.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "90")
    run_trial(TrialPlan(**config["plan"]))


def _settling(scheduler: Any) -> Any:
    """A scheduler that records settled reports without stopping trials for them."""

    class Settling(scheduler):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision = super().on_trial_result(controller, trial, result)
            if not result.get(SETTLED):
                return decision
            getattr(self, "_stopped_trials", set()).discard(trial)  # the median rule gets no further report of it
            return self.CONTINUE

    return Settling


class _Bracketed(AsyncHyperBandScheduler):
    """Tune's scheduler, with a trial's bracket drawn from its name, so that a resumed sweep puts it in the same one."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        sizes = np.array([len(bracket._rungs) for bracket in self._brackets])
        shares = np.exp(sizes - sizes.max())
        rng = np.random.default_rng(list(trial_name(trial).encode()))
        self._trial_info[trial.trial_id] = self._brackets[rng.choice(len(sizes), p=shares / shares.sum())]


def _scheduler(space: Space) -> Any:
    """Tune's scheduler, counting our own steps or epochs: Tune's iterations restart with the trial."""
    chosen = space.scheduler
    unit = STEP if isinstance(chosen, Stopping) and chosen.grace_steps else EPOCHS
    if isinstance(chosen, Halving):
        return _settling(_Bracketed)(
            time_attr=unit,
            metric=VALUE,
            mode="max",
            max_t=10**9,
            grace_period=chosen.grace,
            reduction_factor=chosen.reduction_factor,
            brackets=chosen.brackets if isinstance(chosen, HyperBand) else 1,
        )
    if isinstance(chosen, MedianStopping):
        return _settling(MedianStoppingRule)(
            time_attr=unit,
            metric=VALUE,
            mode="max",
            grace_period=chosen.grace,
            min_samples_required=chosen.min_trials,
            min_time_slice=math.inf,  # no trial is paused for another: the pool allocates the workers
        )
    return FIFOScheduler()
