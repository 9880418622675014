"""What a run records while it trains: metrics, evaluations, events, sample ids, and values for trackers.

Only rank 0 writes, except for the sample ids, which each worker writes for itself.
"""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from raytrain.errors import CheckpointError
from raytrain.retries import advice_for, retrying
from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.tasks.base import Metrics
from raytrain.tracking.trackers import Trackers
from raytrain.training.progress import Progress
from raytrain.training.records import BEST_SO_FAR, EPOCHS, NOTES, SAMPLES, JsonlWriter, last_row, read_jsonl

logger = logging.getLogger(__name__)

METRICS, EVALS, EVENTS = "metrics.jsonl", "evals.jsonl", "events.jsonl"

# Column of metrics.jsonl -> its name in trackers.
TRACKED = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "loss_scale": "train/loss_scale",
    "skipped_steps": "train/skipped_steps",
    "skipped_spikes": "train/skipped_spikes",
    "ranks": "train/ranks",
    "tokens_per_s": "perf/tokens_per_s",
    "step_s": "perf/step_s",
    "padding": "data/padding",
    "data_wait_s": "data/wait_s",
    "world_size": "world/size",
}


def recorded_progress(run: Storage) -> Progress:
    """The progress of a run as its logs have it, for the result of a command that no worker was left to tell."""
    row, best = last_row(run, METRICS) or {}, (last_row(run, EVALS) or {}).get(BEST_SO_FAR) or {}
    return Progress(
        step=int(row.get("step") or 0),
        skipped_steps=int(row.get("skipped_steps") or 0),
        skipped_spikes=int(row.get("skipped_spikes") or 0),
        samples_seen=int(row.get("samples_seen") or 0),
        tokens_seen=int(row.get("tokens_seen") or 0),
        best_metric=best.get("metric"),
        best_value=best.get("value"),
        best_step=best.get("step"),
    )


def next_attempt(run: Storage) -> int:
    """Index of the worker group that starts now, from 0: the number of earlier ones."""
    return sum(event.get("kind") == "start" for event in read_jsonl(run, EVENTS))


class RunLog:
    """The growing files of a run. Workers other than rank 0 write only sample ids."""

    def __init__(
        self,
        run: Storage,
        world: World,
        attempt: int,
        *,
        trackers: Trackers | None,
        record_samples: bool,
        now: Callable[[], float] = time.time,
        told: Callable[[str, int, bytes], None] = lambda name, position, data: None,
    ):
        """Args:
        now: Seconds since the epoch, by the run's common clock.
        told: Takes new lines of metrics.jsonl, evals.jsonl and events.jsonl; see LogFeed.append.
        """
        self._is_first = world.world_rank == 0
        self._run, self._world, self._attempt, self._now = run, world, attempt, now
        self._samples = None
        self._writers: list[JsonlWriter] = []
        self._trackers = trackers
        if trackers is not None:  # what earlier attempts have sent to them
            self._last_step = (last_row(run, METRICS) or {}).get("step", 0)
            self._evaluations = {(row.get("split"), row.get("step")) for row in read_jsonl(run, EVALS)}
        if record_samples:
            self._samples = JsonlWriter(run, f"samples/attempt_{attempt:03d}_rank_{world.world_rank:05d}.jsonl")
        if self._is_first:
            self._metrics, self._evals, self._events = (
                JsonlWriter(run, name, functools.partial(told, name)) for name in (METRICS, EVALS, EVENTS)
            )
            self._writers = [self._metrics, self._evals, self._events]
        if self._samples is not None:
            self._writers.append(self._samples)

    def step(self, row: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl."""
        if not self._is_first:
            return
        self._metrics.write({**row, "world_size": self._world.world_size, "attempt": self._attempt})
        values = {TRACKED[key]: value for key, value in row.items() if key in TRACKED}
        self._track(values, row["step"], lambda step: step <= self._last_step)

    def evaluation(
        self,
        step: int,
        epoch: int,
        split: str,
        metrics: Metrics,
        epochs_done: float | None = None,
        best: dict[str, Any] | None = None,
        *,
        samples: list[dict[str, str]] | None = None,
    ) -> None:
        """Write a line of evals.jsonl.

        Args:
            epoch: Counted from 1.
            epochs_done: Passes over the training data up to this step.
            best: The best evaluation so far, possibly this one: metric, value, step, and is_saved, which says whether
            best/ has its model.
            samples: What a language model says, `prompt` and `text` of each.
        """
        if not self._is_first:
            return
        place: dict[str, Any] = {"step": step, "epoch": epoch, "split": split}
        if epochs_done is not None:
            place[EPOCHS] = epochs_done
        if best is not None:
            place[BEST_SO_FAR] = best
        place |= {"time": self._now(), "attempt": self._attempt}
        notes = {NOTES: list(metrics.notes)} if metrics.notes else {}
        said = {SAMPLES: samples} if samples else {}
        self._evals.write({**place, **metrics.values, **notes, **said, "tables": metrics.tables})
        self._evals.begin_upload()  # sweeps read it
        values = {f"{split}/{name}": value for name, value in metrics.values.items()}
        self._track(values, step, lambda step: (split, step) in self._evaluations)

    def event(self, kind: str, **detail: Any) -> None:
        """Write a line of events.jsonl."""
        if self._is_first:
            self._events.write({"time": self._now(), "kind": kind, "attempt": self._attempt, **detail})

    def samples(self, step: int, epoch: int, ids: np.ndarray) -> None:
        """Write the sample ids that this worker trained on in a step."""
        if self._samples is not None:
            self._samples.write({"step": step, "epoch": epoch, "attempt": self._attempt, "ids": ids.tolist()})

    def sync(self) -> None:
        """Wait until all lines are in storage: those up to a checkpoint must be there before it is. Raises OSError."""
        for writer in self._writers:
            writer.sync()

    def store(self) -> None:
        """`sync` with retries, before the group ends. Raises CheckpointError."""
        try:
            retrying(self.sync, f"writing the logs of {self._run.path_of()}")
        except OSError as error:
            raise CheckpointError(
                f"can't write the logs of {self._run.path_of()}: {error}. {advice_for(error)}, then resume the run."
            ) from error

    def close(self, status: str) -> None:
        """Write what is left. `status`: the run's; stopped if another group may continue it. A failure of storage is
        logged only: how the group has ended must not be lost, and a group that ends well has called `store`."""
        if self._trackers is not None:
            self._trackers.close(status)
            self._pass_on_complaints()
        for writer in self._writers:
            try:
                writer.close()
            except OSError as error:
                logger.warning("the last lines of the logs of %s are lost: %s", self._run.path_of(), error)

    def _track(self, values: Mapping[str, float | None], step: int, is_redone: Callable[[int], bool]) -> None:
        if self._trackers is not None:
            self._trackers.log(values, step, is_redone=is_redone(step))
            self._pass_on_complaints()

    def _pass_on_complaints(self) -> None:
        assert self._trackers is not None
        for tracker, reason in self._trackers.complaints():
            self.event("tracker", tracker=tracker, reason=reason)
