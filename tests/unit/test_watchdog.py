"""A group that gets nothing done is said, and then ended; one that only looks slow is not."""

import pytest

from raytrain.elastic import watchdog
from raytrain.elastic.watchdog import LONGEST_START_S, SAY_AFTER_S, Watchdog


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now_s = 0.0
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_silence_is_said_once_and_then_ends_the_group(clock: Clock) -> None:
    said: list[str] = []
    dog = Watchdog(1000.0, said.append)
    found = []
    for clock.now_s in range(1, 1010):
        found.append(dog.finds_hung(7.0) is not None)
    assert found == [False] * 1001 + [True] * 8
    assert len(said) == 1


def test_a_report_ends_the_silence(clock: Clock) -> None:
    dog = Watchdog(10.0, lambda text: None)
    for clock.now_s in range(100):
        assert not dog.finds_hung(1e9 + clock.now_s // 9)


def test_a_group_that_starts_has_more_time(clock: Clock) -> None:
    dog = Watchdog(10.0, lambda text: None)
    for clock.now_s in range(int(LONGEST_START_S) + 1):
        assert not dog.finds_hung(None)
    clock.now_s += 1
    assert dog.finds_hung(None)
    assert not dog.finds_hung(5.0)  # it was only slow


def test_the_next_group_starts_with_a_clean_slate(clock: Clock) -> None:
    dog = Watchdog(10.0, lambda text: None)
    dog.finds_hung(5.0)
    clock.now_s = 60.0
    dog.begin()
    assert not dog.finds_hung(5.0)


def test_null_is_never(clock: Clock) -> None:
    said: list[str] = []
    dog = Watchdog(None, said.append)
    dog.finds_hung(5.0)
    for clock.now_s in range(10 * int(SAY_AFTER_S)):
        assert not dog.finds_hung(5.0)
    assert said


def test_a_machine_that_was_paused(clock: Clock) -> None:
    dog = Watchdog(60.0, lambda text: None)
    dog.finds_hung(5.0)
    clock.now_s = 86_400.0
    assert not dog.finds_hung(5.0)
