"""Worker processes between a sweep's trials: lent, taken back, and ended in time. Pure; Ray's part is in tests/ray."""

import pytest

from raytrain.tuning.pool import idle_workers as module
from raytrain.tuning.pool.idle_workers import Depot

CPU = {"CPU": 1.0}


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def depot(ended: list[str]) -> Depot:
    names = iter(f"process {number}" for number in range(99))
    return Depot(lambda node_id, resources: f"{next(names)} on {node_id}", ended.append)


def test_what_is_given_back_is_lent_again(depot: Depot, ended: list[str]) -> None:
    one, two = depot.lend("a", "n1", CPU), depot.lend("a", "n2", CPU)
    for number, _, _ in (one, two):
        depot.take_back(number, is_fit=True)
    assert sorted(depot.idle) == ["n1", "n2"]
    assert depot.lend("b", "n2", CPU) == two
    assert depot.lend("c", "n2", CPU) == one, "one that is ready elsewhere, when another trial was first"
    assert depot.idle == []
    assert depot.lend("d", "n2", CPU) not in (one, two)
    depot.take_back(one[0], is_fit=False)
    assert ended == [one[2]]
    assert depot.nodes == ["n2", "n2"]


def test_nothing_is_held_for_long(depot: Depot, ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wants, and what a trial that is over keeps; not what a live trial has."""
    monkeypatch.setattr(module, "IDLE_S", -1.0)
    monkeypatch.setattr(module, "RETURN_S", -1.0)
    idle, kept, live = (depot.lend(trial, "n1", CPU) for trial in ("idle", "over", "live"))
    depot.take_back(idle[0], is_fit=True)
    depot.left("over")
    depot.tend()
    assert ended == [idle[2], kept[2]]
    depot.take_back(kept[0], is_fit=True)
    assert depot.idle == [], "a process that was ended does not come back"
    depot.close()
    assert ended == [idle[2], kept[2], live[2]]


def test_idle_processes_of_a_lost_node_are_not_lent(depot: Depot, ended: list[str]) -> None:
    number, _, actor = depot.lend("a", "gone", CPU)
    depot.take_back(number, is_fit=True)
    depot.forget_lost({"n1"})
    assert ended == [actor]
    assert depot.idle == []
