"""Reads the files of a run for its report: redone steps count once, and long curves are subsampled."""

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
    """The data of a report."""

    config_text: str
    steps: list[dict[str, Any]]
    """Lines of metrics.jsonl in step order, subsampled evenly in a long run. A redone step has the line of its last
    attempt; see reports.steps."""
    steps_s: float
    """Total duration of all steps, without those that were redone later."""
    num_redone: int
    """Number of lines of metrics.jsonl whose step a later attempt has redone."""
    restarts: list[int]
    """Steps at which a later attempt took over."""
    world_sizes: list[int]
    """All world sizes that the run has trained with, ascending."""
    evaluations: list[dict[str, Any]]
    events: list[dict[str, Any]]
    summary: dict[str, Any]
    """summary.json; empty before the first command has ended."""
    goodput: dict[str, Any]
    """See reports.goodput; empty while nothing has been trained."""
    checkpoints: list[tuple[str, int]]
    """(name, bytes) of each committed checkpoint, oldest first."""
    commands: list[dict[str, Any]]
    """Lines of commands.jsonl; empty if an older version trained the run."""

    def column(self, name: str) -> np.ndarray:
        """One column of `steps`, NaN where it is missing; shape (len(steps),)."""
        values = [row.get(name) for row in self.steps]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    def last_evaluation(self, split: str) -> dict[str, Any] | None:
        """The newest evaluation on a split, if there is one."""
        rows = self.evaluations_of(split)
        return rows[-1] if rows else None

    def evaluations_of(self, split: str) -> list[dict[str, Any]]:
        """The evaluations on a split, in the order of the file."""
        return [row for row in self.evaluations if row["split"] == split]

    @property
    def best(self) -> dict[str, Any]:
        """`metric`, `value` and `step` of the best evaluation so far; empty if unknown."""
        newest = (self.last_evaluation("validation") or {}).get(BEST_SO_FAR)
        if newest:
            return dict(newest)
        found = {name: self.summary.get(f"best_{name}") for name in ("metric", "value", "step")}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def best_evaluation(self) -> dict[str, Any] | None:
        """The validation at the step of the best model."""
        rows = [row for row in self.evaluations_of("validation") if row["step"] == self.best.get("step")]
        return rows[-1] if rows else None


def read_run(run: Storage) -> RunRecord:
    """Read a run directory. Missing and incomplete files count as empty."""
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
    """The evaluations in file order, with only the last one, from the newest attempt, of each split and step."""
    chosen: dict[tuple[Any, Any], dict[str, Any]] = {}
    for row in rows:
        if "step" in row and "split" in row:
            chosen.pop((row["split"], row["step"]), None)  # so that it moves to the end
            chosen[row["split"], row["step"]] = row
    return list(chosen.values())


def _read_summary(run: Storage) -> dict[str, Any]:
    try:
        return dict(json.loads(run.read_bytes("summary.json")))
    except (FileNotFoundError, ValueError, TypeError):  # missing, or still being written
        return {}


def _read_checkpoints(run: Storage) -> list[tuple[str, int]]:
    folder = run.at("checkpoints")
    committed = [name for name in folder.list_names() if folder.exists(f"{name}/manifest.json")]
    return [(name, sum(folder.size_bytes(f"{name}/{file}") for file in folder.list_names(name))) for name in committed]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Trailing mean over `window` values, fewer at the start, ignoring NaN. Same shape as `values`."""
    if window <= 1 or not len(values):
        return values
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
