"""Adds up what workers have found out about rows: metrics of all rows and of slices, the worst rows, pairs of models.

The memory that this takes does not grow with the rows, and the sums do not depend on the order of the pieces.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain.data.readers.base import ROW
from raytrain.inference.judging import BY, LOSS, PREDICTED, TEXT, TRUE, WORST, judged_of, mean_losses
from raytrain.inference.significance import Pairs
from raytrain.tasks.base import Metrics, Scores, Task, TaskState
from raytrain.tasks.predicting import Judged
from raytrain.tasks.scores import CountedScores

MOST_SLICES = 20  # that are told; the others are one
MOST_VALUES = 1000  # of the column, that are told apart
OTHER = "(other)"


@dataclass
class _Loss:
    """The exact sum of losses, so that it does not depend on the order."""

    total: Fraction = Fraction()
    weight: Fraction = Fraction()
    is_finite: bool = True

    def add(self, losses: np.ndarray, weights: np.ndarray) -> None:
        self.is_finite = self.is_finite and bool(np.isfinite(losses).all())
        self.total += Fraction(math.fsum(losses[np.isfinite(losses)]))
        self.weight += Fraction(math.fsum(weights))

    @property
    def mean(self) -> float:
        return float(self.total / (self.weight or 1)) if self.is_finite else math.nan


class Totals:
    """The metrics of all rows, as an evaluation in training computes them."""

    def __init__(self, task: Task, state: TaskState):
        self.scores, self._loss, self.num_rows = task.scores(state), _Loss(), 0

    def add(self, judged: Judged) -> None:
        """Add rows."""
        has_targets = [row for row, weight in enumerate(judged.weights) if weight > 0]
        self.num_rows += len(judged.weights)
        self.scores.update([judged.predictions[i] for i in has_targets], [judged.targets[i] for i in has_targets])
        self._loss.add(judged.losses, judged.weights)

    def metrics(self) -> Metrics:
        """All of them, `loss` first."""
        found = self.scores.compute()
        return Metrics({LOSS: self._loss.mean, **found.values}, found.tables, found.notes)


@dataclass(frozen=True)
class Slice:
    """Rows with one value in a column."""

    value: str
    num_rows: int
    metrics: dict[str, float]


class Slices:
    """The metrics by value of a column: of those that occur most often, and of the others together."""

    def __init__(self, scores: Scores):
        """`scores`: which say how metrics follow from counts. Others give the loss alone."""
        self._scores = scores if isinstance(scores, CountedScores) else None
        self._losses: dict[str, _Loss] = {}
        self._counts: dict[str, Any] = {}
        self._rows: dict[str, int] = {}

    def add(self, values: Sequence[str], judged: Judged) -> None:
        """Add rows; `values`: the slice of each."""
        names, ids = np.unique(np.array(values, dtype=object).astype(str), return_inverse=True)
        counts = None if self._scores is None else self._scores.counts_of(judged.predictions, judged.targets)
        for number, name in enumerate(names.tolist()):
            key, where = name, ids == number
            if key not in self._rows and len(self._rows) >= MOST_VALUES:
                key = OTHER
            self._losses.setdefault(key, _Loss()).add(judged.losses[where], judged.weights[where])
            self._rows[key] = self._rows.get(key, 0) + int(where.sum())
            if counts is not None:
                self._counts[key] = self._counts.get(key, 0) + counts[where].sum(0)

    def found(self) -> list[Slice]:
        """The slices, largest first, the others last."""
        names = sorted((name for name in self._rows if name != OTHER), key=lambda name: (-self._rows[name], name))
        groups = [[name] for name in names[:MOST_SLICES]]
        if rest := [*names[MOST_SLICES:], *([OTHER] if OTHER in self._rows else [])]:
            groups.append(rest)
        return [self._slice(group[0] if len(group) == 1 else OTHER, group) for group in groups]

    @property
    def has_too_many(self) -> bool:
        """Whether some values were not told apart."""
        return OTHER in self._rows

    def _slice(self, value: str, names: list[str]) -> Slice:
        loss = _Loss()
        for name in names:
            one = self._losses[name]
            loss = _Loss(loss.total + one.total, loss.weight + one.weight, loss.is_finite and one.is_finite)
        metrics = {LOSS: loss.mean}
        if self._scores is not None:
            values = self._scores.values_of(np.sum([self._counts[name] for name in names], axis=0))
            metrics |= {name: float(value) for name, value in values.items()}
        return Slice(value, sum(self._rows[name] for name in names), metrics)


@dataclass(frozen=True)
class WorstRow:
    """A row with a large loss."""

    file: str
    row: int
    """In its file, from 1."""
    loss: float
    """Mean over its targets."""
    text: str
    true: str | None
    """None, as `predicted`, where texts are their own targets."""
    predicted: str | None


@dataclass
class Worst:
    """The rows with the largest losses."""

    _rows: list[WorstRow] = field(default_factory=list)

    def add(self, file: str, table: pa.Table, judged: Judged) -> None:
        """Add the rows of a piece whose texts were kept."""
        losses = mean_losses(judged.losses, judged.weights)
        kept = table.append_column(LOSS, pa.array(losses)).filter(pc.is_valid(table[TEXT]))
        new = [
            WorstRow(file, row[ROW], row[LOSS], row[TEXT], row[TRUE], row[PREDICTED])
            for row in kept.select([ROW, LOSS, TEXT, TRUE, PREDICTED]).to_pylist()
        ]
        self._rows = heapq.nsmallest(WORST, [*self._rows, *new], key=_rank)

    def found(self) -> list[WorstRow]:
        """The worst first."""
        return self._rows


def _rank(row: WorstRow) -> tuple[float, str, int]:
    return (-row.loss if math.isfinite(row.loss) else -math.inf, row.file, row.row)


class JudgedTotals:
    """All that is known about a source so far."""

    def __init__(self, models: Sequence[tuple[Task, TaskState]], *, is_sliced: bool):
        """`models`: the task and the state of each, see `ModelCard.judging_state`."""
        self.totals = [Totals(task, state) for task, state in models]
        self.slices = Slices(self.totals[0].scores) if is_sliced else None
        self.worst = Worst()
        self.pairs = Pairs([one.scores for one in self.totals]) if len(models) > 1 else None

    def add(self, file: str, key: int, table: pa.Table) -> None:
        """Add a piece.

        Args:
            key: A number of the read task, so that rows of all files have keys of their own.
            table: As `judge_rows` made it.
        """
        judged = [judged_of(table, number) for number in range(len(self.totals))]
        for total, one in zip(self.totals, judged, strict=True):
            total.add(one)
        if self.slices is not None:
            self.slices.add(table[BY].to_pylist(), judged[0])
        self.worst.add(file, table, judged[0])
        if self.pairs is not None:
            self.pairs.add(key, table[ROW].to_numpy(), judged)
