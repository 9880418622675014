"""The learning rate as a function of applied updates: pure arithmetic, without Ray or torch."""

import math

from raytrain.config import OptimizerConfig, ScheduleConfig, ScheduleKind


def warmup_updates(total_updates: int, schedule: ScheduleConfig) -> int:
    """Updates of the warm-up: `schedule.warmup_steps`, or else `schedule.warmup_ratio` of all, rounded up."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    # The subtraction keeps 0.06 * 50 == 3.0000000000000004 from becoming 4.
    return max(0, math.ceil(schedule.warmup_ratio * total_updates - 1e-9))


def learning_rate_at(update: int, total_updates: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The learning rate of one update.

    With `w` warm-up updates, `n` updates in all, peak `p` and floor `m = min_ratio * p`:

        update < w:  p * (update + 1) / w           never 0, and p is reached by the last warm-up update
        else:        t = (update - w) / (n - w)     0 at the first update after warm-up, below 1 at the last one
            linear    p - (p - m) * t
            cosine    m + (p - m) * (1 + cos(pi * t)) / 2
            constant  p

    Args:
        update: Updates applied before this one, so the first is 0. A step that was skipped does not count.
        total_updates: Updates of the whole run. Past it the rate stays at the floor.
        optimizer: Peak rate.
        schedule: Shape.
    """
    peak, warmup = optimizer.learning_rate, warmup_updates(total_updates, schedule)
    if update < warmup:
        return peak * (update + 1) / warmup
    if schedule.kind is ScheduleKind.CONSTANT:
        return peak
    floor = schedule.min_ratio * peak
    progress = min(1.0, (update - warmup) / max(1, total_updates - warmup))
    if schedule.kind is ScheduleKind.COSINE:
        return floor + (peak - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0
    return peak - (peak - floor) * progress
