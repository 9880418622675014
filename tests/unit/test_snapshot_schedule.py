"""P12: after which steps a snapshot is taken, whatever else is due at the same steps."""

import pytest

from raytrain.training.snapshot_schedule import SnapshotSchedule


def taken(every: int | None, steps: int, impossible: set[int], saved: dict[int, int] | None = None) -> list[int]:
    """The steps after which one is taken. `saved`: from which step on which checkpoint is written."""
    schedule, saved_step, found = SnapshotSchedule(every), 0, []
    for step in range(1, steps + 1):
        saved_step = (saved or {}).get(step, saved_step)
        if schedule.is_due(step, saved_step=saved_step, is_possible=step not in impossible):
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("every", "impossible", "saved", "expected"),
    [
        (None, set(), None, []),
        (5, set(), None, [5, 10, 15, 20]),
        (5, {5, 10, 15, 20}, None, [6, 11, 16]),  # a save or an evaluation at each of these steps
        (5, {5, 6, 7, 8}, None, [9, 10, 15, 20]),  # the last one is on its way for long
        (5, set(range(4, 14)), None, [14, 15, 20]),
        (5, {10}, {11: 10}, [5, 15, 20]),  # the checkpoint of step 10 is written before the next step
        (5, {10}, {13: 10}, [5, 11, 15, 20]),  # it takes longer
        (
            5,
            {*range(10, 17)},
            {17: 10},
            [5, 17, 20],
        ),  # step 15 became due meanwhile, which a checkpoint of 10 does not cover
        (5, {10, 11, 12}, {12: 4}, [5, 13, 15, 20]),  # one of an earlier step does not help
    ],
)
def test_what_is_due_is_taken_as_soon_as_it_can_be(
    every: int | None, impossible: set[int], saved: dict[int, int] | None, expected: list[int]
) -> None:
    assert taken(every, 20, impossible, saved) == expected


@pytest.mark.parametrize(("step_s", "told_at"), [(4.0, 16), (1.0, None), (1.5, 25)])
def test_one_that_is_late_is_told_of_once(step_s: float, told_at: int | None) -> None:
    """Overdue from step 5 to step 30, and then from step 35 on: for more than two intervals, and for 30 seconds."""
    schedule, told = SnapshotSchedule(5), {}
    for step in range(1, 41):
        schedule.is_due(step, saved_step=0, is_possible=step in (2, 3, 4, 30))
        if (since := schedule.late_since(step, now_s=step * step_s)) is not None:
            told[step] = since
    assert told == ({} if told_at is None else {told_at: 5})
