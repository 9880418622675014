"""Worker processes between a sweep's trials: lent, taken back, and ended in time. Pure; Ray's part is in tests/ray."""

import pytest

from raytrain.tuning import depot as module
from raytrain.tuning.depot import Depot

CPU = {"CPU": 1.0}


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def depot(ended: list[str]) -> Depot:
    names = iter(f"process {number}" for number in range(99))
    return Depot(lambda node_id, resources: f"{next(names)} on {node_id}", ended.append)


def test_what_is_given_back_is_lent_again(depot: Depot, ended: list[str]) -> None:
    number, actor = depot.lend("a", "n1", CPU)
    depot.take_back(number, is_fit=True)
    assert depot.idle == ["n1"]
    assert depot.lend("b", "n2", CPU)[1] != actor, "a process can't go to another node"
    assert depot.lend("b", "n1", CPU) == (number, actor)
    assert depot.idle == []
    depot.take_back(number, is_fit=False)
    assert ended == [actor]
    assert depot.nodes == ["n2"]


def test_nothing_is_held_for_long(depot: Depot, ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wants, and what a trial that is over keeps; not what a live trial has."""
    monkeypatch.setattr(module, "IDLE_S", -1.0)
    monkeypatch.setattr(module, "RETURN_S", -1.0)
    idle, kept, live = (depot.lend(trial, "n1", CPU) for trial in ("idle", "over", "live"))
    depot.take_back(idle[0], is_fit=True)
    depot.left("over")
    depot.tend()
    assert ended == [idle[1], kept[1]]
    depot.take_back(kept[0], is_fit=True)
    assert depot.idle == [], "a process that was ended does not come back"
    depot.close()
    assert ended == [idle[1], kept[1], live[1]]


def test_idle_processes_of_a_lost_node_are_not_lent(depot: Depot, ended: list[str]) -> None:
    number, actor = depot.lend("a", "gone", CPU)
    depot.take_back(number, is_fit=True)
    depot.forget_lost({"n1"})
    assert ended == [actor]
    assert depot.idle == []
