"""The learning rate as a function of applied updates: pure arithmetic, without Ray or torch."""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from raytrain.config import OptimizerConfig, ScheduleConfig, ScheduleKind
from raytrain.errors import ConfigError
from raytrain.tasks.imported import check_source, file_of, import_function
from raytrain.tasks.user_code import told

OPTION = "training.schedule.target"


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
            target    p * target(t)

    Args:
        update: Updates applied before this one, so the first is 0. A step that was skipped does not count.
        total_updates: Updates of the whole run. Past it the rate stays at the floor.
        optimizer: Peak rate.
        schedule: Shape.

    Raises ConfigError when a function of the user's fails, or does not return a number from 0 on.
    """
    peak, warmup = optimizer.learning_rate, warmup_updates(total_updates, schedule)
    if update < warmup:
        return peak * (update + 1) / warmup
    if schedule.kind is ScheduleKind.CONSTANT:
        return peak
    floor = schedule.min_ratio * peak
    if schedule.target is not None:
        share = max(0, update - warmup) / max(1, total_updates - warmup)
        return peak * fraction_at(min(share, math.nextafter(1.0, 0.0)), schedule)
    progress = min(1.0, (update - warmup) / max(1, total_updates - warmup))
    if schedule.kind is ScheduleKind.COSINE:
        return floor + (peak - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0
    return peak - (peak - floor) * progress


def fraction_at(share: float, schedule: ScheduleConfig) -> float:
    """The fraction of the peak that the user's function gives. Raises ConfigError."""
    assert schedule.target is not None
    function = _function(schedule.target, schedule.source)
    try:
        fraction = function(share)
    except Exception as error:
        place = told(error, file_of(schedule.target, OPTION))
        raise ConfigError(f"{OPTION} {schedule.target}({share:g}) failed: {place}") from error
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= sys.float_info.max:
        raise ConfigError(
            f"{OPTION} {schedule.target}({share:g}) returned {fraction!r}; return the fraction of the peak, 0 or more"
        )
    return float(fraction)


@functools.cache
def _function(target: str, source: str | None) -> Callable[[float], Any]:
    function: Callable[[float], Any] = import_function(target, OPTION)
    check_source(target, source, OPTION, "training.schedule.source")
    return function


def try_schedule(schedule: ScheduleConfig) -> None:
    """Call a function of the user's at many places, twice. Raises ConfigError: each worker calls it for itself, so the
    place alone has to decide."""
    if schedule.target is None:
        return
    places = [*(number / 100 for number in range(100)), math.nextafter(1.0, 0.0)]
    first, second = ([fraction_at(place, schedule) for place in places] for _ in range(2))
    for place, one, other in zip(places, first, second, strict=True):
        if one != other:
            raise ConfigError(
                f"{OPTION} {schedule.target}({place:g}) returned {one:g}, and {other:g} when it was called again; it "
                "must depend on its argument alone, since each worker calls it for itself"
            )
