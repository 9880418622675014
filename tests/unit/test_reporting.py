"""What Ray Train is told: the n-th report of every worker is of the same step, and no commit that lasts is left out."""

import json
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.training import reporting
from raytrain.training.agreement import StepSums
from raytrain.training.reporting import Reporting, pointer_name


class Queue:
    """Ray Train's end: one report at a time, taken when the test says so."""

    def __init__(self) -> None:
        self.waiting: tuple[dict[str, Any], str | None] | None = None
        self.taken: list[tuple[dict[str, Any], str | None]] = []
        self.pointers: dict[str, dict[str, Any]] = {}

    @property
    def is_free(self) -> bool:
        return self.waiting is None

    def report(self, metrics: dict[str, Any], checkpoint: str | None) -> None:
        assert self.is_free, "a report would have been waited for"
        self.waiting = metrics, checkpoint

    def write_pointer(self, name: str, content: bytes) -> None:
        self.pointers[name] = json.loads(content)

    def flush(self) -> None:
        if self.waiting is not None:
            self.taken.append(self.waiting)
            self.waiting = None


class Group:
    """Two workers that end a step together."""

    def __init__(self, run: Storage):
        self.queues = [Queue(), Queue()]
        self.workers = [Reporting(queue, World(rank, 2), run) for rank, queue in enumerate(self.queues)]

    def step(self, step: int) -> None:
        sums = self.agree([StepSums(**worker.offer()) for worker in self.workers])
        for worker in self.workers:
            worker.advance(sums, {"step": step})

    @staticmethod
    def agree(parts: list[StepSums]) -> StepSums:
        return StepSums(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(StepSums)})

    def finish(self) -> None:
        """Each in a thread, as each is in a process of its own."""
        barrier, parts = threading.Barrier(2), []

        def agree(own: StepSums) -> StepSums:
            parts.append(own)
            barrier.wait(5)
            sums = self.agree(parts[-2:])
            barrier.wait(5)
            return sums

        threads = [threading.Thread(target=worker.finish, args=(agree,)) for worker in self.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

    def name(self, step: int) -> str:
        return pointer_name(step, self.workers[0]._token)

    def reported(self) -> list[list[Any]]:
        """(step, pointer) of each report, by worker."""
        return [[(metrics.get("step"), pointer) for metrics, pointer in queue.taken] for queue in self.queues]


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    monkeypatch.setattr(reporting, "REPORT_EVERY_S", 0.0)
    return Group(Storage(str(tmp_path)))


def test_a_worker_whose_report_waits_holds_the_others_back(group: Group) -> None:
    group.step(1)
    group.queues[0].flush()  # the controller has taken that of rank 0 alone
    group.step(2)
    for queue in group.queues:
        queue.flush()
    group.step(3)
    for queue in group.queues:
        queue.flush()
    assert group.reported() == [[(1, None), (3, None)]] * 2


def test_a_commit_is_reported_by_rank_0_with_the_next_step(group: Group) -> None:
    group.workers[0].committed(500)
    group.step(507)
    for queue in group.queues:
        queue.flush()
    assert group.reported() == [[(507, group.name(500))], [(507, None)]]
    pointer = group.queues[0].pointers[group.name(500)]
    assert pointer["step"] == 500
    assert pointer["manifest"].endswith("checkpoints/step_00000500-0000/manifest.json")


def test_of_commits_that_come_too_fast_the_last_is_reported(group: Group) -> None:
    for step in (5, 10, 15):
        group.workers[0].committed(step)
    group.step(15)
    group.finish()
    pointers = [pointer for _, pointer in group.reported()[0]]
    assert pointers == [group.name(5), group.name(15)]
    assert set(group.queues[0].pointers) == set(pointers)  # no folder that nobody deletes


def test_the_last_commit_is_reported_though_an_earlier_one_still_waits(group: Group) -> None:
    group.step(12)
    group.workers[0].committed(10)  # no later step reports it: the queue is full
    group.step(15)
    group.workers[0].committed(15)
    group.finish()
    assert [len(reports) for reports in group.reported()] == [3, 3]
    pointers = [pointer for _, pointer in group.reported()[0]]
    assert pointers == [None, group.name(10), group.name(15)]
    assert set(group.queues[0].pointers) == set(pointers[1:])


def test_metrics_are_reported_at_an_interval(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    group.step(1)
    monkeypatch.setattr(reporting, "REPORT_EVERY_S", 3600.0)
    for step in (2, 3, 4):
        for queue in group.queues:
            queue.flush()
        group.step(step)
    for queue in group.queues:
        queue.flush()
    assert [step for step, _ in group.reported()[0]] == [1, 2]


def test_evaluations_are_part_of_it(group: Group) -> None:
    for worker in group.workers:
        worker.evaluated("validation", {"accuracy": 0.5})
    group.step(1)
    assert group.queues[0].waiting == ({"validation/accuracy": 0.5, "step": 1}, None)


def test_a_pointer_that_cannot_be_written_does_not_end_the_run(group: Group) -> None:
    def refuse(name: str, content: bytes) -> None:
        raise OSError("no space left")

    group.queues[0].write_pointer = refuse  # type: ignore[method-assign]
    group.workers[0].committed(5)
    group.step(5)
    assert group.queues[0].waiting == ({"step": 5}, None)
