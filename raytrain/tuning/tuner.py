"""Ray Tune around the trials."""

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
"""A trial's own process computes nothing; Tune wants it to hold something. It runs where the cluster's head is."""


def run_trials(
    sweep: Sweep, broker: Broker, at_once: int, signals: StopSignals, check_lease: Callable[[], None]
) -> None:
    """Let Tune run the trials to their end.

    What it writes for itself goes to a folder that ends with it: a sweep goes on from its own files, see `trial`.

    Args:
        at_once: Trials that are begun and not over. How many of them have workers is the pool's matter.
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
    """What Tune runs in each trial's process, one trial after the other."""
    from raytrain.tuning.trial import run_trial

    # Tune waits so long for a trial that it has stopped; the next one, which would have had its process, fails then.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "90")
    run_trial(TrialPlan(**config["plan"]))


def _settling(scheduler: Any) -> Any:
    """A scheduler that takes note of settled reports, but stops nobody for them."""

    class Settling(scheduler):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision = super().on_trial_result(controller, trial, result)
            if not result.get(SETTLED):
                return decision
            getattr(self, "_stopped_trials", set()).discard(trial)  # the median rule will not hear of one again
            return self.CONTINUE

    return Settling


class _Bracketed(AsyncHyperBandScheduler):
    """Tune's, but a trial's bracket is drawn from its name: a sweep that goes on must find it in the same one."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        sizes = np.array([len(bracket._rungs) for bracket in self._brackets])
        shares = np.exp(sizes - sizes.max())
        rng = np.random.default_rng(list(trial_name(trial).encode()))
        self._trial_info[trial.trial_id] = self._brackets[rng.choice(len(sizes), p=shares / shares.sum())]


def _scheduler(space: Space) -> Any:
    """Tune's, by our own steps or epochs: its iterations begin anew when a trial does."""
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
            min_time_slice=math.inf,  # no trial is put to sleep for another: the pool shares the workers
        )
    return FIFOScheduler()
