"""The state of a sweep's trials, and the files that record it: one trial.json per trial. No Ray."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from raytrain.errors import FailureCode
from raytrain.storage import Storage
from raytrain.tuning.space.space import Objective, Values

TRIALS = "trials"
BEST = ("best_value", "best_step", "best_values")
OVER = ("finished", "stopped_early", "pruned", "failed")
STATUSES = ("waiting", "running", "stopped", *OVER)


@dataclass(frozen=True)
class TrialFailure:
    """What a trial failed of."""

    code: FailureCode
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @classmethod
    def from_json(cls, raw: Mapping[str, str]) -> Self:
        """The inverse of `asdict`."""
        return cls(FailureCode(raw["code"]), raw["message"])


@dataclass(frozen=True)
class TrialRow:
    """The state of one trial."""

    name: str
    values: Values
    """What it changes in the sweep's config, including the seed of a repeat."""
    status: str = "waiting"
    """waiting, running, stopped (with the sweep, to be resumed with it), or one of OVER: finished or stopped_early by
    itself, pruned by the scheduler, failed."""
    step: int = 0
    value: float | None = None
    """The metric at its newest evaluation."""
    best_value: float | None = None
    best_step: int | None = None
    best_others: dict[str, float] = field(default_factory=dict)
    """Metric -> value of the space's other objectives at that evaluation."""
    best_values: Values | None = None
    """What it changed in the config when it was best. The values of a population's trials change."""
    rung: int = 0
    workers: int = 0
    """Workers that it may have now."""
    goodput: float | None = None
    """Fraction of its worker-seconds spent in evaluations and steps that count. Known at its end."""
    failure: TrialFailure | None = None
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, value) of each evaluation."""
    sources: list[tuple[int, str]] = field(default_factory=list)
    """(step, other trial) of each time that it continued from another trial's model."""

    @property
    def values_at_best(self) -> Values:
        """What it changed in the config when it was best, or what it changes now."""
        return self.values if self.best_values is None else self.best_values

    @property
    def is_over(self) -> bool:
        """Whether it will not be trained any further."""
        return self.status in OVER


class TrialTable:
    """All trials of a sweep, in the order in which they started."""

    def __init__(self, root: Storage, mode: str):
        """Reads what earlier commands recorded. `mode`: max or min, the direction of the metric."""
        self._root = root
        self.sign = 1.0 if mode == "max" else -1.0
        """+1.0 to maximize, -1.0 to minimize. Multiplied by it, larger is always better."""
        self.rows: dict[str, TrialRow] = {}
        for name in sorted(root.list_names(TRIALS)) if root.exists(TRIALS) else []:
            if root.exists(f"{TRIALS}/{name}/trial.json"):
                raw = json.loads(root.read_bytes(f"{TRIALS}/{name}/trial.json"))
                raw["history"] = [(int(step), float(value)) for step, value in raw["history"]]
                raw["sources"] = [(int(step), str(source)) for step, source in raw.get("sources", [])]
                raw["failure"] = TrialFailure.from_json(raw["failure"]) if raw.get("failure") else None
                self.rows[name] = TrialRow(**raw)
        self.began_at_s = time.time()

    def update(self, name: str, **changes: Any) -> TrialRow:
        """Change a trial's row. Its file is written if its status changed."""
        before = self.rows[name]
        row = self.rows[name] = replace(before, **changes)
        if row.status != before.status:
            self._write(row)
        return row

    def add(self, name: str, values: Values) -> TrialRow:
        """Add a trial that starts, or return the row of a known one."""
        if name not in self.rows:
            self.rows[name] = TrialRow(name, values)
            self._write(self.rows[name])
        return self.rows[name]

    def evaluated(
        self,
        name: str,
        step: int,
        value: float,
        rung: int,
        others: Mapping[str, float] | None = None,
        *,
        is_kept: bool = False,
    ) -> TrialRow:
        """Record a trial's newest evaluation. One that is reported again after an interruption is counted once.

        Args:
            others: Metric -> value of the space's other objectives.
            is_kept: Whether the run has kept the model as its best, also if only its loss is lower.
        """
        row = self.rows[name]
        if not math.isfinite(value) or any(step <= known for known, _ in row.history[-1:]):
            return row
        is_best = row.best_value is None or self.sign * value > self.sign * row.best_value
        is_best = is_best or (is_kept and value == row.best_value)
        best: dict[str, Any] = {"best_value": value, "best_step": step, "best_values": row.values}
        best = {**best, "best_others": dict(others or {})} if is_best else {}
        return self.update(name, step=step, value=value, rung=rung, history=[*row.history, (step, value)], **best)

    def exchanged(self, name: str, values: Values, step: int, source: str, best: dict[str, Any]) -> TrialRow:
        """Record that a trial continues from another's model with other values. `best`: the other's BEST, whose best
        model becomes this trial's too."""
        row = self.update(name, values=values, sources=[*self.rows[name].sources, (step, source)], **best)
        self._write(row)
        return row

    @property
    def best(self) -> TrialRow | None:
        """The trial with the best value at any of its evaluations, among those that did not fail if there are any."""
        rows = [row for row in self.best_first() if row.best_value is not None]
        return next((row for row in rows if row.status != "failed"), rows[0] if rows else None)

    def best_first(self) -> list[TrialRow]:
        """All trials, ordered by their best values. Those that were not evaluated come last."""
        return sorted(
            self.rows.values(), key=lambda row: (row.best_value is None, -self.sign * (row.best_value or 0.0))
        )

    def reached(self, name: str, also: Sequence[Objective]) -> list[float] | None:
        """All objectives of a trial's best model, negated if lower is better. None if it failed or one is unknown."""
        row = self.rows[name]
        if row.best_value is None or row.status == "failed" or any(o.metric not in row.best_others for o in also):
            return None
        return [self.sign * row.best_value, *(o.sign * row.best_others[o.metric] for o in also)]

    def front(self, also: Sequence[Objective]) -> list[TrialRow]:
        """The Pareto front, the best first: no other trial is as good in all objectives and better in one."""
        values = {name: reached for name in self.rows if (reached := self.reached(name, also)) is not None}
        return [
            row
            for row in self.best_first()
            if row.name in values and not any(_beats(other, values[row.name]) for other in values.values())
        ]

    @property
    def steps(self) -> int:
        """Total optimizer steps of all trials, up to their newest evaluations."""
        return sum(row.step for row in self.rows.values())

    def count(self, *statuses: str) -> int:
        """Number of trials with one of these statuses."""
        return sum(row.status in statuses for row in self.rows.values())

    @property
    def num_over(self) -> int:
        """Number of trials that will not be trained any further."""
        return self.count(*OVER)

    def standing(self) -> tuple[dict[str, int], float | None, int]:
        """(number of trials by status, best value, total steps)."""
        best = self.best
        value = best.best_value if best else None
        return {status: self.count(status) for status in STATUSES}, value, self.steps

    def share_failed(self) -> float:
        """Failed trials as a fraction of those that are over."""
        return self.count("failed") / max(1, self.num_over)

    def write_all(self) -> None:
        """Write every row as it is now."""
        for row in self.rows.values():
            self._write(row)

    def _write(self, row: TrialRow) -> None:
        self._root.commit_bytes(f"{TRIALS}/{row.name}/trial.json", json.dumps(asdict(row), indent=1).encode())


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one trial dominates another: it is as good in every objective and better in one. Larger is better."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))
