"""Worker processes between a sweep's trials: lent, taken back, and ended in time. Pure; Ray's part is in tests/ray."""

import pytest

from raytrain.tuning.pool import idle_workers as module
from raytrain.tuning.pool.idle_workers import IdleWorkers

CPU = {"CPU": 1.0}


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def idle_workers(ended: list[str]) -> IdleWorkers:
    names = iter(f"process {number}" for number in range(99))
    return IdleWorkers(lambda node_id, resources: f"{next(names)} on {node_id}", ended.append)


def test_what_is_given_back_is_lent_again(idle_workers: IdleWorkers, ended: list[str]) -> None:
    one, two = idle_workers.lend("a", "n1", CPU), idle_workers.lend("a", "n2", CPU)
    for number, _, _ in (one, two):
        idle_workers.take_back(number, is_fit=True)
    assert sorted(idle_workers.idle) == ["n1", "n2"]
    assert idle_workers.lend("b", "n2", CPU) == two
    assert idle_workers.lend("c", "n2", CPU) == one, "one that is ready elsewhere, when another trial was first"
    assert idle_workers.idle == []
    assert idle_workers.lend("d", "n2", CPU) not in (one, two)
    idle_workers.take_back(one[0], is_fit=False)
    assert ended == [one[2]]
    assert idle_workers.nodes == ["n2", "n2"]


def test_nothing_is_held_for_long(idle_workers: IdleWorkers, ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wants, and what a trial that is over keeps; not what a live trial has."""
    monkeypatch.setattr(module, "IDLE_S", -1.0)
    monkeypatch.setattr(module, "RETURN_S", -1.0)
    idle, kept, live = (idle_workers.lend(trial, "n1", CPU) for trial in ("idle", "over", "live"))
    idle_workers.take_back(idle[0], is_fit=True)
    idle_workers.left("over")
    idle_workers.tend()
    assert ended == [idle[2], kept[2]]
    idle_workers.take_back(kept[0], is_fit=True)
    assert idle_workers.idle == [], "a process that was ended does not come back"
    idle_workers.close()
    assert ended == [idle[2], kept[2], live[2]]


def test_idle_processes_of_a_lost_node_are_not_lent(idle_workers: IdleWorkers, ended: list[str]) -> None:
    number, _, actor = idle_workers.lend("a", "gone", CPU)
    idle_workers.take_back(number, is_fit=True)
    idle_workers.forget_lost({"n1"})
    assert ended == [actor]
    assert idle_workers.idle == []
