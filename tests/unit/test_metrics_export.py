"""What Prometheus is told of a run, from the lines that it writes; no Ray. ray/test_metrics_endpoint.py asks it."""

from pathlib import Path
from typing import Any

import pytest
from running import tiny_run

from raytrain.monitoring import exporter, names
from raytrain.monitoring.exporter import RunExporter, SweepExporter
from raytrain.monitoring.names import METRICS, Metric
from raytrain.monitoring.run_metrics import RunMetrics, Sample, WorkerCounts, zeros
from raytrain.storage import Storage
from raytrain.tuning.trials import TrialTable

TWO = WorkerCounts(2, 4)


class Clock:
    """Seconds since the epoch, as a test sets them."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def step(number: int, attempt: int = 0, **values: Any) -> dict[str, Any]:
    """A line of metrics.jsonl: eight samples and 40 tokens in half a second, a tenth of it spent waiting."""
    line = {"step": number, "epoch": 0, "loss": 0.5, "lr": 1e-3, "grad_norm": 2.0, "loss_scale": None}
    line |= {"skipped_steps": 0, "samples_seen": 8 * number, "tokens_seen": 40 * number, "tokens_per_s": 80.0}
    line |= {"data_wait_s": 0.05, "step_s": 0.5, "checkpoint_s": 0.0, "evaluation_s": 0.0, "world_size": 2}
    return {**line, "attempt": attempt, **values}


def change(kind: str, attempt: int, **values: Any) -> dict[str, Any]:
    """The line of a group's first step."""
    seconds = dict.fromkeys(("detect_s", "save_s", "wait_s", "regroup_s", "load_s", "first_step_s"), 1.0)
    moments = {"left_at_s": 990.0, "started_at_s": 991.0, "time": 1000.0}
    return {"kind": kind, "attempt": attempt, "steps_redone": 0, **seconds, **moments, **values}


def start(attempt: int) -> dict[str, Any]:
    return {"kind": "start", "attempt": attempt, "time": 990.0, "entered_at_s": 990.0, "world_size": 2}


def gauges(metrics: RunMetrics, worker_counts: WorkerCounts = TWO) -> dict[Metric, float]:
    """Those without labels of their own."""
    return {metric: value for metric, labels, value in metrics.gauges(worker_counts) if not labels}


def labelled(samples: list[Sample], metric: Metric) -> dict[str, float]:
    """A metric's values by its own label."""
    return {next(iter(labels.values())): value for found, labels, value in samples if found is metric}


def counts(metrics: RunMetrics) -> dict[tuple[str, ...], float]:
    return {(metric.name, *labels.values()): value for metric, labels, value in metrics.take_counts()}


def test_names_follow_prometheus_conventions() -> None:
    """Base units at the end, `_total` for what only grows, and no label but whose it is and one of few values."""
    assert len({metric.name.removesuffix("_total") for metric in METRICS.values()}) == len(METRICS)
    for name, metric in METRICS.items():
        assert name.startswith("raytrain_") and name.replace("_", "").isalnum() and name == name.lower()
        assert not name.endswith(("_s", "_ms", "_count"))
        assert metric.description.endswith(".")
        whose = ("sweep",) if name.startswith("raytrain_sweep_") else ("run", "sweep")
        own = [label for label in metric.labels if label not in ("run", "sweep", "trial")]
        assert metric.labels[: len(whose)] == whose and len(own) <= 1
        assert ("trial" in metric.labels) == (whose == ("run", "sweep") and not metric.is_counter)


def test_a_step_and_an_evaluation() -> None:
    metrics = RunMetrics(100, 8)
    assert names.LOSS not in gauges(metrics), "nothing is known yet"
    metrics.rows("metrics.jsonl", [step(1, loss=0.7), step(2, loss=0.6)])
    evaluation = {"step": 2, "epoch": 0, "time": 1.0, "attempt": 0, "tables": {"classes": [1]}}
    metrics.rows("evals.jsonl", [{**evaluation, "split": "validation", "loss": 0.4, "accuracy": 0.75}])
    metrics.rows("evals.jsonl", [{**evaluation, "split": "test", "accuracy": 0.1}])
    found = gauges(metrics)
    expected = {names.STEP: 2, names.TARGET_STEP: 100, names.LOSS: 0.6, names.LEARNING_RATE: 1e-3, names.EPOCH: 0}
    assert {metric: found[metric] for metric in expected} == expected
    assert (found[names.WORKERS], found[names.WANTED], found[names.WAITING_S]) == (2, 4, 0)
    assert names.LOSS_SCALE not in found, "only fp16 has one"
    assert labelled(list(metrics.gauges(TWO)), names.VALIDATION) == {"loss": 0.4, "accuracy": 0.75}


def test_a_loss_that_is_no_number_is_counted() -> None:
    """Ray's agent shows no NaN."""
    metrics = RunMetrics(100, 8)
    metrics.rows("metrics.jsonl", [step(1), step(2, loss=None, grad_norm=None), step(3, loss=None)])
    assert names.LOSS not in gauges(metrics)
    assert gauges(metrics)[names.NOT_FINITE] == 2
    metrics.rows("metrics.jsonl", [step(4)])
    assert gauges(metrics)[names.NOT_FINITE] == 0


def test_counters_tell_what_came_since_they_were_asked() -> None:
    metrics = RunMetrics(100, 8)
    metrics.rows("metrics.jsonl", [step(1), step(2, checkpoint_s=0.25)])
    first = counts(metrics)
    assert first[("raytrain_steps_total",)] == 2
    assert first[("raytrain_samples_total",)] == 16
    assert first[("raytrain_tokens_total",)] == pytest.approx(80)
    assert first[("raytrain_step_seconds_total",)] == pytest.approx(1.0)
    assert first[("raytrain_data_wait_seconds_total",)] == pytest.approx(0.1)
    assert first[("raytrain_checkpoint_seconds_total",)] == 0.25
    assert counts(metrics) == {}
    metrics.rows("metrics.jsonl", [step(3)])
    assert counts(metrics)[("raytrain_steps_total",)] == 1


def test_a_crash_and_a_resize() -> None:
    """Steps 4 and 5 are done again. A failure that ends the run leads to no group, and is no restart."""
    metrics = RunMetrics(100, 8)
    metrics.rows("events.jsonl", [start(0), change("begin", 0)])
    metrics.rows("metrics.jsonl", [step(number) for number in range(1, 6)])
    metrics.rows("events.jsonl", [start(1), change("failure", 1, steps_redone=2)])
    metrics.rows("metrics.jsonl", [step(number, 1) for number in range(4, 7)])
    metrics.rows("events.jsonl", [start(2), change("resize", 2)])
    metrics.rows("events.jsonl", [{"kind": "failure", "attempt": 2, "time": 1000.0, "cause": "diverged"}])
    found = counts(metrics)
    assert found[("raytrain_restarts_total", "failure")] == 1
    assert found[("raytrain_restarts_total", "resize")] == 1
    assert ("raytrain_restarts_total", "begin") not in found
    assert found[("raytrain_steps_redone_total",)] == 2
    assert found[("raytrain_steps_total",)] == 8
    assert found[("raytrain_samples_total",)] == 64
    classes = labelled(list(metrics.gauges(TWO)), names.WORKER_SECONDS)
    assert classes["redone"] == pytest.approx(2 * 2 * 0.45)
    assert classes["useful"] == pytest.approx(2 * 6 * 0.45)
    assert gauges(metrics)[names.GOODPUT] == pytest.approx(classes["useful"] / sum(classes.values()), abs=1e-3)


def test_rates_are_those_of_the_last_minute_and_fall_to_nothing_in_a_pause() -> None:
    clock = Clock()
    metrics = RunMetrics(10_000, 8, now=clock)
    gauges(metrics)
    for second in range(1, 121):
        clock.now_s += 1
        metrics.rows("metrics.jsonl", [step(2 * second - 1), step(2 * second)])
        found = gauges(metrics)
    assert found[names.SAMPLES_PER_S] == pytest.approx(16)
    assert found[names.TOKENS_PER_S] == pytest.approx(80)
    assert found[names.DATA_WAIT] == pytest.approx(0.1)
    for _ in range(70):
        clock.now_s += 1
        found = gauges(metrics)
    assert found[names.SAMPLES_PER_S] == 0
    assert names.DATA_WAIT not in found, "there was no step to wait in"


def test_since_when_there_was_no_step_and_no_checkpoint() -> None:
    clock = Clock()
    metrics = RunMetrics(100, 8, now=clock)
    assert gauges(metrics)[names.SAVE_TIME] == 1000
    clock.now_s = 1200
    assert gauges(metrics, WorkerCounts(0, 4, 30.0))[names.WAITING_S] == 30
    clock.now_s = 1500
    assert gauges(metrics)[names.STEP_TIME] == 1500, "the workers came together"
    gauges(metrics, WorkerCounts(0, 4))
    clock.now_s = 1600
    assert gauges(metrics)[names.STEP_TIME] == 1600, "and another group, which from now on may be stalled"
    clock.now_s = 1700
    metrics.rows("metrics.jsonl", [step(1)])
    metrics.rows("events.jsonl", [{"kind": "checkpoint", "time": 1650.0, "step": 1, "attempt": 0}])
    clock.now_s = 1800
    found = gauges(metrics)
    assert (found[names.STEP_TIME], found[names.SAVE_TIME]) == (1700, 1650)


def test_overflows_in_a_row() -> None:
    metrics = RunMetrics(100, 8)
    skipped = [0, 1, 2, 3]
    rows = [step(i, skipped_steps=count, loss_scale=64.0) for i, count in enumerate(skipped, 1)]
    metrics.rows("metrics.jsonl", rows)
    assert gauges(metrics)[names.SKIPPED_IN_A_ROW] == 3
    assert gauges(metrics)[names.LOSS_SCALE] == 64
    assert counts(metrics)[("raytrain_skipped_steps_total",)] == 3
    metrics.rows("metrics.jsonl", [step(5, skipped_steps=3)])
    assert gauges(metrics)[names.SKIPPED_IN_A_ROW] == 0


def test_a_run_that_goes_on_keeps_its_account_and_counts_anew() -> None:
    history = {"events": [start(0), change("begin", 0)], "rows": [step(1), step(2)]}
    metrics = RunMetrics(100, 8, **history)
    assert gauges(metrics)[names.STEP] == 2
    assert names.GOODPUT in gauges(metrics)
    assert counts(metrics) == {}
    metrics.rows("metrics.jsonl", [step(3, 1)])
    assert counts(metrics)[("raytrain_samples_total",)] == 8


def test_every_counter_begins_at_zero() -> None:
    told = {(metric.name, *labels.values()): value for metric, labels, value in zeros()}
    assert set(told.values()) == {0.0}
    assert {name for name, *_ in told} == {name for name, metric in METRICS.items() if metric.is_counter}
    assert ("raytrain_restarts_total", "failure") in told and ("raytrain_run_ends_total", "failed") in told


class Told:
    """Stands for Ray's side, and keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.is_broken = False

    def of(self, metric: Metric) -> "ToldMetric":
        return ToldMetric(self, metric)


class ToldMetric:
    def __init__(self, told: Told, metric: Metric):
        self._told, self._metric = told, metric

    def set(self, value: float, tags: dict[str, str]) -> None:
        if self._told.is_broken:
            raise RuntimeError("no agent")
        assert tuple(tags) == self._metric.labels
        self._told.values[(self._metric.name, *tags.values())] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0  # Ray refuses others
        key = (self._metric.name, *tags.values())
        self.set(self._told.values.get(key, 0.0) + value, tags)

    def _record(self, value: float, tags: dict[str, str]) -> None:
        self.set(value, tags)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(exporter, "_instrument", told.of)
    monkeypatch.setattr(exporter, "TELL_EVERY_S", 0.0)
    return told


def test_whose_metrics_they_are(tmp_path: Path, told: Told) -> None:
    """A run of its own has a name; a trial is told as one of its sweep, whose trials count together."""
    alone = RunExporter(tiny_run(tmp_path, "alone"), Storage(str(tmp_path / "alone")), 10)
    trial = RunExporter(tiny_run(tmp_path, "trial_0003"), Storage(str(tmp_path / "trial")), 10, "alone-lr")
    for one in (alone, trial):
        one.rows("metrics.jsonl", [step(1)])
        one.look(TWO)
        one.end("finished")
    assert told.values[("raytrain_step", "alone", "", "")] == 1
    assert told.values[("raytrain_step", "alone-lr/trial_0003", "alone-lr", "trial_0003")] == 1
    assert told.values[("raytrain_steps_total", "alone", "")] == 1
    assert told.values[("raytrain_steps_total", "alone-lr", "alone-lr")] == 1
    assert told.values[("raytrain_run_ends_total", "alone", "", "finished")] == 1
    assert told.values[("raytrain_run_ends_total", "alone", "", "failed")] == 0
    assert told.values[("raytrain_workers", "alone", "", "")] == 0, "its end"


def test_a_sweep(tmp_path: Path, told: Told) -> None:
    trial_table = TrialTable(Storage(str(tmp_path)), "max")
    for name in ("trial_0000", "trial_0001"):
        trial_table.add(name, {})
    trial_table.evaluated("trial_0000", 50, 0.8, 0)
    trial_table.update("trial_0000", status="pruned")
    SweepExporter(tiny_run(tmp_path, "a"), "a-lr", "accuracy", 16).look(trial_table.standing)
    assert told.values[("raytrain_sweep_trials", "a-lr", "pruned")] == 1
    assert told.values[("raytrain_sweep_trials", "a-lr", "waiting")] == 1
    assert told.values[("raytrain_sweep_trials", "a-lr", "failed")] == 0
    assert told.values[("raytrain_sweep_trials_planned", "a-lr")] == 16
    assert told.values[("raytrain_sweep_best_value", "a-lr", "accuracy")] == 0.8
    assert told.values[("raytrain_sweep_steps", "a-lr")] == 50


def test_whatever_goes_wrong_ends_the_export_and_not_the_run(
    tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    one = RunExporter(tiny_run(tmp_path, "one"), Storage(str(tmp_path / "one")), 10)
    told.is_broken = True
    for number in range(1, 4):
        one.rows("metrics.jsonl", [step(number)])
        one.look(TWO)
    one.end("finished")
    assert [record.getMessage() for record in caplog.records] == [
        "metrics are no longer exported; training continues: RuntimeError: no agent"
    ]


def test_it_can_be_turned_off(tmp_path: Path, told: Told) -> None:
    one = RunExporter(tiny_run(tmp_path, "off", "tracking.prometheus=false"), Storage(str(tmp_path / "off")), 10)
    one.rows("metrics.jsonl", [step(1)])
    one.look(TWO)
    one.end("finished")
    assert told.values == {}
