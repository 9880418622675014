"""What a run writes down while it trains: metrics, evaluations, events, sample ids, TensorBoard.

Only rank 0 writes, but for the sample ids, which each worker writes for itself.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from raytrain.batch_plan import World
from raytrain.storage import Storage
from raytrain.tasks.base import Metrics
from raytrain.training.records import JsonlWriter, read_jsonl

METRICS, EVALS, EVENTS = "metrics.jsonl", "evals.jsonl", "events.jsonl"

# Column of metrics.jsonl -> name in TensorBoard and other trackers.
TRACKED = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "loss_scale": "train/loss_scale",
    "skipped_steps": "train/skipped_steps",
    "tokens_per_s": "perf/tokens_per_s",
    "step_s": "perf/step_s",
    "padding": "data/padding",
    "data_wait_s": "data/wait_s",
    "world_size": "world/size",
}


def next_attempt(run: Storage) -> int:
    """Ordinal of the worker group that starts now, from 0: the number of those that started before."""
    return sum(event.get("kind") == "start" for event in read_jsonl(run, EVENTS))


class RunLog:
    """The files of a run that grow with it. On other workers than rank 0 it writes sample ids only."""

    def __init__(
        self,
        run: Storage,
        world: World,
        attempt: int,
        *,
        tensorboard: bool,
        record_samples: bool,
        now: Callable[[], float] = time.time,
    ):
        """`now`: seconds since the epoch, by the one clock of the run."""
        self._is_first = world.world_rank == 0
        self._run, self._world, self._attempt, self._now = run, world, attempt, now
        self._samples = None
        # Opened with the first value: importing it takes a second that the first step should not wait for.
        self._wants_tensorboard = tensorboard and self._is_first
        self._tensorboard: Any = None
        if record_samples:
            self._samples = JsonlWriter(run, f"samples/attempt_{attempt:03d}_rank_{world.world_rank:05d}.jsonl")
        if self._is_first:
            self._metrics, self._evals, self._events = (JsonlWriter(run, name) for name in (METRICS, EVALS, EVENTS))

    def step(self, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if not self._is_first:
            return
        self._metrics.write({**row, "world_size": self._world.world_size, "attempt": self._attempt})
        self._track({TRACKED[key]: value for key, value in row.items() if key in TRACKED}, row["step"])

    def evaluation(self, step: int, epoch: int, split: str, metrics: Metrics) -> None:
        """A line of evals.jsonl."""
        if not self._is_first:
            return
        place = {"step": step, "epoch": epoch, "split": split, "time": self._now(), "attempt": self._attempt}
        self._evals.write({**place, **metrics.values, "tables": metrics.tables})
        self._track({f"{split}/{name}": value for name, value in metrics.values.items()}, step)

    def event(self, kind: str, **detail: Any) -> None:
        """A line of events.jsonl."""
        if self._is_first:
            self._events.write({"time": self._now(), "kind": kind, "attempt": self._attempt, **detail})

    def samples(self, step: int, epoch: int, ids: np.ndarray) -> None:
        """The sample ids that this worker trained on in a step."""
        if self._samples is not None:
            self._samples.write({"step": step, "epoch": epoch, "attempt": self._attempt, "ids": ids.tolist()})

    def close(self) -> None:
        """Flush everything."""
        if self._samples is not None:
            self._samples.close()
        if self._is_first:
            for writer in (self._metrics, self._evals, self._events):
                writer.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _track(self, values: dict[str, float | None], step: int) -> None:
        if not self._wants_tensorboard:
            return
        if self._tensorboard is None:
            self._tensorboard = _open_tensorboard(self._run)
            self._wants_tensorboard = self._tensorboard is not None
            return self._track(values, step)
        for name, value in values.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)


def _open_tensorboard(run: Storage) -> Any:
    """A TensorBoard writer, or None on an object store, which its event files can't be appended to."""
    folder = run.local_path("tensorboard")
    if folder is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder)
