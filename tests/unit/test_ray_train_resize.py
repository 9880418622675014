"""`raytrain.GracefulResize` against a worker group that only says how it is. No Ray."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

import raytrain
from raytrain.runs import ray_train_resize
from raytrain.runs.ray_train_loop import ask_to_save, has_saved

FINE = SimpleNamespace(errors={}, finished=False)
FAILED = SimpleNamespace(errors={1: "killed"}, finished=False)


class Group:
    """Of two workers, whose status is that of `polls`, one after the other; the last one stays."""

    def __init__(self, *polls: Any, is_training: bool = True):
        self.polls, self.is_training = list(polls), is_training
        self.num_polls, self.asked = 0, 0

    def has_started(self) -> bool:
        return True

    def get_latest_poll_status(self) -> Any:
        return self.polls[0]

    def poll_status(self, timeout: float) -> Any:
        self.num_polls += 1
        return self.polls[min(self.num_polls, len(self.polls) - 1)]

    def answer(self, question: Any) -> list[bool]:
        """Workers that save until the third poll."""
        self.asked += question is ask_to_save
        return [self.is_training] * 2 if question is ask_to_save else [True, self.num_polls >= 3]


@pytest.fixture
def resize(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has a resize of a group announced; returns how long that took, seconds."""
    monkeypatch.setattr(ray_train_resize, "_ask", lambda group, question: group.answer(question))

    def announce(group: Any, timeout_s: float = 30.0) -> float:
        callback = raytrain.GracefulResize(timeout_s)
        callback.after_worker_group_start(group)
        began_at_s = time.monotonic()
        callback.before_controller_execute_resize_decision(None)
        return time.monotonic() - began_at_s

    return announce


def test_a_resize_waits_until_all_workers_have_saved(resize: Any) -> None:
    group = Group(FINE)
    resize(group)
    assert (group.asked, group.num_polls) == (1, 3)
    assert not has_saved()  # of this process, where nothing trains


def test_it_waits_for_nothing_that_will_not_come(resize: Any) -> None:
    for group in (Group(FAILED), Group(None), Group(SimpleNamespace(errors={}, finished=True))):
        resize(group)
        assert (group.asked, group.num_polls) == (0, 0)
    loading = Group(FINE, is_training=False)
    dying = Group(FINE, FAILED)
    assert resize(loading) + resize(dying) < 1.0
    assert (loading.num_polls, dying.num_polls) == (0, 1)


def test_a_save_that_hangs_is_not_waited_for_longer_than_that(resize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "answer", lambda self, question: [question is ask_to_save] * 2)
    assert 0.3 <= resize(Group(FINE), timeout_s=0.3) < 2.0


def test_what_goes_wrong_does_not_end_the_run(resize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(group: Any, question: Any) -> list[bool]:
        raise RuntimeError("a worker died just now")

    monkeypatch.setattr(ray_train_resize, "_ask", die)
    assert resize(Group(FINE)) < 1.0
    callback = raytrain.GracefulResize()
    callback.before_controller_execute_resize_decision(None)  # before there is a group
