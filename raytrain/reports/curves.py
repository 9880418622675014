"""The numbers behind the report: a run's files, with redone steps taken once and long curves thinned."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.reports.goodput import goodput
from raytrain.storage import Storage
from raytrain.training.records import BEST_SO_FAR, COMMANDS, last_attempt_rows, read_jsonl

MAX_POINTS = 2000


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report is drawn from."""

    config_text: str
    steps: list[dict[str, Any]]
    """Lines of metrics.jsonl in step order; of a step that was redone the last attempt's."""
    num_redone: int
    """Lines of metrics.jsonl that a later attempt did again."""
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

    def restarts(self) -> list[int]:
        """Steps at which a later attempt took over."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [after["step"] for before, after in pairs if before.get("attempt", 0) != after.get("attempt", 0)]

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
    rows = [row for row in read_jsonl(run, "metrics.jsonl") if row.get("step") is not None]
    steps = last_attempt_rows(rows)
    events = read_jsonl(run, "events.jsonl")
    return RunRecord(
        config_text=run.read_bytes("config.yaml").decode() if run.exists("config.yaml") else "",
        steps=steps,
        num_redone=len(rows) - len(steps),
        evaluations=last_evaluations(read_jsonl(run, "evals.jsonl")),
        events=events,
        summary=_read_summary(run),
        goodput=goodput(events, rows),
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


def thin(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every k-th row of equally long columns, so that at most MAX_POINTS are left; the last row always stays."""
    num = len(columns[0])
    if num <= MAX_POINTS:
        return columns
    keep = np.unique(np.linspace(0, num - 1, MAX_POINTS).astype(int))
    return tuple(column[keep] for column in columns)
