"""A sweep: Ray Tune decides which trials run and which stop; the pool decides how many workers each has."""

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.data.prepare import find_prepared
from raytrain.errors import ConfigError
from raytrain.ray_core.connect import RaySession, ray_session
from raytrain.ray_core.head_watch import HeadWatch
from raytrain.ray_core.nodes import worker_resources
from raytrain.runs.ending import writing_report
from raytrain.runs.lease import Lease
from raytrain.runs.plan import cpus_needed
from raytrain.runs.preflight import Preflight, check
from raytrain.runs.signals import StopSignals
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import TaskState
from raytrain.training.outcome import RunStatus
from raytrain.training.progress import best_metric
from raytrain.tuning.observer import SweepObserver
from raytrain.tuning.pool.broker import Broker
from raytrain.tuning.resume import begin_or_resume, check_same
from raytrain.tuning.space.space import NUM_PARAMETERS, Space, check_space
from raytrain.tuning.state import SUMMARY, Sweep, SweepResult
from raytrain.tuning.trials import TrialTable

CLUSTER_TRIALS = 8  # minimum number of live trials on a cluster


def run_sweep(
    raw: dict[str, Any],
    overrides: list[str],
    space: Space,
    space_name: str,
    observer: SweepObserver | None = None,
    *,
    max_concurrent: int | None = None,
) -> SweepResult:
    """Run or resume a sweep until it ends.

    Args:
        raw: The config as it was read.
        overrides: `dotted.key=value` words.
        space: The search space.
        space_name: Suffix of the sweep's folder, <storage_path>/<config's name>-<space_name>.
        max_concurrent: Maximum number of live trials. None: on a private Ray, as many as have a core per worker.

    Raises:
        ConfigError, DataError: Nothing was started.
    """
    observer, started_at_s = observer or SweepObserver(), time.time()
    observer.phase("checking")
    found = check(check_space(space, raw, overrides), checked=observer.checked)
    config = found.config
    metric_of(space, config)
    root = Storage(config.storage_path).at(f"{config.name}-{space_name}")
    with Lease(root, lambda text: None) as lease:
        begin = functools.partial(_begin, config, space, root, observer)
        state = _known_state(config)
        # Either refuses the folder of a different sweep before Ray is started.
        check_same(root, config, space, None) if state is None else begin(state)
        sweep, status = _run(found, begin, observer, max_concurrent, lease)
        result = sweep.result(status, time.time() - started_at_s)
        sweep.trial_table.write_all()
        sweep.wait_for_trackers()
        root.commit_bytes(SUMMARY, json.dumps(asdict(result), indent=1).encode())
        with writing_report(observer.phase):
            from raytrain.tuning.report import build_sweep_report

            build_sweep_report(root)
    return result


def _known_state(config: RunConfig) -> TaskState | None:
    """The task's state as far as it is known without Ray: declared, or learned when the data was prepared earlier."""
    declared = make_task(config.task, config.data.max_length).declared_state()
    if declared is not None:
        return declared
    store = find_prepared(config)
    return None if store is None else store.manifest.task_state


def _begin(config: RunConfig, space: Space, root: Storage, observer: SweepObserver, state: TaskState) -> Sweep:
    """Begin or resume a sweep whose metric follows from what its task has learned from the data, as in a single run.

    Raises ConfigError when the folder has a different sweep.
    """
    metric, mode = metric_of(space, config, state)
    if config.training.best_metric is None:  # the sweep's metric picks a trial's best model
        config = parse_config(config.model_dump(mode="json", exclude_unset=True), [f"training.best_metric={metric}"])
    begin_or_resume(root, config, space, metric, mode)
    spent_s = json.loads(root.read_bytes(SUMMARY)).get("spent_s", 0.0) if root.exists(SUMMARY) else 0.0
    return Sweep(config, space, root, metric, mode, TrialTable(root, mode), observer, spent_before_s=spent_s)


def metric_of(space: Space, config: RunConfig, state: TaskState | None = None) -> tuple[str, str]:
    """(metric, mode) that a sweep compares its trials by. Raises ConfigError for an unknown metric.

    Args:
        state: What the task has learned from the data; None: not known yet, and the metric may still become another.
    """
    task = make_task(config.task, config.data.max_length)
    if config.data.validation is None:
        raise ConfigError("a sweep compares trials on the validation split: set data.validation")
    for objective in space.also:
        if objective.metric not in (*task.modes, NUM_PARAMETERS):
            allowed = ", ".join((*task.modes, NUM_PARAMETERS))
            raise ConfigError(f"also names {objective.metric!r}, not a metric of this task; allowed: {allowed}")
        better = task.modes.get(objective.metric, "min")
        if objective.better != better:
            what = "smaller" if better == "min" else "larger"
            raise ConfigError(f"also: a {what} {objective.metric} is better; set its mode to {better}")
    if space.metric is None:
        metric, mode = best_metric(config, task, state)
        if any(objective.metric == metric for objective in space.also):
            raise ConfigError(f"also names {metric}, which is the metric of this sweep anyway")
        return metric, mode
    if space.metric not in task.modes:
        raise ConfigError(
            f"metric {space.metric!r} of the space is not a metric of this task; allowed: {', '.join(task.modes)}"
        )
    return space.metric, space.mode or task.modes[space.metric]


def _run(
    found: Preflight,
    begin: Callable[[TaskState], Sweep],
    observer: SweepObserver,
    max_concurrent: int | None,
    lease: Lease,
) -> tuple[Sweep, RunStatus]:
    """Prepare the data, then run the trials with Tune. Returns the sweep and its status at its end.

    Args:
        begin: Makes the sweep from the task's state, which may depend on the data.
    """
    from raytrain.data.prepare import prepare

    config = found.config
    observer.phase("starting Ray")
    private = max_concurrent or _trials_on_this_machine(config)
    with ray_session(config, _private_cpus(found, private)) as session, StopSignals() as signals:
        from raytrain.tuning.tuner import run_trials  # imports Ray, which reads its settings when it is imported

        plan = found.plan_on(session)
        observer.phase("preparing data")
        sweep = begin(prepare(config, observer.prepared, phase=observer.phase).manifest.task_state)
        live = max_concurrent or _live_trials(config, session, plan.use_gpu)
        signals.catch()
        observer.phase("trials")
        observer.begin(sweep.trial_table, sweep.space.num_trials, sweep.metric)
        worker, least = worker_resources(config, plan.use_gpu), config.workers.min
        at_once = sweep.space.num_trials if sweep.every_steps else live  # all trials wait for the end of a generation
        expected = sweep.num_wanting(at_once)
        broker = Broker(worker, config.workers.data_cpus, live * config.workers.max, least, expected)
        head = HeadWatch(observer.phase, "give the same command again")

        def check() -> None:
            lease.check()
            head.check()

        try:
            with head:
                run_trials(sweep, broker, at_once, signals, check)
        finally:
            broker.close()
    is_all_failed = bool(sweep.trial_table.rows) and sweep.trial_table.count("failed") == len(sweep.trial_table.rows)
    if is_all_failed:
        return sweep, RunStatus.FAILED
    return sweep, sweep.end.status if sweep.end is not None else RunStatus.FINISHED


def _trials_on_this_machine(config: RunConfig) -> int:
    """Number of live trials with a core for each of their minimum of workers."""
    return max(1, (os.cpu_count() or 1) // (config.workers.min * config.workers.cpus))


def _live_trials(config: RunConfig, session: RaySession, use_gpu: bool) -> int:
    """Number of live trials: as many as fit with workers.min each. On a cluster, which may grow, possibly more: those
    without workers just wait."""
    least = config.workers.min
    fitting = int(session.num_gpus // least) if use_gpu else int(session.num_cpus // cpus_needed(config, least))
    if session.is_private:
        return max(1, fitting if use_gpu else min(fitting, _trials_on_this_machine(config)))
    return max(CLUSTER_TRIALS, fitting)


def _private_cpus(found: Preflight, live: int) -> int:
    """Logical CPUs of a private Ray: for the live trials with workers.min each, or for one trial alone if it needs
    more."""
    if not found.private_cpus or found.config.ray.num_cpus is not None:
        return found.private_cpus
    return max(found.private_cpus, round(live * cpus_needed(found.config, found.config.workers.min) + 0.5))
