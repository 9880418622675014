"""What a worker and its driver know of each other while a group trains."""

import threading

import pytest

from raytrain.training.driver_link import DriverLink, GroupStatus


def test_the_first_report_is_of_what_was_loaded() -> None:
    link = DriverLink("a")
    assert link.status == GroupStatus()
    link.stepped(40)
    assert (link.status.first_step, link.status.step, link.status.first_step_at_s) == (40, 40, None)
    link.stepped(41)
    assert link.status.first_step_at_s is not None
    assert link.status.step == 41


def test_moments_are_by_the_drivers_clock() -> None:
    ahead, true = DriverLink("a", clock_ahead_s=1000.0), DriverLink("a")
    assert true.now() - ahead.now() == pytest.approx(1000.0, abs=1.0)


def test_the_time_that_is_left() -> None:
    assert GroupStatus(first_step=10, step=10).remaining_s(100) is None
    assert GroupStatus(10, 11, 5.0, 5.0).remaining_s(100) == 0.0  # one step says nothing of the speed
    assert GroupStatus(10, 15, 5.0, 13.0).remaining_s(100) == pytest.approx(2.0 * 85)


def test_holders_are_waited_for_and_are_the_own_and_the_next_nodes() -> None:
    link, found = DriverLink("b"), []
    thread = threading.Thread(target=lambda: found.append(link.holders()))
    thread.start()
    link.give_holders({"a": "on-a", "b": "on-b", "c": "on-c"})
    thread.join(5)
    assert found == [("on-b", "on-c")]


def test_who_waits_for_holders_is_freed_at_the_groups_end() -> None:
    link = DriverLink("b")
    link.give_holders({})
    with pytest.raises(LookupError):
        link.holders()
