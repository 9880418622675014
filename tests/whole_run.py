"""A whole training run in this process, without Ray: the real driver, workers, saver, logs and prepared store, with one
worker. What Ray does is done by plain calls: it starts processes and pipelines, and none of it writes to storage.

`StorageFaults` counts the operations of all storage in a folder by the place in the code that asks for them, and makes
one of them fail, or stops the process there.
"""

import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import tiny_run

from raytrain import retries
from raytrain.config import RunConfig
from raytrain.data import prepare
from raytrain.data.step_reader import ReadAndCollate
from raytrain.data.stream import Stream
from raytrain.elastic import supervisor, training_worker
from raytrain.elastic.bad_step import step_in_work
from raytrain.elastic.policy import Failure, FailureKind, FaultBudget
from raytrain.elastic.worker_errors import error_of
from raytrain.engine.process_group import connect, process_group
from raytrain.engine.rendezvous import address_of, listen
from raytrain.errors import DataError, FailureCode, TakenOverError
from raytrain.monitoring.run_metrics import WorkerCounts
from raytrain.reports import html
from raytrain.runs import lease, run
from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.training import segments, uploads
from raytrain.training.driver_link import DriverLink
from raytrain.training.outcome import Failed, Outcome

OPERATIONS = (
    *("exists", "size_bytes", "stamp", "list_names", "list_sizes", "read_bytes", "open_input"),
    *("write_bytes", "commit_bytes", "open_output", "create", "delete", "move", "copy"),
)
CHANGES = ("write_bytes", "commit_bytes", "open_output", "create", "delete", "move", "copy")


class Killed(BaseException):
    """The end of the process: nothing catches it, and nothing is written after it."""


class StorageFaults:
    """What happens to the storage in `folder`. A place is the operation with the calls that led to it."""

    def __init__(self, folder: Path):
        self.folder, self.seen = str(folder), Counter[tuple[str, ...]]()
        self.is_object_store = False
        self.draws_report = False
        """It takes as long as all the rest."""
        self.begin(None)

    def begin(self, target: tuple[tuple[str, ...], int] | None, how: str = "before", outage_s: float = 0.0) -> None:
        """The next run. Its `target`, a place and the how-manieth time, fails `before` or `after` it took effect, and
        then everything for `outage_s` seconds of waiting; or the process is `killed` after it."""
        self.seen.clear()
        self.target, self.how, self.outage_s = target, how, outage_s
        self.is_hit = self.is_dead = False
        self.ends_at_s, self.now_s = -1.0, 0.0

    def waits(self, seconds: float) -> None:
        """Time goes by."""
        self.now_s += seconds

    def call(self, storage: Storage, name: str, operation: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not storage.root.startswith(self.folder):
            return operation(storage, *args, **kwargs)
        if self.is_dead and name in CHANGES:
            raise Killed
        if self.now_s < self.ends_at_s:
            raise OSError(5, "503 Slow Down")
        place = place_of(name)
        self.seen[place] += 1
        is_target = self.target == (place, self.seen[place])
        if not is_target:
            return operation(storage, *args, **kwargs)
        self.is_hit = True
        self.ends_at_s = self.now_s + self.outage_s
        if self.how == "before":
            raise OSError(5, "503 Slow Down")
        is_upload = self.is_object_store and name == "open_output"  # nothing is there before it is complete
        result = None if self.how == "killed" and is_upload else operation(storage, *args, **kwargs)
        if self.how == "killed":
            self.is_dead = True
            raise Killed
        if hasattr(result, "close"):
            result.close()
        raise OSError(5, "503 after all")


def place_of(name: str) -> tuple[str, ...]:
    """The operation, and the raytrain functions that led to it, innermost first, with their lines."""
    frame, places = sys._getframe(2), [name]
    while frame is not None and len(places) < 6:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("raytrain.") and module != "raytrain.retries":
            places.append(f"{module.removeprefix('raytrain.')}:{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(places)


class InProcess:
    """In place of the supervisor: one worker, in this process, and the same budget for failures."""

    def __init__(self, spec: Any, train_run: Any, hooks: Any):
        self.spec, self.hooks, self.num_failed = spec, hooks, 0
        self.worker_counts = WorkerCounts(1, 1)
        self.faults: StorageFaults = train_run.faults

    def train(self) -> Outcome:
        budget = FaultBudget(self.spec.config.workers.max_failures)
        while True:
            job, link = self.spec.job(self.hooks.new_token(), None, None), DriverLink("node")
            result = work(job, link)
            self.hooks.on_poll()
            self.hooks.on_group_end()
            if not isinstance(result, Exception):
                return result
            if isinstance(result, TakenOverError):
                raise result
            error = error_of(result)
            step = step_in_work(self.spec.run, link.status)
            verdict = budget.charge(Failure(FailureKind.ERROR, step, error.message, error.code), time.monotonic())
            self.num_failed += 1
            if verdict is not None:
                return Failed(error.code, verdict)
            self.faults.waits(budget.wait_s)


def work(job: Any, link: DriverLink) -> Outcome | Exception:
    """What a worker's process does in a group."""
    world, listener = World(0, 1), listen("127.0.0.1")
    try:
        with process_group(world, "gloo", connect(world, address_of(listener), listener), None):
            return training_worker._work(job, world, link)
    except Exception as error:
        return error


class _TrainRun:
    faults: StorageFaults

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> "_TrainRun":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def conclude(self, outcome: Outcome) -> None:
        pass


class _HeadWatch(contextlib.nullcontext[None]):
    def __init__(self, *_: Any):
        super().__init__()

    def check(self) -> None:
        pass


@contextlib.contextmanager
def _session(*_: Any, **__: Any) -> Iterator[Any]:
    yield SimpleNamespace(num_cpus=6.0, num_gpus=0.0, is_private=True)


def _items(self: Stream, items: list[Any]) -> Iterator[Any]:
    reader = ReadAndCollate(self._config, self._store, self._world, self._plan)
    for item in items:
        yield from reader.read(item)


def without_ray(monkeypatch: pytest.MonkeyPatch, folder: Path) -> StorageFaults:
    """From now on `run_training` runs in this process, and storage in `folder` fails as the result says."""
    faults, report = StorageFaults(folder), html.build_report
    command: Future[dict[str, Any]] = Future()
    command.set_result({"command": "raytrain train"})
    monkeypatch.setattr(run, "ray_session", _session)
    monkeypatch.setattr(run, "TrainRun", type("TrainRunHere", (_TrainRun,), {"faults": faults}))
    monkeypatch.setattr(run, "HeadWatch", _HeadWatch)
    monkeypatch.setattr(run, "observe_command", lambda: command)
    monkeypatch.setattr(supervisor, "Supervisor", InProcess)
    monkeypatch.setattr(training_worker, "DirectReporter", lambda: None)  # nothing is reported to Ray Train
    monkeypatch.setattr(prepare, "_run", _run_rows)
    monkeypatch.setattr(Stream, "_run", _items)
    monkeypatch.setattr(html, "build_report", lambda of: faults.draws_report and report(of))
    for module in (segments, uploads):
        monkeypatch.setattr(module, "SEGMENT_BYTES", 1500)
    _count_storage(monkeypatch, faults)
    _shorten_waits(monkeypatch, faults)
    return faults


def _run_rows(rows: list[dict[str, Any]], function: Any) -> Iterator[dict[str, Any]]:
    from raytrain.data.encode import report_of

    for row in rows:
        report = report_of(function(row))
        if "error" in report:
            raise DataError(report["error"], FailureCode(report["code"]))
        yield report


def _count_storage(monkeypatch: pytest.MonkeyPatch, faults: StorageFaults) -> None:
    def counted(name: str) -> Callable[..., Any]:
        operation = getattr(Storage, name)
        return lambda self, *args, **kwargs: faults.call(self, name, operation, args, kwargs)

    for name in OPERATIONS:
        monkeypatch.setattr(Storage, name, counted(name))
    create, output, copy = Storage.__init__, Storage.open_output, Storage.copy

    def init(self: Storage, root: str) -> None:
        create(self, root)
        if faults.is_object_store and root.startswith(faults.folder):
            self._is_local = False

    def open_output(self: Storage, name: str) -> Any:
        if not self._is_local:
            Path(self._base, name).parent.mkdir(parents=True, exist_ok=True)
        return output(self, name)

    def copied(self: Storage, source: str, target: str) -> None:
        if not self._is_local:
            Path(self._base, target).mkdir(parents=True, exist_ok=True)
        copy(self, source, target)

    monkeypatch.setattr(Storage, "copy", copied)
    monkeypatch.setattr(Storage, "__init__", init)
    monkeypatch.setattr(Storage, "open_output", open_output)


def _shorten_waits(monkeypatch: pytest.MonkeyPatch, faults: StorageFaults) -> None:
    """Waits between retries take no time, and each process has its own life."""
    lives = itertools.count()
    monkeypatch.setattr(retries, "_pause", lambda is_over, seconds: faults.waits(seconds))
    monkeypatch.setattr(lease, "_start_of", lambda pid: faults.life)
    faults.life = f"life {next(lives)}"
    faults.lives = lives


def next_life(faults: StorageFaults) -> None:
    """The process starts again."""
    faults.life = f"life {next(faults.lives)}"


def small_run(folder: Path) -> RunConfig:
    """Eight steps, four checkpoints of which two are kept, two evaluations, and a test."""
    return tiny_run(
        folder,
        "a",
        "training={max_steps: 8, global_batch_size: 8, micro_batch_size: 8, precision: fp32, dropout: 0.1}",
        "training.eval_every_steps=4",
        "training.schedule={kind: constant, warmup_ratio: 0.0}",
        "tracking={tensorboard: false, prometheus: false}",
        "checkpoint={save_every_steps: 2, snapshot_every_steps: null, keep_last: 2}",
        num_rows=40,
    )
