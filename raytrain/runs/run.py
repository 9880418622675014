"""A run from its config to its result: check, prepare, train on workers, report. This is the driver's side.

Everything that can be known without Ray is checked before Ray is started.
"""

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import yaml

from raytrain.config import RunConfig
from raytrain.config.io import dump_config, parse_config
from raytrain.elastic.allocation import Terms
from raytrain.elastic.train_run import EVALUATIONS, TrainRun
from raytrain.errors import ConfigError, RaytrainError, TrainingError, first_line
from raytrain.monitoring.exporter import RunExporter
from raytrain.ray_core.connect import ray_session
from raytrain.ray_core.nodes import worker_resources
from raytrain.report.goodput import goodput
from raytrain.runs.lease import Lease
from raytrain.runs.observer import Follower, Observer
from raytrain.runs.plan import Plan
from raytrain.runs.preflight import Preflight, check
from raytrain.runs.provenance import record_command
from raytrain.runs.resume import begin_or_resume
from raytrain.runs.signals import StopSignals
from raytrain.steps.timetable import make_timetable
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tracking.base import TrackedRun
from raytrain.tracking.trackers import conclude
from raytrain.training.progress import best_metric
from raytrain.training.records import read_jsonl

if TYPE_CHECKING:
    from raytrain.data.prepared import PreparedStore
    from raytrain.elastic.supervisor import Supervisor

logger = logging.getLogger(__name__)

SUMMARY = "summary.json"

GO_ON = "go on with: raytrain resume"  # and the run's folder: said by a run that was stopped and has saved


@dataclass(frozen=True)
class RunResult:
    """What became of a run; the contents of summary.json."""

    status: str
    """finished, stopped_early, stopped (on request, can be resumed) or failed."""
    run_path: str
    step: int = 0
    skipped_steps: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metric: str | None = None
    final_metrics: dict[str, float] = field(default_factory=dict)
    """Test metrics of the best model."""
    duration_s: float = 0.0
    """Wall time of this command, seconds."""
    failures: int = 0
    """Worker groups that crashed during this command."""
    resizes: int = 0
    """Planned changes of the world size during this command, reclaimed nodes among them."""
    goodput: float | None = None
    """Share of the run's worker-seconds, over all its commands, that went into steps that count and evaluations."""
    message: str = ""
    exit_code: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the run reached its end, by all its steps or by early stopping."""
        return self.status in ("finished", "stopped_early")


def run_training(
    config: RunConfig,
    observer: Observer | None = None,
    *,
    overwrite: bool = False,
    terms: Terms | None = None,
    callbacks: Sequence[Any] = (),
) -> RunResult:
    """Train a run to its end, from wherever it stands.

    Args:
        overwrite: Delete what the run's folder holds first, and start anew.
        terms: What a sweep lays down for it.
        callbacks: Of Ray Train, as for `ray.train.RunConfig`.

    Raises:
        ConfigError, DataError: Nothing was started.
    """
    observer, terms = observer or Observer(), terms or Terms()
    started_at_s = time.time()
    observer.phase("checking")
    found = check(config)
    run = Storage(found.config.storage_path).at(found.config.name)
    with Lease(run, observer.note) as lease:
        previous = begin_or_resume(run, found.config, overwrite=overwrite, may_change=terms.may_change)
        if previous is not None:
            return RunResult(**previous)
        return _train_and_report(run, found, observer, started_at_s, lease, terms, callbacks)


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
    events = read_jsonl(run, "events.jsonl")
    kinds = [event["kind"] for event in events if event["time"] >= started_at_s]
    result = _complete(outcome, run, found.config, time.time() - started_at_s, kinds)
    account = goodput(events, read_jsonl(run, "metrics.jsonl"))
    if account:
        run.commit_bytes("goodput.json", json.dumps(account, indent=1).encode())
        result = replace(result, goodput=account["goodput"])
    run.commit_bytes(SUMMARY, json.dumps(asdict(result), indent=1).encode())
    if result.status == "stopped" and result.step == terms.until_step:  # it is about to go on
        return result
    if not result.is_done:
        conclude(TrackedRun(run, found.config), "failed" if result.status == "failed" else "killed")
    with writing_report(observer.phase):
        from raytrain.report.html import build_report

        build_report(run)
    return result


def _complete(raw: dict[str, Any], run: Storage, config: RunConfig, duration_s: float, events: list[str]) -> RunResult:
    """What the workers said, with what the driver knows."""
    known = {name: value for name, value in raw.items() if name in RunResult.__dataclass_fields__}
    if raw["status"] == "stopped":
        reason = raw.get("message") or "stopped on request"
        known |= {"exit_code": 1, "message": f"{reason}; {GO_ON} {run.path_of()}"}
    task = make_task(config.task, config.data.max_length)
    metric = best_metric(config, task)[0] if config.data.validation else None
    return RunResult(
        **{
            **known,
            "run_path": run.path_of(),
            "best_metric": metric,
            "duration_s": duration_s,
            "failures": events.count("failure"),
            "resizes": events.count("resize") + events.count("reclaim"),
        }
    )


def _train(
    run: Storage,
    found: Preflight,
    observer: Observer,
    began_at_s: float,
    lease: Lease,
    terms: Terms,
    callbacks: Sequence[Any],
) -> dict[str, Any]:
    """Prepare and train on Ray; what the workers said of the end. Failures become a result too."""
    from raytrain.data.prepare import prepare
    from raytrain.elastic.supervisor import Supervisor

    config = found.config
    observer.phase("starting Ray")
    with (
        ray_session(config, found.private_cpus) as session,
        StopSignals() as signals,
        TrainRun(config, run, worker_resources(config, found.plan_on(session).use_gpu), callbacks) as train_run,
    ):
        observer.phase("preparing data")
        store = prepare(config, observer.prepared)
        num_samples = store.manifest.splits["train"].num_samples
        plan = found.plan_on(session, num_samples=num_samples)
        run.write_bytes("config.yaml", dump_config(config).encode())
        run.write_bytes("plan.json", json.dumps(plan.to_json(), indent=1).encode())
        record_command(run, store.manifest.splits)
        table = make_timetable(config, num_samples, has_validation=store.has_split("validation"))
        observer.begin(table.total_steps)
        observer.phase("starting workers")
        signals.catch()
        with _reclaim_watch(config):
            return _supervise(
                Supervisor.train,
                run,
                found,
                plan,
                store.root,
                train_run,
                observer,
                signals,
                total_steps=table.total_steps,
                began_at_s=began_at_s,
                check_lease=lease.check,
                terms=terms,
                exporter=RunExporter(config, run, table.total_steps, terms.sweep),
            )


def _reclaim_watch(config: RunConfig) -> AbstractContextManager[Any]:
    """Watchers on every node, when the config asks for them."""
    if config.workers.reclaim_watch == "off":
        return nullcontext()
    from raytrain.reclaim.node_watch import watch_nodes_from_run

    return watch_nodes_from_run(config.workers.reclaim_watch)


def _supervise(
    work: Callable[["Supervisor"], dict[str, Any]],
    run: Storage,
    found: Preflight,
    plan: Plan,
    prepared_root: str,
    train_run: TrainRun,
    observer: Observer,
    signals: StopSignals,
    *,
    total_steps: int = 0,
    began_at_s: float = 0.0,
    check_lease: Callable[[], None] = lambda: None,
    terms: Terms | None = None,
    exporter: RunExporter | None = None,
) -> dict[str, Any]:
    """Let a supervisor do its work, follow the run's files meanwhile, and pass a stop request on."""
    from raytrain.elastic.supervisor import Supervisor

    follower = Follower(run, observer.rows, *([exporter.rows] if exporter else []))
    terms = terms or Terms()

    def on_poll() -> None:
        check_lease()
        signals.acknowledge(observer.stopping)
        follower.look()
        if exporter is not None:
            exporter.look(supervisor.worker_counts)

    supervisor = Supervisor(
        found.config,
        run,
        prepared_root,
        train_run,
        use_gpu=plan.use_gpu,
        total_steps=total_steps,
        terms=terms,
        is_stop_asked=lambda: signals.is_asked or terms.allocation.is_stop_asked,
        on_poll=on_poll,
        say=observer.note,
        began_at_s=began_at_s,
    )
    try:
        outcome = work(supervisor)
    except RaytrainError as error:
        outcome = {"status": "failed", "message": str(error), "exit_code": error.exit_code}
    except Exception as error:  # a control store that is gone, say: told like any other end
        logger.exception("the run was ended by an error that is none of its own")
        outcome = {"status": "failed", "message": f"{type(error).__name__}: {first_line(str(error))}", "exit_code": 1}
    finally:
        follower.look()
    train_run.conclude(outcome)  # where the supervisor has not come to it
    if exporter is not None:
        exporter.end(outcome["status"])
    return outcome


def evaluate_run(path: str, split: str, observer: Observer | None = None) -> dict[str, float]:
    """Evaluate a run's best model on a split, and write it to the run's evals.jsonl.

    Raises:
        ConfigError: The folder is no run, has no best model, or its config names no such split.
        TrainingError: The workers failed.
    """
    observer = observer or Observer()
    run = Storage(path)
    found = check(read_run_config(run))
    if not run.exists("best/config.json"):
        raise ConfigError(f"{run.path_of()} has no best/ model yet; train the run first")
    if getattr(found.config.data, split, None) is None:
        raise ConfigError(f"the run's config has no data.{split}; its splits: {', '.join(splits_of(found.config))}")
    from raytrain.data.prepare import prepare
    from raytrain.elastic.supervisor import Supervisor

    observer.phase("starting Ray")
    with ray_session(found.config, found.private_cpus) as session, StopSignals() as signals:
        plan = found.plan_on(session)
        resources = worker_resources(found.config, plan.use_gpu)
        with TrainRun(found.config, run, resources, folder=EVALUATIONS) as train_run:
            observer.phase("preparing data")
            store = prepare(found.config, observer.prepared)
            observer.phase(f"evaluating {split}")
            work = functools.partial(Supervisor.evaluate, split=split)
            result = _supervise(work, run, found, plan, store.root, train_run, observer, signals)
    if result["status"] == "failed":
        raise TrainingError(result["message"])
    return result["final_metrics"]


def prepare_data(config: RunConfig, observer: Observer | None = None) -> "PreparedStore":
    """Prepare a config's data, or find it prepared, which needs no Ray. Raises ConfigError or DataError."""
    from raytrain.data.prepare import find_prepared, prepare

    found = check(config)
    if (store := find_prepared(found.config)) is not None:
        return store
    with ray_session(found.config, found.private_cpus):
        return prepare(found.config, (observer or Observer()).prepared)


def read_run_config(run: Storage, overrides: Sequence[str] = ()) -> RunConfig:
    """The run's resolved config, for where its folder lies now: it may have been moved, or lie on an object store.

    Raises ConfigError when the folder is no run, or an override is wrong.
    """
    path = run.path_of("config.yaml")
    if not run.exists("config.yaml"):
        raise ConfigError(f"{run.path_of()} is not a run's folder: it has no config.yaml")
    try:
        raw = yaml.safe_load(run.read_bytes("config.yaml"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    parent, name = run.place()
    return parse_config(raw, [f"storage_path={parent}", f"name={name}", *overrides], origin=path)


def splits_of(config: RunConfig) -> list[str]:
    """Names of the splits that the config gives."""
    return [name for name in ("train", "validation", "test") if getattr(config.data, name) is not None]


@contextmanager
def writing_report(tell: Callable[[str], None]) -> Iterator[None]:
    """A report that can't be drawn must not turn a good run into a failed one. `tell`: told of the phase."""
    tell("writing the report")
    try:
        yield
    except Exception:
        logger.exception("the report could not be written; `raytrain report` tries again")
