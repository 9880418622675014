"""The learning rate: pure arithmetic over applied updates."""

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain.config import OptimizerConfig, ScheduleConfig, ScheduleKind
from raytrain.errors import ConfigError
from raytrain.training.schedule import learning_rate_at, try_schedule, warmup_updates

PEAK = OptimizerConfig(learning_rate=2.0)


def _rates(total: int, **schedule: object) -> list[float]:
    config = ScheduleConfig(**schedule)
    return [learning_rate_at(update, total, PEAK, config) for update in range(total)]


def test_linear_climbs_then_falls() -> None:
    rates = _rates(10, kind="linear", warmup_steps=2, min_ratio=0.0)
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])


def test_cosine_passes_the_middle_at_half_the_way() -> None:
    rates = _rates(8, kind="cosine", warmup_steps=0, min_ratio=0.5)
    assert rates[0] == 2.0
    assert rates[4] == pytest.approx(1.5)


def test_constant_stays() -> None:
    assert _rates(4, kind="constant", warmup_steps=1) == [2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(("total", "ratio", "expected"), [(50, 0.06, 3), (100, 0.06, 6), (10, 0.01, 1), (10, 0.0, 0)])
def test_warmup_ratio_is_rounded_up(total: int, ratio: float, expected: int) -> None:
    assert warmup_updates(total, ScheduleConfig(warmup_ratio=ratio)) == expected


def test_warmup_steps_override_the_ratio_even_at_zero() -> None:
    assert warmup_updates(100, ScheduleConfig(warmup_ratio=0.5, warmup_steps=0)) == 0


def test_past_the_end_the_rate_stays_at_the_floor() -> None:
    schedule = ScheduleConfig(kind="linear", warmup_steps=0, min_ratio=0.1)
    assert learning_rate_at(99, 10, PEAK, schedule) == pytest.approx(0.2)


@given(
    kind=st.sampled_from(list(ScheduleKind)),
    total=st.integers(1, 200),
    warmup=st.integers(0, 250),
    min_ratio=st.floats(0.0, 1.0),
)
def test_rates_are_bounded_and_have_one_peak(kind: ScheduleKind, total: int, warmup: int, min_ratio: float) -> None:
    rates = _rates(total, kind=kind, warmup_steps=warmup, min_ratio=min_ratio)
    assert all(0.0 < rate <= 2.0 + 1e-12 for rate in rates), "the first update must do something"
    climb, fall = rates[:warmup], rates[warmup:]
    assert climb == sorted(climb)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(fall))
    assert all(rate >= 2.0 * min_ratio - 1e-9 for rate in fall)


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("def drop(share):\n    return 1.0 if share < 0.5 else 0.1", "def odd(share):\n    return -share")
    lines += ("def bad(share):\n    return 1 / (share - 0.5) ** 2",)
    lines += ("def late(share):\n    return 1.0 if share < 0.995 else -1.0", "def huge(share):\n    return 10**400")
    lines += ("calls = []\n\ndef counts(share):\n    calls.append(share)\n    return len(calls)",)
    (tmp_path / "rates_of_mine.py").write_text("\n\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rates = _rates(6, target="rates_of_mine:drop", warmup_steps=2)
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 0.2, 0.2])
    drop = ScheduleConfig(target="rates_of_mine:drop", warmup_steps=2)
    assert learning_rate_at(99, 6, PEAK, drop) == pytest.approx(0.2), "past the end too"
    try_schedule(drop)
    for name, said in (
        ("odd", r"odd\(0.01\) returned -0.01; return the"),
        ("late", r"late\(1\) returned -1.0; return the"),
        ("huge", r"huge\(0\) returned 10+; return the"),
        ("counts", r"counts\(0\) returned 1, and 102 when it was called again"),
        ("bad", r"bad\(0.5\) failed: ZeroDivisionError"),
    ):
        with pytest.raises(ConfigError, match=f"training.schedule.target rates_of_mine:{said}"):
            try_schedule(ScheduleConfig(target=f"rates_of_mine:{name}"))
    with pytest.raises(ValidationError, match="training.schedule.kind has no effect beside training.schedule.target"):
        ScheduleConfig(target="rates_of_mine:drop", kind="cosine")
