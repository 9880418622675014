"""When evaluations and saves are due, and what counts as better."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raytrain.steps.timetable import Timetable
from raytrain.training.progress import Progress, is_better


def test_due_times_follow_the_step_alone() -> None:
    table = Timetable(
        steps_per_epoch=10, total_steps=25, eval_every_steps=None, save_every_steps=7, has_validation=True
    )
    assert [s for s in range(26) if table.is_evaluation_due(s)] == [10, 20, 25]
    assert [s for s in range(26) if table.is_save_due(s)] == [7, 14, 21, 25]
    assert [table.next_evaluation(s) for s in (0, 9, 10, 24)] == [10, 10, 20, 25]
    assert table.place_of(10) == (1, 0)


PARTS = [0.1, 0.25, 0.33333, 0.5, 1.0, 1.5, 2.0]
THIRDS = ((2, 3), (1, 3), (1, 6), (2, 7), (5, 9), (7, 9), (8, 9))
PARTS += [round(k / n, digits) for k, n in THIRDS for digits in (5, 6, 7)]


@given(st.integers(1, 5000), st.sampled_from(PARTS), st.integers(1, 3))
@example(3000, 0.666667, 2)
def test_evaluations_in_epochs(steps_per_epoch: int, every: float, epochs: int) -> None:
    """After the same share of the data whatever the batch, and never before it; the end of an epoch is one of them when
    the shares make it up."""
    total = epochs * steps_per_epoch
    table = Timetable(steps_per_epoch, total, every * steps_per_epoch, 10**9, has_validation=True)
    due = [step for step in range(total + 1) if table.is_evaluation_due(step)]
    for number in range(1, int(epochs / every) + 1):
        share = number * every
        assert any(share - 1e-5 * number <= step / steps_per_epoch < share + 1 / steps_per_epoch for step in due)
    assert due[-1] == total
    if every in (0.25, 0.33333, 0.5, 1.0):
        assert set(range(steps_per_epoch, total + 1, steps_per_epoch)) <= set(due)
    upcoming, now = [], 0
    while now < total:  # as the data pipeline walks
        now = table.next_evaluation(now)
        upcoming.append(now)
    assert upcoming == [step for step in due if step > 0]


@pytest.mark.parametrize("every", [None, 7, 2_000_000])
def test_whole_steps_are_exact_in_long_epochs(every: int | None) -> None:
    table = Timetable(2_000_000, 10_000_000, every, 10**9, has_validation=True)
    steps = every or 2_000_000
    for number in (1, 2, 3):
        assert table.is_evaluation_due(number * steps)
        assert not table.is_evaluation_due(number * steps - 1)
        assert table.next_evaluation(number * steps - 1) == number * steps


def test_no_validation_means_no_evaluation() -> None:
    table = Timetable(10, 25, 5, 7, has_validation=False)
    assert not any(table.is_evaluation_due(s) for s in range(26))


@pytest.mark.parametrize(
    ("value", "best", "mode", "delta", "expected"),
    [
        (0.5, None, "max", 0.0, True),
        (0.5, 0.5, "max", 0.0, False),
        (0.52, 0.5, "max", 0.05, False),
        (0.4, 0.5, "min", 0.0, True),
        (0.48, 0.5, "min", 0.05, False),
        (math.nan, None, "max", 0.0, False),
    ],
)
def test_is_better(value: float, best: float | None, mode: str, delta: float, expected: bool) -> None:
    assert is_better(value, best, mode, delta) is expected


def test_updates_leave_out_skipped_steps() -> None:
    """P8: the schedule follows applied updates."""
    progress = Progress(step=10, skipped_steps=3)
    assert progress.updates == 7
    assert Progress.from_dict(progress.to_dict()) == progress
