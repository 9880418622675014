"""A run from its config to its result: check, prepare, train on workers, report. This is the driver's side.

All checks that don't need Ray are done before Ray is started.
"""

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeGuard

from raytrain.checkpoint.retries import advice_for, retrying
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
from raytrain.reports.goodput import goodput
from raytrain.runs.beginning import lease_of
from raytrain.runs.evaluation import (
    Evaluation,
    allowed_overrides,
    check_can_be_measured,
    for_other_data,
    reads_other_data,
)
from raytrain.runs.folder import read_run_config
from raytrain.runs.lease import Lease
from raytrain.runs.observer import Follower, Observer
from raytrain.runs.preflight import Preflight, check, check_model
from raytrain.runs.provenance import observe_command, record_command
from raytrain.runs.result import SUMMARY, RunResult
from raytrain.runs.resume import begin_or_resume
from raytrain.runs.same_data import check_same_data, record_data
from raytrain.runs.signals import StopSignals
from raytrain.steps.timetable import make_timetable
from raytrain.storage import Storage
from raytrain.tracking.base import TrackedRun
from raytrain.tracking.trackers import conclude
from raytrain.training.measured import measured_name
from raytrain.training.outcome import Failed, Finished, Outcome, RunStatus, Stopped, StopReason
from raytrain.training.records import iterate_jsonl, read_jsonl
from raytrain.training.run_log import recorded_progress

if TYPE_CHECKING:
    from raytrain.data.prepared import PreparedStore
    from raytrain.elastic.supervisor import Supervisor

logger = logging.getLogger(__name__)

RAY_TRAIN = "raytrain.elastic.ray_train"  # takes a second or two to import

# Fields of Progress that the summary has too.
SUMMARIZED = ("step", "skipped_steps", "samples_seen", "tokens_seen", "best_metric", "best_value", "best_step")

STOPPED_IN_WORDS = {
    StopReason.REQUESTED: "stopped on request",
    StopReason.NODE_RECLAIMED: "the node of this command is being reclaimed",
    StopReason.PAUSED: "paused at the end of a generation",
}


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
        callbacks: Callbacks of Ray Train, as for `ray.train.RunConfig`.

    Raises:
        ConfigError, DataError: Raised before anything was started.
        TakenOverError: Another command trains the run now; this one has written nothing more to its folder.
        TrainingError: The run's folder can't be read or written.
    """
    observer, terms = observer or Observer(), terms or Terms()
    started_at_s = time.time()
    observer.phase("checking")
    found = check(config, checked=observer.checked)
    run = Storage(found.config.storage_path).at(found.config.name)
    try:
        with lease_of(run, observer.note) as lease:
            run = run.guarded(lease.check_now)
            previous = begin_or_resume(run, found.config, overwrite=overwrite, may_change=terms.may_change)
            if previous is not None:
                return previous
            check_same_data(run, found.config)
            return _train_and_report(run, found, observer, started_at_s, lease, terms, callbacks)
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
    callbacks: Sequence[Any],
) -> RunResult:
    outcome = _train(run, found, observer, started_at_s, lease, terms, callbacks)
    if isinstance(outcome, Failed) and outcome.code is FailureCode.TAKEN_OVER:
        raise TakenOverError(outcome.message)
    events = read_jsonl(run, "events.jsonl")
    kinds = [event["kind"] for event in events if event["time"] >= started_at_s]
    result = _complete(outcome, run, found.config, time.time() - started_at_s, kinds)
    account = goodput(events, iterate_jsonl(run, "metrics.jsonl"))
    if account:
        _write(run, "goodput.json", account, observer)
        result = replace(result, goodput=account["goodput"])
    _write(run, SUMMARY, asdict(result), observer)
    if result.stop_reason is StopReason.PAUSED:  # it is about to be resumed
        return result
    if not result.is_done:
        conclude(TrackedRun(run, found.config), "failed" if result.status is RunStatus.FAILED else "killed")
    with writing_report(observer.phase):
        from raytrain.reports.html import build_report

        build_report(run)
    return result


def _write(run: Storage, name: str, content: dict[str, Any], observer: Observer) -> None:
    """Write a file at the end of the run. A failure of storage, such as a full disk, is told: how the command has ended
    must not be lost."""
    path = run.path_of(name)
    try:
        retrying(lambda: run.commit_bytes(name, json.dumps(content, indent=1).encode()), f"writing {path}")
    except OSError as error:
        observer.note(f"{path} can't be written: {error}")


def _complete(outcome: Outcome, run: Storage, config: RunConfig, duration_s: float, events: list[str]) -> RunResult:
    """The workers' outcome, completed with what the driver knows."""
    told = outcome.progress if outcome.progress.step else recorded_progress(run)  # no worker may be left to tell
    progress = {name: value for name, value in told.to_dict().items() if name in SUMMARIZED}
    result = RunResult(
        status=outcome.status,
        run_path=run.path_of(),
        **progress,
        duration_s=duration_s,
        failures=outcome.failures,
        resizes=events.count("resize") + events.count("reclaim"),
    )
    if isinstance(outcome, Finished):
        return replace(result, final_metrics=outcome.final_metrics)
    if isinstance(outcome, Stopped):
        message = f"{STOPPED_IN_WORDS[outcome.reason]}; to resume it: raytrain resume {run.path_of()}"
        return replace(result, stop_reason=outcome.reason, message=message, exit_code=1)
    code = outcome.code
    return replace(result, failure_code=code, message=outcome.message, exit_code=code.exit_code)


def _train(
    run: Storage,
    found: Preflight,
    observer: Observer,
    began_at_s: float,
    lease: Lease,
    terms: Terms,
    callbacks: Sequence[Any],
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
        TrainRun(config, run, worker_resources(config, found.plan_on(session).use_gpu), callbacks) as train_run,
    ):
        observer.phase("preparing data")
        store = prepare(config, observer.prepared, check_first=functools.partial(check_model, config))
        epoch = describe_epoch(config, store.manifest)
        for remark in [*store.manifest.remarks, *epoch]:
            observer.note(remark)
        record_data(run, config, store)
        num_samples = store.manifest.splits["train"].num_samples
        plan = found.plan_on(session, num_samples=num_samples)
        run.commit_bytes("config.yaml", dump_config(config).encode())
        run.commit_bytes("plan.json", json.dumps(plan.to_json(), indent=1).encode())
        record_command(run, store.manifest.splits, command, epoch)
        table = make_timetable(config, num_samples, has_validation=store.has_split("validation"))
        observer.begin(table.total_steps)
        observer.phase("starting workers")
        signals.catch()
        with _reclaim_watch(config):
            spec = RunSpec(config, run, store.root, plan.use_gpu, table.total_steps, began_at_s, terms)
            exporter = RunExporter(config, run, table.total_steps, terms.sweep)
            return _supervise(Supervisor.train, spec, train_run, observer, signals, lease, exporter)


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
) -> Outcome:
    """Run a supervisor; meanwhile follow the run's logs, pass a stop request on, and watch the cluster's head. An
    exception also becomes an outcome."""
    from raytrain.elastic.supervisor import Supervisor

    follower = Follower(spec.run, observer.rows, *([exporter.rows] if exporter else []))

    def on_poll() -> None:
        if lease is not None:
            lease.check()
        head.check()
        signals.acknowledge(observer.stopping)
        if exporter is not None:
            exporter.look(supervisor.worker_counts)

    def is_stop_asked() -> bool:
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
    config = read_run_config(run, allowed_overrides(split, overrides))
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
            store = prepare(found.config, observer.prepared, only)
            name = measured_name(found.config, store, split)
            observer.phase(f"evaluating {name}")
            work = functools.partial(Supervisor.evaluate, split=split)
            spec = RunSpec(found.config, run, store.root, plan.use_gpu)
            outcome = _supervise(work, spec, train_run, observer, signals)
    if isinstance(outcome, Failed):
        raise TrainingError(outcome.message, outcome.code)
    if isinstance(outcome, Stopped):
        raise TrainingError("the evaluation was stopped before it had begun", FailureCode.STOPPED)
    step, num_samples = run.read_json(f"{BEST}/{FACTS}")["step"], store.manifest.splits[split].num_samples
    return Evaluation(run.path_of(), name, step, num_samples, outcome.final_metrics)


def prepare_data(config: RunConfig, observer: Observer | None = None) -> "PreparedStore":
    """Prepare a config's data. Needs no Ray if it is already prepared. Raises ConfigError or DataError."""
    from raytrain.data.prepare import find_prepared, prepare

    observer = observer or Observer()
    found = check(config, checked=observer.checked)
    if (store := find_prepared(found.config)) is not None:
        return store
    check_model(found.config)
    with ray_session(found.config, found.private_cpus):
        return prepare(found.config, observer.prepared)


@contextmanager
def writing_report(tell: Callable[[str], None]) -> Iterator[None]:
    """Context in which a failure to draw the report does not make the run fail. `tell`: receives the name of the
    phase."""
    tell("writing the report")
    try:
        yield
    except OSError as error:
        logger.warning("the report could not be written (%s); `raytrain report` writes it again", error)
    except Exception:
        logger.exception("the report could not be written; `raytrain report` writes it again")
