"""The numbers behind the report: a run's files, with redone steps taken once and long curves thinned."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.reports.goodput import StepTimes, account
from raytrain.reports.steps import StepSample
from raytrain.storage import Storage
from raytrain.training.records import BEST_SO_FAR, COMMANDS, iterate_jsonl, read_jsonl


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report is drawn from."""

    config_text: str
    steps: list[dict[str, Any]]
    """Lines of metrics.jsonl in step order, evenly spaced in a long run; of a step that was redone the last
    attempt's. See reports.steps."""
    steps_s: float
    """Seconds of all steps that count."""
    num_redone: int
    """Lines of metrics.jsonl that a later attempt did again."""
    restarts: list[int]
    """Steps at which a later attempt took over."""
    world_sizes: list[int]
    """Every number of workers that steps were done with, ascending."""
    evaluations: list[dict[str, Any]]
    events: list[dict[str, Any]]
    summary: dict[str, Any]
    """summary.json; empty while the run is not done."""
    goodput: dict[str, Any]
    """See reports.goodput; empty while nothing has been trained."""
    checkpoints: list[tuple[str, int]]
    """(name, bytes) of the checkpoints that are committed, oldest first."""
    commands: list[dict[str, Any]]
    """Lines of commands.jsonl; empty in a run that an older version trained."""

    def column(self, name: str) -> np.ndarray:
        """A column of the steps, NaN where it is missing. Shape (num_steps,)."""
        values = [row.get(name) for row in self.steps]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    def last_evaluation(self, split: str) -> dict[str, Any] | None:
        """The newest evaluation on a split."""
        rows = self.evaluations_of(split)
        return rows[-1] if rows else None

    def evaluations_of(self, split: str) -> list[dict[str, Any]]:
        """The evaluations on a split, in the order of the file."""
        return [row for row in self.evaluations if row["split"] == split]

    @property
    def best(self) -> dict[str, Any]:
        """`metric`, `value` and `step` of the best evaluation so far; empty when it is not known."""
        newest = (self.last_evaluation("validation") or {}).get(BEST_SO_FAR)
        if newest:
            return dict(newest)
        found = {name: self.summary.get(f"best_{name}") for name in ("metric", "value", "step")}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def best_evaluation(self) -> dict[str, Any] | None:
        """The evaluation on the validation split that the best model is from."""
        rows = [row for row in self.evaluations_of("validation") if row["step"] == self.best.get("step")]
        return rows[-1] if rows else None


def read_run(run: Storage) -> RunRecord:
    """Read a run's folder; files that are not there yet, or not whole, are empty."""
    steps, times = StepSample(), StepTimes()
    for row in iterate_jsonl(run, "metrics.jsonl"):
        steps.add(row)
        times.add(row)
    events = read_jsonl(run, "events.jsonl")
    return RunRecord(
        config_text=run.read_bytes("config.yaml").decode() if run.exists("config.yaml") else "",
        steps=steps.rows,
        steps_s=times.counted_s,
        num_redone=steps.num_redone,
        restarts=steps.restarts,
        world_sizes=steps.world_sizes,
        evaluations=last_evaluations(read_jsonl(run, "evals.jsonl")),
        events=events,
        summary=_read_summary(run),
        goodput=account(events, times),
        checkpoints=_read_checkpoints(run),
        commands=read_jsonl(run, COMMANDS),
    )


def last_evaluations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of evaluations of one split at one step the last, which is that of the last attempt; in the order of the file."""
    chosen: dict[tuple[Any, Any], dict[str, Any]] = {}
    for row in rows:
        if "step" in row and "split" in row:
            chosen.pop((row["split"], row["step"]), None)  # so that it moves to the end
            chosen[row["split"], row["step"]] = row
    return list(chosen.values())


def _read_summary(run: Storage) -> dict[str, Any]:
    try:
        return dict(json.loads(run.read_bytes("summary.json")))
    except (FileNotFoundError, ValueError, TypeError):  # not there yet, or being written
        return {}


def _read_checkpoints(run: Storage) -> list[tuple[str, int]]:
    folder = run.at("checkpoints")
    committed = [name for name in folder.list_names() if folder.exists(f"{name}/manifest.json")]
    return [(name, sum(folder.size_bytes(f"{name}/{file}") for file in folder.list_names(name))) for name in committed]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` values (fewer at the start), NaN left out. Same shape."""
    if window <= 1 or not len(values):
        return values
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
