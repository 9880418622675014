"""When evaluations and saves are due, and what counts as better."""

import math

import pytest

from raytrain.timetable import Timetable
from raytrain.training.state import Progress, is_better


def test_due_times_follow_the_step_alone() -> None:
    table = Timetable(
        steps_per_epoch=10, total_steps=25, eval_every_steps=None, save_every_steps=7, has_validation=True
    )
    assert [s for s in range(26) if table.is_evaluation_due(s)] == [10, 20, 25]
    assert [s for s in range(26) if table.is_save_due(s)] == [7, 14, 21, 25]
    assert [table.next_evaluation(s) for s in (0, 9, 10, 24)] == [10, 10, 20, 25]
    assert table.place_of(10) == (1, 0)


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
