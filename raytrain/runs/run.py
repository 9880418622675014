"""A run from its config to its result: check, prepare, train on workers, report. This is the driver's side.

All checks that don't need Ray are done before Ray is started.
"""

import functools
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from raytrain.config import RunConfig
from raytrain.config.io import dump_config
from raytrain.elastic.allocation import Terms
from raytrain.elastic.run_spec import Hooks, RunSpec
from raytrain.elastic.train_run import EVALUATIONS, TrainRun
from raytrain.errors import FailureCode, RaytrainError, TakenOverError, TrainingError, first_line
from raytrain.models.card import BEST, FACTS
from raytrain.monitoring.exporter import RunExporter
from raytrain.ray_core.connect import ray_session
from raytrain.ray_core.head_watch import HeadWatch
from raytrain.ray_core.nodes import worker_resources
from raytrain.retries import advice_for, retrying
from raytrain.runs.beginning import lease_of
from raytrain.runs.callbacks import CallbackRunner, StartInfo
from raytrain.runs.ending import conclude_run
from raytrain.runs.evaluation import (
    Evaluation,
    check_can_be_measured,
    for_other_data,
    read_evaluated_config,
    reads_other_data,
    threshold_used,
)
from raytrain.runs.lease import Lease
from raytrain.runs.observer import Follower, Observer
from raytrain.runs.preflight import Preflight, check, check_model
from raytrain.runs.provenance import observe_command, record_command
from raytrain.runs.result import RunResult
from raytrain.runs.resume import begin_or_resume
from raytrain.runs.same_data import check_same_data, record_data, record_summary
from raytrain.runs.signals import StopSignals
from raytrain.steps.timetable import make_timetable
from raytrain.storage import Storage
from raytrain.training.measured import measured_name
from raytrain.training.outcome import Failed, Outcome, Stopped

if TYPE_CHECKING:
    from raytrain.data.prepared import PreparedStore
    from raytrain.elastic.supervisor import Supervisor

logger = logging.getLogger(__name__)

RAY_TRAIN = "raytrain.elastic.ray_train"  # takes a second or two to import


def run_training(
    config: RunConfig,
    observer: Observer | None = None,
    *,
    overwrite: bool = False,
    terms: Terms | None = None,
    callbacks: Sequence[Any] = (),
) -> RunResult:
    """Train a run to its end, from its newest checkpoint.

    Args:
        overwrite: Delete what the run has written to its folder first, and start from the beginning.
        terms: What a sweep prescribes for the run.
        callbacks: `Callback`s, which are called in this process, and callbacks of Ray Train, as for
            `ray.train.RunConfig`.

    Raises:
        ConfigError, DataError: Raised before anything was started.
        TakenOverError: Another command trains the run now; this one has written nothing more to its folder.
        TrainingError: The run's folder can't be read or written, or a callback has raised.
    """
    observer, terms = observer or Observer(), terms or Terms()
    runner = CallbackRunner(callbacks, observer.note)
    started_at_s = time.time()
    observer.phase("checking")
    found = check(config, checked=observer.checked)
    run = Storage(found.config.storage_path).at(found.config.name)
    try:
        with lease_of(run, observer.note) as lease:
            run = run.guarded(lease.check_now)
            begin = functools.partial(
                begin_or_resume, run, found.config, overwrite=overwrite, may_change=terms.may_change
            )
            if (previous := retrying(begin, f"reading {run.path_of()}")) is not None:
                return previous
            retrying(lambda: check_same_data(run, found.config), f"reading {run.path_of()}")
            return _train_and_report(run, found, observer, started_at_s, lease, terms, runner)
    except OSError as error:
        if not _is_of_storage(error):
            raise
        raise TrainingError(_storage_failed(run, error), FailureCode.STORAGE) from error


def _train_and_report(
    run: Storage,
    found: Preflight,
    observer: Observer,
    started_at_s: float,
    lease: Lease,
    terms: Terms,
    callbacks: CallbackRunner,
) -> RunResult:
    try:
        outcome = _train(run, found, observer, started_at_s, lease, terms, callbacks)
        if isinstance(outcome, Failed) and outcome.code is FailureCode.TAKEN_OVER:
            raise TakenOverError(outcome.message)
        result = conclude_run(outcome, run, found.config, started_at_s, observer)
        callbacks.end(result)
        return result
    finally:
        callbacks.close()


def _train(
    run: Storage,
    found: Preflight,
    observer: Observer,
    began_at_s: float,
    lease: Lease,
    terms: Terms,
    callbacks: CallbackRunner,
) -> Outcome:
    """Prepare the data and train on Ray."""
    from raytrain.data.copies import describe_epoch
    from raytrain.data.prepare import prepare
    from raytrain.elastic.supervisor import Supervisor

    config = found.config
    observer.phase("starting Ray")
    command = observe_command()  # while Ray starts
    with (
        ray_session(config, found.private_cpus, preload=RAY_TRAIN) as session,
        StopSignals() as signals,
        TrainRun(
            config, run, worker_resources(config, found.plan_on(session).use_gpu), callbacks.for_ray_train
        ) as train_run,
    ):
        observer.phase("preparing data")
        store = prepare(config, observer.prepared, None, functools.partial(check_model, config), observer.phase)
        epoch = describe_epoch(config, store.manifest)
        for remark in [*store.manifest.remarks, *epoch]:
            observer.note(remark)
        writing = f"writing {run.path_of()}"
        retrying(lambda: record_data(run, config, store), writing)
        record_summary(run, config, store)
        num_samples = store.manifest.splits["train"].num_samples
        plan = found.plan_on(session, num_samples=num_samples)
        retrying(lambda: run.commit_bytes("config.yaml", dump_config(config).encode()), writing)
        retrying(lambda: run.commit_bytes("plan.json", json.dumps(plan.to_json(), indent=1).encode()), writing)
        record_command(run, store.manifest.splits, command, epoch)
        table = make_timetable(config, num_samples, has_validation=store.has_split("validation"))
        observer.begin(table.total_steps)
        callbacks.begin(StartInfo(run.path_of(), config, table.total_steps))
        observer.phase("starting workers")
        signals.catch()
        with _reclaim_watch(config):
            spec = RunSpec(config, run, store.root, plan.use_gpu, table.total_steps, began_at_s, terms)
            exporter = RunExporter(config, run, table.total_steps, terms.sweep)
            return _supervise(Supervisor.train, spec, train_run, observer, signals, lease, exporter, callbacks)


def _reclaim_watch(config: RunConfig) -> AbstractContextManager[Any]:
    """Watchers for reclaim notices on every node, if the config enables them."""
    if config.workers.reclaim_watch == "off":
        return nullcontext()
    from raytrain.reclaim.node_watch import watch_nodes_from_run

    return watch_nodes_from_run(config.workers.reclaim_watch)


def _supervise(
    work: Callable[["Supervisor"], Outcome],
    spec: RunSpec,
    train_run: TrainRun,
    observer: Observer,
    signals: StopSignals,
    lease: Lease | None = None,
    exporter: RunExporter | None = None,
    callbacks: CallbackRunner | None = None,
) -> Outcome:
    """Run a supervisor; meanwhile follow the run's logs, pass a stop request on, and watch the cluster's head. An
    exception also becomes an outcome."""
    from raytrain.elastic.supervisor import Supervisor

    listeners = [one.rows for one in (observer, exporter, callbacks) if one is not None]
    follower = Follower(spec.run, *listeners)

    def on_poll() -> None:
        if lease is not None:
            lease.check()
        head.check()
        signals.acknowledge(observer.stopping)
        if exporter is not None:
            exporter.look(supervisor.worker_counts)

    def is_stop_asked() -> bool:
        return is_other_stop() or (callbacks is not None and callbacks.is_stop_asked)

    def is_other_stop() -> bool:
        return signals.is_asked or spec.terms.allocation.is_stop_asked

    def new_token() -> int:
        assert lease is not None, "only a training has worker groups that write"
        return lease.advance()

    hooks = Hooks(is_stop_asked, on_poll, new_token, observer.note, follower.take, follower.look)
    supervisor = Supervisor(spec, train_run, hooks)
    outcome: Outcome
    head = HeadWatch(observer.note, f"raytrain resume {spec.run.path_of()}" if lease else "give it again")
    try:
        with head:
            outcome = work(supervisor)
    except RaytrainError as error:
        outcome = Failed(error.code, str(error))
    except Exception as error:
        outcome = _outcome_of(error, spec.run)
    finally:
        follower.look()
    if callbacks is not None:
        outcome = callbacks.judge(outcome, is_other_stop=is_other_stop())
    train_run.conclude(outcome)  # if the supervisor did not get to it
    if exporter is not None:
        exporter.end(outcome.status)
    return replace(outcome, failures=supervisor.num_failed)


def _is_of_storage(error: BaseException) -> TypeGuard[OSError]:
    """Whether files could not be read or written; Ray's client and sockets raise the other kinds of OSError."""
    return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)


def _storage_failed(run: Storage, error: OSError) -> str:
    return f"can't read or write the files of {run.path_of()}: {error}. {advice_for(error)}, then resume the run."


def _outcome_of(error: Exception, run: Storage) -> Failed:
    """The outcome for an error from outside the run, such as a lost connection to Ray's control store."""
    import ray

    if _is_of_storage(error):
        return Failed(FailureCode.STORAGE, _storage_failed(run, error))
    logger.exception("the run was ended by an error from outside it")
    code = FailureCode.RAY if isinstance(error, ray.exceptions.RayError) else FailureCode.INTERNAL
    return Failed(code, f"{type(error).__name__}: {first_line(str(error))}")


def evaluate_run(path: str, split: str, observer: Observer | None = None, overrides: Sequence[str] = ()) -> Evaluation:
    """Evaluate a run's best model on a split, and append the result to the run's evals.jsonl.

    Args:
        overrides: `dotted.key=value` words. If they name other files, only these are prepared, with the model's labels.

    Raises:
        ConfigError: The folder is not a run's, has no best model, its config has no such split, or an override has no
        effect on an evaluation.
        DataError: The data can't be used.
        TrainingError: The workers failed.
    """
    observer = observer or Observer()
    run = Storage(path)
    config = read_evaluated_config(run, split, overrides)
    check_can_be_measured(run, config, split)
    only = split if reads_other_data(overrides) else None
    found = check(config if only is None else for_other_data(config, run), only=only, checked=observer.checked)
    from raytrain.data.prepare import prepare
    from raytrain.elastic.supervisor import Supervisor

    observer.phase("starting Ray")
    session_of_evaluation = ray_session(found.config, found.private_cpus, preload=RAY_TRAIN)
    with session_of_evaluation as session, StopSignals() as signals:
        plan = found.plan_on(session)
        resources = worker_resources(found.config, plan.use_gpu)
        with TrainRun(found.config, run, resources, folder=EVALUATIONS) as train_run:
            observer.phase("preparing data")
            store = prepare(found.config, observer.prepared, only, phase=observer.phase)
            name = measured_name(found.config, store, split)
            observer.phase(f"evaluating {name}")
            work = functools.partial(Supervisor.evaluate, split=split)
            spec = RunSpec(found.config, run, store.root, plan.use_gpu)
            outcome = _supervise(work, spec, train_run, observer, signals)
    if isinstance(outcome, Failed):
        raise TrainingError(outcome.message, outcome.code)
    if isinstance(outcome, Stopped):
        raise TrainingError("the evaluation was stopped before it had begun", FailureCode.STOPPED)
    facts = retrying(lambda: run.read_json(f"{BEST}/{FACTS}"), f"reading {run.path_of(BEST)}")
    step, num_samples = facts["step"], store.manifest.splits[split].num_samples
    threshold = threshold_used(found.config, facts)
    return Evaluation(run.path_of(), name, step, num_samples, outcome.final_metrics, threshold)


def prepare_data(config: RunConfig, observer: Observer | None = None) -> "PreparedStore":
    """Prepare a config's data. Needs no Ray if it is already prepared. Raises ConfigError or DataError."""
    from raytrain.data.prepare import find_prepared, prepare

    observer = observer or Observer()
    observer.phase("checking")
    found = check(config, checked=observer.checked)
    if (store := find_prepared(found.config)) is not None:
        return store
    check_model(found.config)
    observer.phase("starting Ray")
    with ray_session(found.config, found.private_cpus):
        observer.phase("preparing data")
        return prepare(found.config, observer.prepared, phase=observer.phase)
