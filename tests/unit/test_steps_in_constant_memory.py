"""A run's steps: which lines count, and that reading them takes as much memory for a long run as for a short one."""

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.config.io import dump_config
from raytrain.planning.calibration import find_calibration
from raytrain.reports import goodput as goodput_module
from raytrain.reports.curves import read_run
from raytrain.reports.goodput import StepTimes, goodput
from raytrain.reports.steps import MOST_ROWS, StepSample
from raytrain.runs.folder import read_run_config
from raytrain.runs.preflight import resolve
from raytrain.storage import Storage
from raytrain.training.records import iterate_jsonl
from raytrain.tuning.report import segments_of
from tests.running import tiny_run

FEW = settings(max_examples=80, deadline=None)


def line(step: int, attempt: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, "step_s": 0.5, "data_wait_s": 0.1, "world_size": 2, **more}


def places(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["step"], row["attempt"]) for row in rows]


def lines(*ranges: tuple[int, int]) -> list[dict[str, Any]]:
    """Each attempt's steps, from the first to the last."""
    return [line(step, i, step_s=0.01 * step) for i, (a, b) in enumerate(ranges) for step in range(a, b + 1)]


class TestWhichLinesCount:
    def test_the_highest_attempt_counts_in_step_order(self) -> None:
        sample = StepSample(lines((1, 4), (3, 5)))
        assert places(sample.rows) == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
        assert (sample.num_redone, sample.restarts, sample.last["step"]) == (2, [3], 5)

    def test_what_a_crash_took_back_does_not_count(self) -> None:
        sample = StepSample(lines((1, 4), (2, 2)))  # it has not come to 3 and 4 again yet
        assert places(sample.rows) == [(1, 0), (2, 1)]
        assert (sample.num_redone, sample.last["step"]) == (3, 2)

    def test_order_in_the_file_does_not_matter(self) -> None:
        assert places(StepSample([line(2, 3), line(2, 1)]).rows) == [(2, 3)]

    def test_of_equal_attempts_the_later_line_counts(self) -> None:
        assert StepSample([line(1, 0, loss=1), line(1, 0, loss=2)]).rows == [line(1, 0, loss=2)]

    def test_lines_without_a_step_are_left_out(self) -> None:
        sample = StepSample([{"attempt": 0}])
        assert (sample.rows, sample.num_redone, sample.world_sizes) == ([], 0, [])


attempts = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=6)


@FEW
@given(attempts, st.integers(4, 200))
def test_a_sample_is_of_what_counts(begun: list[tuple[int, int]], most: int) -> None:
    """Compared with all lines at once: a step counts unless a later attempt began at or before it."""
    ranges = [(first, first + count) for first, count in begun]
    rows = lines(*ranges)
    kept = [row for row in rows if all(row["step"] < first for first, _ in ranges[row["attempt"] + 1 :])]
    sample = StepSample(rows, most=most)
    assert set(places(sample.rows)) <= set(places(kept)) and len(sample.rows) <= most + 1
    if len(rows) <= most:
        assert places(sample.rows) == sorted(places(kept))
    assert sample.last == max(kept, key=lambda row: row["step"])
    assert sample.num_redone == len(rows) - len(kept)
    times = StepTimes(rows)
    assert times.counted_s == pytest.approx(sum(row["step_s"] for row in kept))
    useful_s = sum(of.useful_s for of in times.attempts.values())
    assert useful_s == pytest.approx(sum(row["step_s"] - row["data_wait_s"] for row in kept))
    redone_s = sum(of.redone_s for of in times.attempts.values())
    assert useful_s + redone_s == pytest.approx(sum(row["step_s"] - row["data_wait_s"] for row in rows))


def test_wide_bins_take_back_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [line(step, attempt) for attempt, (a, b) in enumerate([(1, 1000), (778, 1200)]) for step in range(a, b + 1)]
    exact = StepTimes(rows)
    monkeypatch.setattr(goodput_module, "MOST_BINS", 16)
    rough = StepTimes(rows)
    for attempt in (0, 1):
        assert rough.attempts[attempt].useful_s == pytest.approx(exact.attempts[attempt].useful_s)
        assert rough.attempts[attempt].redone_s == pytest.approx(exact.attempts[attempt].redone_s)
    assert rough.counted_s == pytest.approx(exact.counted_s) == pytest.approx(600)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Storage]:
    """Two runs, one four times as long as the other, each resumed once."""
    folder = tmp_path_factory.mktemp("runs")
    storages = []
    for num_steps in (10_000, 40_000):
        config = resolve(tiny_run(folder, f"run{num_steps}"))
        run = folder / "runs" / config.name
        run.mkdir(parents=True)
        with open(run / "metrics.jsonl", "w") as file:
            for attempt, (first, last) in enumerate([(1, num_steps // 2), (num_steps // 2 - 99, num_steps)]):
                for step in range(first, last + 1):
                    row = {"loss": 0.5, "lr": 1e-4, "samples_seen": 8 * step, "tokens_seen": 99 * step, "padding": 0.1}
                    file.write(json.dumps(line(step, attempt, **row)) + "\n")
        (run / "config.yaml").write_text(dump_config(config))
        (run / "plan.json").write_text(json.dumps({"use_gpu": False}))
        storages.append(Storage(str(run)))
    return storages


READERS: dict[str, Callable[[Storage], Any]] = {
    "report": read_run,
    "goodput": lambda run: goodput([], iterate_jsonl(run, "metrics.jsonl")),
    "calibration": lambda run: find_calibration(read_run_config(run), use_gpu=False),
    "sweep report": lambda run: segments_of(run, "trial"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_long_run_takes_no_more_memory(runs: list[Storage], reader: str) -> None:
    """10 million steps are 3 GB of lines, which the driver once held at the start and at the end of a command."""
    peaks = []
    for run in runs:
        tracemalloc.start()
        READERS[reader](run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + (1 << 20) and peaks[1] < 16 << 20


def test_what_is_read_of_a_long_run(runs: list[Storage]) -> None:
    record = read_run(runs[1])
    assert len(record.steps) <= MOST_ROWS + 1 and record.steps[-1]["step"] == 40_000
    assert (record.num_redone, record.restarts, record.world_sizes) == (100, [19_901], [2])
    assert record.steps_s == pytest.approx(20_000, rel=1e-4)
    found, said = find_calibration(read_run_config(runs[1]), use_gpu=False)
    assert found is not None and found.step_s == {2: 0.5}, said
