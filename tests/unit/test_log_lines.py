"""The driver hears of steps, evaluations and events from the worker that writes them: each once, and without a look
into storage while a group trains. What a message does not bring is in the files."""

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raytrain.runs import observer
from raytrain.runs.observer import Follower
from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.tasks.base import Metrics
from raytrain.training import log_feed, segments, uploads
from raytrain.training.driver_link import DriverLink
from raytrain.training.records import JsonlWriter, read_jsonl
from raytrain.training.run_log import RunLog
from raytrain.training.segments import SEGMENT_BYTES
from raytrain.training.uploads import GrowingObject

LOGS = ("metrics.jsonl", "evals.jsonl", "events.jsonl")


class CountingStore(Storage):
    """Behaves as an object store does: no local paths, no appending. Counts requests that read."""

    def __init__(self, root: str):
        super().__init__(root)
        self.num_reads = 0

    def local_path(self, name: str = "") -> None:
        return None

    def open_input(self, name):
        self.num_reads += 1
        return super().open_input(name)

    def read_bytes(self, name):
        self.num_reads += 1
        return super().read_bytes(name)

    def _info(self, name):
        self.num_reads += 1
        return super()._info(name)


class CountingFolder(CountingStore):
    """The same on a file system."""

    def local_path(self, name: str = "") -> str | None:  # type: ignore[override]
        return Storage.local_path(self, name)


@pytest.fixture(params=[CountingFolder, CountingStore])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CountingStore, CountingStore]:
    """The run's folder, for the driver and for the workers."""
    return request.param(str(tmp_path)), request.param(str(tmp_path))


class Driver:
    """What the driver does with its follower and the status of a group's first worker."""

    def __init__(self, run: Storage):
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.follower = Follower(run, lambda name, rows: self.rows.extend((name, row) for row in rows))

    def begin(self) -> DriverLink:
        self._last, self.link = 0, DriverLink("a")
        return self.link

    def poll(self) -> None:
        if lines := self.link.feed.after(self._last):
            self._last = lines[-1].number
        self.follower.take(lines)

    def values(self, name: str = "metrics.jsonl") -> list[int]:
        return [row["step"] for of, row in self.rows if of == name]


def log_of(run: Storage, link: DriverLink, attempt: int = 0) -> RunLog:
    return RunLog(run, World(0, 2), attempt, trackers=None, record_samples=False, told=link.feed.append)


def test_nothing_is_read_while_a_group_trains(stores):
    run, of_worker = stores
    driver = Driver(run)
    log = log_of(of_worker, driver.begin())
    log.event("start")
    driver.poll()
    before = run.num_reads
    for step in range(1, 101):
        log.step({"step": step, "loss": 0.5})
        if step % 10 == 0:
            log.evaluation(step, 1, "validation", Metrics({"accuracy": 0.5}))
            log.event("save", step=step)
        driver.poll()
        assert driver.values()[-1] == step  # at once, also on an object store
    assert run.num_reads == before
    log.close("finished")
    driver.follower.look()
    assert driver.values() == list(range(1, 101))
    assert driver.values("evals.jsonl") == list(range(10, 101, 10))
    assert [row["kind"] for name, row in driver.rows if name == "events.jsonl"] == ["start", *["save"] * 10]


def test_a_resumed_run_reads_nothing_either(stores):
    run, of_worker = stores
    writer = JsonlWriter(Storage(run.root), "metrics.jsonl")
    writer.write({"step": 1})
    writer.close()
    driver = Driver(run)
    before = run.num_reads
    log = log_of(of_worker, driver.begin())
    log.step({"step": 2})
    driver.poll()
    assert driver.values() == [2] and run.num_reads == before


def test_lines_that_no_message_brought_are_read_at_the_groups_end(stores):
    run, of_worker = stores
    driver = Driver(run)
    for attempt in range(2):
        log = log_of(of_worker, driver.begin(), attempt)
        for step in range(3):
            log.step({"step": 10 * attempt + step})
            if step == 0:
                driver.poll()
        log.close("stopped")
        driver.follower.look()
    assert driver.values() == [0, 1, 2, 10, 11, 12]


@pytest.fixture
def after_a_kill(tmp_path: Path) -> tuple["Driver", CountingStore]:
    """The driver, which has heard of 20 steps, and an object store, which has none of them: a worker that is killed
    takes the lines with it that it has not uploaded."""
    run = CountingStore(str(tmp_path))
    driver = Driver(run)
    killed = log_of(CountingStore(run.root), driver.begin())
    for step in range(20):
        killed.step({"step": step})
    driver.poll()
    return driver, run


def test_a_new_group_after_lines_that_were_never_stored(after_a_kill):
    driver, run = after_a_kill
    driver.follower.look()
    for num_steps in (1, 30):  # shorter than what was lost, and longer
        log = log_of(CountingStore(run.root), driver.begin(), 1)
        for step in range(num_steps):
            log.step({"step": 100 * num_steps + step})
        log.close("stopped")  # before the driver has asked
        driver.follower.look()
    assert driver.values() == [*range(20), 100, *range(3000, 3030)]


def test_a_new_group_after_storage_failed_at_the_last_ones_end(after_a_kill, monkeypatch):
    driver, run = after_a_kill
    with monkeypatch.context() as failing:
        failing.setattr(CountingStore, "_info", lambda *_: (_ for _ in ()).throw(OSError(5, "503")))
        driver.follower.look()
    log = log_of(CountingStore(run.root), driver.begin(), 1)
    log.step({"step": 20})
    driver.poll()
    assert driver.values() == list(range(21))


def test_too_many_lines_for_the_feed_come_from_the_file(stores, monkeypatch):
    monkeypatch.setattr(log_feed, "MOST_BYTES", 500)
    monkeypatch.setattr(observer, "READ_EVERY_S", 0.0)
    run, of_worker = stores
    driver = Driver(run)
    log = log_of(of_worker, driver.begin())
    for step in range(50):
        log.step({"step": step})
    driver.poll()
    log.sync()
    driver.poll()
    log.step({"step": 50})
    driver.poll()
    assert driver.values() == list(range(51))


def test_an_answer_is_bounded(monkeypatch):
    monkeypatch.setattr(log_feed, "ANSWER_BYTES", 100)
    link = DriverLink("a")
    for i in range(10):
        link.feed.append("metrics.jsonl", 40 * i, b"x" * 39 + b"\n")
    link.feed.append("metrics.jsonl", 400, b"y" * 999 + b"\n")  # more than an answer's bytes: alone
    sizes, last = [], 0
    while lines := link.feed.after(last):
        sizes.append(len(lines))
        last = lines[-1].number
    assert sizes == [2, 2, 2, 2, 2, 1] and last == 11


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("segment_bytes", [SEGMENT_BYTES, 700])
def test_each_line_once_whatever_happens(stores, monkeypatch, segment_bytes, seed):
    """A group writes and dies, another process appends to the same log, messages are late, and too many lines."""
    for module in (segments, uploads):
        monkeypatch.setattr(module, "SEGMENT_BYTES", segment_bytes)
    monkeypatch.setattr(log_feed, "MOST_BYTES", 600)
    monkeypatch.setattr(log_feed, "ANSWER_BYTES", 200)
    monkeypatch.setattr(observer, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(GrowingObject, "begin_upload", GrowingObject.sync)  # else a dead worker's thread would continue
    run, of_worker = stores
    is_local = run.local_path() is not None
    chance, numbers = random.Random(seed), itertools.count()
    driver = Driver(run)
    for attempt in range(4):
        log = log_of(of_worker, driver.begin(), attempt)
        is_killed = not is_local and chance.random() < 0.5  # takes with it what it has not uploaded
        for _ in range(chance.randrange(40)):
            what = chance.random()
            if what < 0.4:
                log.step({"step": next(numbers)})
            elif what < 0.6:
                log.evaluation(next(numbers), 1, "validation", Metrics({}))
            elif what < 0.7:
                _append(run, {"step": next(numbers)})
            elif what < 0.8:
                log.sync()
            else:
                driver.poll()
        if not is_killed:
            log.close("stopped")
        driver.follower.look()
    told = Counter(driver.values() + driver.values("evals.jsonl"))
    stored = {row["step"] for name in ("metrics.jsonl", "evals.jsonl") for row in read_jsonl(run, name)}
    assert stored <= set(told)
    assert set(told.values()) <= {1}
    assert not is_local or set(told) == set(range(next(numbers)))


def _append(run: Storage, row: dict[str, Any]) -> None:
    """As another process does."""
    writer = JsonlWriter(type(run)(run.root), "evals.jsonl")
    writer.write(row)
    writer.close()
