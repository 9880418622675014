"""Where the worker-seconds went: every one in one class."""

from typing import Any

import pytest

from raytrain.reports.goodput import StepTimes, goodput


def change(kind: str, attempt: int, left_at_s: float, **phases: float) -> dict[str, Any]:
    """The line of a group's first step."""
    names = ("detect_s", "save_s", "wait_s", "regroup_s", "load_s", "first_step_s")
    seconds = {name: phases.get(name, 0.0) for name in names}
    moments = {"left_at_s": left_at_s, "started_at_s": left_at_s + seconds["wait_s"]}
    return {"kind": kind, "attempt": attempt, "time": 0.0, **seconds, **moments}


def steps(attempt: int, first: int, count: int, **seconds: float) -> list[dict[str, Any]]:
    idle = {"data_wait_s": 0.0, "checkpoint_s": 0.0, "evaluation_s": 0.0, "step_s": 1.0, **seconds}
    return [{"step": step, "attempt": attempt, **idle} for step in range(first, first + count)]


def start(attempt: int, entered_at_s: float, world_size: int) -> dict[str, Any]:
    fields = {"time": entered_at_s, "entered_at_s": entered_at_s, "world_size": world_size}
    return {"kind": "start", "attempt": attempt, **fields}


def finish(attempt: int, time_s: float) -> dict[str, Any]:
    return {
        "kind": "finish",
        "attempt": attempt,
        "time": time_s,
        "checkpoint_s": 2.0,
        "evaluation_s": 0.0,
        "measure_s": 3.0,
    }


def test_an_undisturbed_run() -> None:
    """10 s of preparation, 20 to regroup and load, ten steps of a second with 0.2 s for data, 5 s at the end."""
    events = [
        start(0, 125.0, 1),
        change("begin", 0, 110.0, detect_s=10.0, regroup_s=15.0, load_s=5.0, first_step_s=1.5),
        finish(0, 145.5),
    ]
    account = goodput(events, steps(0, 1, 10, data_wait_s=0.2))
    assert account["worker_seconds"] == pytest.approx(45.5)
    expected = {"prepare": 10, "regroup": 15, "load": 5, "first_step": 0.5, "useful": 8, "data_wait": 2}
    expected |= {"checkpoint": 2, "evaluation": 3, "other": 0}
    assert {name: account["classes"][name] for name in expected} == pytest.approx(expected)
    assert account["goodput"] == pytest.approx(11 / 45.5, abs=1e-4)


def test_a_crash_and_a_resize() -> None:
    """Two workers do steps 1-10 and crash; one redoes 6-10 and goes on to 12; then two again."""
    events = [
        start(0, 100.0, 2),
        change("begin", 0, 100.0, first_step_s=1.0),
        start(1, 120.0, 1),
        change("failure", 1, 115.0, detect_s=5.0, wait_s=2.0, regroup_s=3.0, first_step_s=1.0),
        {"kind": "finish", "attempt": 1, "time": 127.0},
        start(2, 131.0, 2),
        change("resize", 2, 128.5, detect_s=99.0, save_s=1.0, wait_s=1.0, regroup_s=3.0, first_step_s=1.0),
        finish(2, 142.5),
    ]
    rows = steps(0, 1, 10) + steps(1, 6, 7) + steps(2, 13, 5)
    account = goodput(events, rows)
    classes = account["classes"]
    assert account["worker_seconds"] == pytest.approx(2 * 15 + 13.5 + 2 * 14)
    assert classes["redone"] == pytest.approx(2 * 5)
    assert classes["useful"] == pytest.approx(2 * 5 + 7 + 2 * 5)
    assert classes["detect"] == pytest.approx(2 * 5)  # of the failure; a resize's detection is spent on steps
    assert classes["waiting"] == pytest.approx(2 + 2 * 1)
    assert classes["leave"] == pytest.approx(1.5)
    assert classes["other"] == pytest.approx(2 * (14 - 1 - 3 - 5 - 5))
    assert sum(classes.values()) == pytest.approx(account["worker_seconds"], rel=0.01)


def test_steps_that_were_taken_back_are_not_useful_before_they_are_done_again() -> None:
    times = StepTimes(steps(0, 1, 10) + steps(1, 4, 2))
    assert times.attempts[0].useful_s == pytest.approx(3)
    assert times.attempts[0].redone_s == pytest.approx(7)
    assert times.attempts[1].useful_s == pytest.approx(2)
    for row in steps(1, 6, 5):
        times.add(row)
    assert (times.attempts[0].redone_s, times.attempts[1].useful_s) == pytest.approx((7, 7))


def test_a_group_that_never_stepped_is_lost_time() -> None:
    events = [
        start(0, 100.0, 3),
        start(1, 120.0, 1),
        change("failure", 1, 110.0, wait_s=1.0, regroup_s=9.0, first_step_s=1.0),
        finish(1, 127.0),
    ]
    account = goodput(events, steps(1, 1, 1))
    assert account["classes"]["lost"] == pytest.approx(3 * 10)


def test_the_time_between_two_commands_is_nobodys() -> None:
    events = [
        start(0, 100.0, 1),
        change("begin", 0, 100.0, first_step_s=1.0),
        {"kind": "checkpoint", "attempt": 0, "time": 105.0, "step": 5},
        start(1, 9000.0, 1),
        change("begin", 1, 9000.0, first_step_s=1.0),
        finish(1, 9010.0),
    ]
    account = goodput(events, steps(0, 1, 5) + steps(1, 6, 5))
    assert account["worker_seconds"] == pytest.approx(15.0)


def test_nothing_trained_is_nothing() -> None:
    assert goodput([], []) == {}
