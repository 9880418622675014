"""Exports metrics through Ray's metrics agent of each node, which Prometheus scrapes. Runs in the driver, so that the
training loop is not slowed down and a run is one series across all its worker groups.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from raytrain.config import RunConfig
from raytrain.errors import first_line
from raytrain.monitoring import names
from raytrain.monitoring.names import Metric
from raytrain.monitoring.run_metrics import Lines, RunMetrics, Sample, WorkerCounts, zeros
from raytrain.storage import Storage
from raytrain.training.records import iterate_jsonl, read_jsonl
from raytrain.training.run_log import EVALS, EVENTS, METRICS

logger = logging.getLogger(__name__)

# A process sends its metrics to the node's agent every 10 s and then forgets its gauges; the agent forgets after 20 s.
TELL_EVERY_S = 1.0


class Exporter:
    """Exports metrics with a fixed set of labels. An error is logged once and ends the export."""

    def __init__(self, labels: dict[str, str], *, is_on: bool):
        """`labels`: added to every metric."""
        self._labels, self._is_on = labels, is_on
        self._next_tell_s = 0.0

    def attempt(self, part: Callable[[], None]) -> None:
        """Run a part of the export, unless an earlier one has failed."""
        if not self._is_on:
            return
        try:
            part()
        except Exception as error:  # metrics must not fail a run
            self._is_on = False
            text = f"{type(error).__name__}: {first_line(str(error))}"
            logger.warning("metrics are no longer exported; training continues: %s", text)

    def is_due(self) -> bool:
        """Whether it is time to export again."""
        if time.monotonic() < self._next_tell_s:
            return False
        self._next_tell_s = time.monotonic() + TELL_EVERY_S
        return True

    def tell(self, samples: Iterable[Sample]) -> None:
        """Set gauges and increase counters."""
        for metric, labels, value in samples:
            known = {**self._labels, **labels}
            tags = {name: known[name] for name in metric.labels}
            if not metric.is_counter:
                _instrument(metric).set(float(value), tags)
            elif value > 0:
                _instrument(metric).inc(float(value), tags)
            else:  # `inc` rejects zero
                _instrument(metric)._record(0.0, tags)


@functools.cache
def _instrument(metric: Metric) -> Any:
    """Ray's object for a metric. One per process is enough: Ray keeps the values by name."""
    from ray.util.metrics import Counter, Gauge

    return (Counter if metric.is_counter else Gauge)(metric.name, metric.description, metric.labels)


class RunExporter(Exporter):
    """Exports a run's metrics for the duration of a command."""

    def __init__(self, config: RunConfig, run: Storage, total_steps: int, sweep: str = ""):
        """Reads what the run recorded before.

        Args:
            total_steps: Total steps of the run.
            sweep: Name of the sweep that the trial belongs to, if it is one.
        """
        name = f"{sweep}/{config.name}" if sweep else config.name
        labels = {"run": name, "sweep": sweep, "trial": config.name if sweep else ""}
        super().__init__(labels, is_on=config.tracking.prometheus)
        self._count_labels = {"run": sweep or name, "sweep": sweep}
        self._config, self._run, self._total_steps = config, run, total_steps
        self._worker_counts = WorkerCounts(0, config.workers.max)
        self.attempt(self._begin)

    def _begin(self) -> None:
        self._metrics = RunMetrics(
            self._total_steps,
            self._config.training.global_batch_size,
            events=read_jsonl(self._run, EVENTS),
            rows=iterate_jsonl(self._run, METRICS),
            evals=read_jsonl(self._run, EVALS),
        )
        self._tell_counts(zeros())

    def rows(self, name: str, rows: Lines) -> None:
        """Take new lines of the run's files."""
        self.attempt(lambda: self._metrics.rows(name, rows))

    def look(self, worker_counts: WorkerCounts) -> None:
        """Called a few times a second."""
        self._worker_counts = worker_counts
        if self.is_due():
            self.attempt(self._tell)

    def end(self, status: str) -> None:
        """The command ends; Ray sends the rest at shutdown. `status`: one of `STATUSES`."""
        self._worker_counts = WorkerCounts(0, self._worker_counts.wanted)
        self.attempt(lambda: self._metrics.ended(status))
        self.attempt(self._tell)

    def _tell(self) -> None:
        self.tell(self._metrics.gauges(self._worker_counts))
        self._tell_counts(self._metrics.take_counts())

    def _tell_counts(self, samples: Iterable[Sample]) -> None:
        """The trials of a sweep share their counters."""
        self.tell((metric, {**self._count_labels, **labels}, value) for metric, labels, value in samples)


class SweepExporter(Exporter):
    """Exports what the driver knows of a sweep. Its trials export their own metrics, as any run does."""

    def __init__(self, config: RunConfig, sweep: str, metric: str, num_trials: int):
        """Args:
        sweep: Name of the sweep.
        metric: Metric by which its trials are compared.
        num_trials: Planned number of trials.
        """
        super().__init__({"sweep": sweep}, is_on=config.tracking.prometheus)
        self._metric, self._num_trials = metric, num_trials

    def look(self, standing: Callable[[], tuple[dict[str, int], float | None, int]]) -> None:
        """Called a few times per second. `standing`: (trials by status, best value, steps of all trials)."""
        if self.is_due():
            self.attempt(lambda: self._tell(*standing()))

    def _tell(self, by_status: dict[str, int], best: float | None, steps: int) -> None:
        self.tell((names.TRIALS, {"status": status}, count) for status, count in by_status.items())
        self.tell([(names.TRIALS_PLANNED, {}, self._num_trials), (names.SWEEP_STEPS, {}, steps)])
        if best is not None:
            self.tell([(names.BEST_VALUE, {"metric": self._metric}, best)])
