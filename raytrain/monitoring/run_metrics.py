"""Computes a run's metrics from the lines that it writes to its files. No Ray."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.monitoring import names
from raytrain.monitoring.names import Metric
from raytrain.reports.goodput import CHANGES, StepTimes, account
from raytrain.training.records import scores_of

WINDOW_S = 60.0  # for rates
ACCOUNT_EVERY_S = 15.0  # goodput goes through all events each time; Prometheus scrapes about as often
MOST_METRICS = 32  # per evaluation: each is a series
OF_A_STEP = {
    "step": names.STEP,
    "epoch": names.EPOCH,
    "loss": names.LOSS,
    "lr": names.LEARNING_RATE,
    "grad_norm": names.GRAD_NORM,
    "loss_scale": names.LOSS_SCALE,
}
"""Columns of metrics.jsonl."""
SECONDS_OF_A_STEP = {
    "step_s": names.STEP_S,
    "data_wait_s": names.DATA_WAIT_S,
    "checkpoint_s": names.SAVE_S,
    "evaluation_s": names.EVALUATION_S,
}

Lines = Sequence[dict[str, Any]]
Sample = tuple[Metric, dict[str, str], float]
"""(metric, labels other than the exporter's own, value of a gauge or increase of a counter)."""


@dataclass(frozen=True)
class WorkerCounts:
    """A run's workers, as seen by its driver."""

    workers: int
    """Workers that train now; 0 between two groups."""
    wanted: int
    """Workers that the run may use."""
    waiting_s: float = 0.0
    """Seconds for which workers.min have not fit; 0 if they fit."""


@dataclass(frozen=True)
class _Moment:
    """Progress of a command at a point in time."""

    time_s: float
    samples: float
    tokens: float
    step_s: float
    data_wait_s: float


class RunMetrics:
    """Reads the lines of a run's files as they are written, and computes its metrics."""

    def __init__(
        self,
        total_steps: int,
        global_batch_size: int,
        *,
        events: Lines = (),
        rows: Iterable[dict[str, Any]] = (),
        evals: Lines = (),
        now: Callable[[], float] = time.time,
    ):
        """Args:
        global_batch_size: Samples per step, used to count redone steps.
        events, rows, evals: Lines of earlier commands. Gauges continue from them; counters start at zero.
        now: Seconds since the epoch.
        """
        self._total_steps, self._batch, self._now = total_steps, global_batch_size, now
        self._events, self._times = list(events), StepTimes()
        self._row: dict[str, Any] = {}
        for row in rows:
            self._times.add(row)
            self._row = row
        self._evaluation: dict[str, Any] = {}
        self._take_evaluations(evals)
        self._skipped_in_a_row = self._not_finite_in_a_row = 0
        self._counts: defaultdict[tuple[Metric, str], float] = defaultdict(float)
        self._window: deque[_Moment] = deque()
        self._done = dict.fromkeys((names.SAMPLES, names.TOKENS, names.STEP_S, names.DATA_WAIT_S), 0.0)
        self._had_workers = False
        self._step_at_s = now()
        saved = [event["time"] for event in self._events if event.get("kind") == "checkpoint"]
        self._saved_at_s = saved[-1] if saved else now()
        self._account: dict[str, Any] = {}
        self._next_account_s = 0.0

    def rows(self, name: str, rows: Lines) -> None:
        """Take new lines of metrics.jsonl, evals.jsonl or events.jsonl."""
        take = {"metrics.jsonl": self._take_steps, "evals.jsonl": self._take_evaluations, "events.jsonl": self._take}
        take[name](rows)

    def _take_steps(self, rows: Lines) -> None:
        for row in rows:
            self._times.add(row)
            self._count_step(row, self._row)
            self._row, self._step_at_s = row, self._now()

    def _count_step(self, row: dict[str, Any], before: dict[str, Any]) -> None:
        """`before`: the preceding line, or empty."""
        follows = row["step"] == before.get("step", 0) + 1
        samples = row["samples_seen"] - before.get("samples_seen", 0) if follows else self._batch
        skipped = row["skipped_steps"] - before.get("skipped_steps", 0)
        self._skipped_in_a_row = self._skipped_in_a_row + skipped if skipped > 0 else 0
        self._not_finite_in_a_row = self._not_finite_in_a_row + 1 if row["loss"] is None else 0
        self._count(names.STEPS, 1)
        self._count(names.SAMPLES, samples)
        self._count(names.TOKENS, (row["tokens_per_s"] or 0.0) * row["step_s"])
        self._count(names.SKIPPED, max(0, skipped))
        for column, metric in SECONDS_OF_A_STEP.items():
            self._count(metric, row.get(column) or 0.0)

    def _take_evaluations(self, rows: Lines) -> None:
        for row in rows:
            if row.get("split") == "validation":
                self._evaluation = row

    def _take(self, events: Lines) -> None:
        self._events += events
        for event in events:
            if event["kind"] == "checkpoint":
                self._saved_at_s = event["time"]
            if event["kind"] in CHANGES:
                self._count(names.STEPS_REDONE, event.get("steps_redone", 0))
            if event["kind"] in names.CAUSES and "left_at_s" in event:  # a failure without it has ended the run
                self._count(names.RESTARTS, 1, event["kind"])

    def ended(self, status: str) -> None:
        """The command has ended. `status`: status of the run, as in summary.json."""
        self._count(names.ENDS, 1, status)

    def _count(self, metric: Metric, grown: float, label: str = "") -> None:
        self._counts[metric, label] += grown
        if metric in self._done:
            self._done[metric] += grown

    def gauges(self, worker_counts: WorkerCounts) -> Iterator[Sample]:
        """All gauges that have a value now."""
        now_s = self._now()
        if worker_counts.workers and not self._had_workers:
            self._step_at_s = now_s  # steps and saves are expected from now on
            self._saved_at_s = max(self._saved_at_s, now_s)
        self._had_workers = worker_counts.workers > 0
        for column, metric in OF_A_STEP.items():
            if self._row.get(column) is not None:  # a NaN would be dropped by the agent
                yield metric, {}, self._row[column]
        yield names.TARGET_STEP, {}, self._total_steps
        yield names.SKIPPED_IN_A_ROW, {}, self._skipped_in_a_row
        yield names.NOT_FINITE, {}, self._not_finite_in_a_row
        for name, value in list(scores_of(self._evaluation).items())[:MOST_METRICS]:
            yield names.VALIDATION, {"metric": name}, value
        yield names.WORKERS, {}, worker_counts.workers
        yield names.WANTED, {}, worker_counts.wanted
        yield names.WAITING_S, {}, worker_counts.waiting_s
        yield names.STEP_TIME, {}, self._step_at_s
        yield names.SAVE_TIME, {}, self._saved_at_s
        yield from self._rates(now_s)
        yield from self._goodput(now_s)

    def _rates(self, now_s: float) -> Iterator[Sample]:
        now = _Moment(now_s, *self._done.values())
        self._window.append(now)
        while len(self._window) > 2 and now_s - self._window[1].time_s >= WINDOW_S:
            self._window.popleft()
        before = self._window[0]
        passed_s, step_s = now_s - before.time_s, now.step_s - before.step_s
        if passed_s > 0:
            yield names.SAMPLES_PER_S, {}, (now.samples - before.samples) / passed_s
            yield names.TOKENS_PER_S, {}, (now.tokens - before.tokens) / passed_s
        if step_s > 0:
            yield names.DATA_WAIT, {}, (now.data_wait_s - before.data_wait_s) / step_s

    def _goodput(self, now_s: float) -> Iterator[Sample]:
        if now_s >= self._next_account_s:
            self._next_account_s = now_s + ACCOUNT_EVERY_S
            self._account = account(self._events, self._times)
        if self._account:
            yield names.GOODPUT, {}, self._account["goodput"]
            for name, seconds in self._account["classes"].items():
                yield names.WORKER_SECONDS, {"class": name}, seconds

    def take_counts(self) -> Iterator[Sample]:
        """The increase of each counter since the last call."""
        counts, self._counts = self._counts, defaultdict(float)
        for (metric, label), grown in counts.items():
            if grown > 0:
                yield metric, dict(zip(metric.labels[2:], [label], strict=False)), grown


def zeros() -> Iterator[Sample]:
    """Every counter at zero. Prometheus would not see the increase of a counter that first appears with value 1."""
    values = {"cause": names.CAUSES, "status": names.STATUSES}
    for metric in names.METRICS.values():
        if metric.is_counter:
            own = metric.labels[2:]
            yield from ((metric, {own[0]: value}, 0.0) for value in values[own[0]]) if own else [(metric, {}, 0.0)]
