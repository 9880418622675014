"""One number for a text, or several: scores, ratings, prices.

The model predicts targets that are scaled to mean 0 and deviation 1 in the training data; metrics and predictions are
in the units of the data.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, RegressionConfig, TrainingConfig
from raytrain.errors import DataError
from raytrain.tasks.base import Batch, BatchContext, Metrics, Mode, Rejection, RowError, Scores, TaskState
from raytrain.tasks.label_cells import described
from raytrain.tasks.predicting import Decoding
from raytrain.tasks.ranking import NDCG, RankedLists, list_number, with_ranking
from raytrain.tasks.text import padded_inputs
from raytrain.tasks.text_pairs import TextPairTask

if TYPE_CHECKING:
    from torch import Tensor, nn

UNIT = 2.0**-24  # what is summed is rounded to multiples of it: sums up to 2**29 then do not depend on the order
LIST = "list"
MOST = 2.0**20
"""Of a scaled target or prediction in a metric; a larger one is taken for this."""


class Regression(TextPairTask):
    """Mean squared error of the scaled targets."""

    config: RegressionConfig

    @property
    def uses_threshold(self) -> bool:
        """Nothing is chosen by a probability."""
        return False

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        ranking: dict[str, Mode] = {NDCG: "max"} if self.config.ranking_column is not None else {}
        return {"mse": "min", "mae": "min", "r2": "max", "pearson": "max", **ranking}

    def target_columns(self) -> list[str]:
        """The numbers, and the list that a row is in."""
        lists = self.config.ranking_column
        return list(dict.fromkeys([*self.config.target_columns, *([lists] if lists is not None else [])]))

    def declared_state(self) -> TaskState | None:
        """None: the scale of the targets is that of the data."""
        return None

    def assumed_state(self) -> TaskState:
        """A scale that changes nothing."""
        return {"mean": [0.0] * len(self.config.target_columns), "deviation": [1.0] * len(self.config.target_columns)}

    def survey(self, rows: pa.Table, split: str) -> TaskState:
        """Number, mean and sum of squared deviations of each target, of usable training rows."""
        bad = {one.row for one in (*self.check_inputs(rows), *self._check_numbers(rows))}
        good = [row for row in range(len(rows)) if row not in bad] if split == "train" else []
        values = self._numbers(rows.take(pa.array(good, pa.int64())))
        with np.errstate(over="ignore", invalid="ignore"):  # `state_from` refuses what comes of it
            means = values.mean(0) if len(values) else np.zeros(values.shape[1])
            squares = ((values - means) ** 2).sum(0)
        return {"count": len(values), "mean": means.tolist(), "squares": squares.tolist()}

    def state_from(self, surveys: list[TaskState]) -> TaskState:
        """Mean and standard deviation of each target in the training data. Raises DataError when one never
        varies, or has values that are too large."""
        count, mean, squares = 0, np.zeros(len(self.config.target_columns)), np.zeros(len(self.config.target_columns))
        for one in surveys:
            if one["count"]:
                total = count + one["count"]
                apart = np.array(one["mean"]) - mean
                mean = mean + apart * one["count"] / total
                squares = squares + np.array(one["squares"]) + apart**2 * count * one["count"] / total
                count = total
        deviation = np.sqrt(squares / max(1, count))
        for name, value, spread in zip(self.config.target_columns, mean, deviation, strict=True):
            if not (math.isfinite(value) and math.isfinite(spread)):
                raise DataError(
                    f"task.target_columns {name}: its training values are so large that their mean and deviation are "
                    "none that a computer can tell. Divide the column by a constant"
                )
            if not spread > 1e-12 * max(1.0, abs(value)):
                raise DataError(
                    f"task.target_columns {name}: all of its {count:,} training values are {value:g}, so there is "
                    "nothing to learn. Name another column"
                )
        return {"mean": mean.tolist(), "deviation": deviation.tolist()}

    def check_targets(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        """Rows in which a target is missing or is not a finite number, or that are in no list."""
        return self._check_all(rows)

    def check_before_survey(self, rows: pa.Table) -> list[Rejection]:
        """Rows without a text, a number or a list."""
        return [*self.check_inputs(rows), *self._check_all(rows)]

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """Adds `labels`, the scaled targets, and `list`, a number of the list."""
        scaled = (self._numbers(rows) - np.array(state["mean"])) / np.array(state["deviation"])
        samples = inputs.append_column("labels", pa.array(scaled.tolist(), pa.list_(pa.float32())))
        if self.config.ranking_column is None:
            return samples
        lists = list(map(list_number, rows[self.config.ranking_column].to_pylist()))
        return samples.append_column(LIST, pa.array(lists, pa.int64()))

    def name_targets(self, targets: Any, tokens: list[str], state: TaskState) -> Any:
        """The numbers by column, in the units of the data."""
        values = np.array(targets) * np.array(state["deviation"]) + np.array(state["mean"])
        return {name: float(f"{value:.6g}") for name, value in zip(self.config.target_columns, values, strict=True)}

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """The padded inputs; `labels`, the scaled targets, of shape (num_samples, num_targets), fp32; `weights`, 1 for
        each sample, of shape (num_samples,), fp32; `list`, its list's number, of shape (num_samples,), int64."""
        labels = np.array(samples["labels"].to_pylist(), np.float32)
        weights = np.ones(len(samples), np.float32)
        batch = {**padded_inputs(samples, context.pad_token_id), "labels": labels, "weights": weights}
        return batch if self.config.ranking_column is None else {**batch, LIST: samples[LIST].to_numpy()}

    def blank(self, batch: Batch) -> Batch:
        """The first sample of a batch without its targets."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        return {**blank, "weights": np.zeros(1, np.float32)}

    def target_weight(self, batch: Batch) -> float:
        """Samples with targets."""
        return float(batch["weights"].sum())

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """An encoder or decoder with a number for each target."""
        from raytrain.models.build import build_with_head

        names = self.config.target_columns
        return build_with_head("AutoModelForSequenceClassification", model, names, training, problem_type="regression")

    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the samples of the mean over their targets."""
        return self._loss_and_outputs(model, batch)[0]

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each sample its scaled predictions, shape (num_targets,), fp32."""
        loss, outputs = self._loss_and_outputs(model, batch)
        has_target = batch["weights"].cpu().numpy() > 0
        return loss, list(outputs.cpu().numpy()[has_target])

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each sample its scaled targets; where there are lists, float64 with its list's number behind them."""
        targets = batch["labels"]
        if self.config.ranking_column is not None:
            targets = np.concatenate([targets.astype(np.float64), batch[LIST][:, None]], axis=1)
        return list(targets[batch["weights"] > 0])

    def scores(self, state: TaskState) -> Scores:
        """Errors, explained variance and correlation of each target."""
        ranks = self.config.ranking_column is not None
        scale = (state["mean"][0], state["deviation"][0]) if ranks else None
        return RegressionScores(self.config.target_columns, state["deviation"], scale)

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """A `predicted_` column for each target."""
        return [f"predicted_{name}" for name in self.config.target_columns]

    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """The predictions in the units of the data."""
        values = np.array(outputs, np.float64).reshape(len(outputs), len(self.config.target_columns))
        values = values * np.array(state["deviation"]) + np.array(state["mean"])
        return pa.table(list(map(pa.array, values.T)), self.output_columns(state, decoding))

    def _loss_and_outputs(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        outputs = self._logits(model, batch)
        errors = ((outputs - batch["labels"]) ** 2).mean(-1)
        return (errors * batch["weights"]).sum(), outputs

    def _check_all(self, rows: pa.Table) -> list[Rejection]:
        name = self.config.ranking_column
        cells = [] if name is None else rows[name].to_pylist()
        no_list = [
            Rejection(row, RowError.BAD_TARGET, f"{name} is empty")
            for row, cell in enumerate(cells)
            if cell in (None, "")
        ]
        return [*self._check_numbers(rows), *no_list]

    def _check_numbers(self, rows: pa.Table) -> list[Rejection]:
        return [
            Rejection(row, RowError.BAD_TARGET, f"{name} {reason}")
            for name in self.config.target_columns
            for row, value in enumerate(rows[name].to_pylist())
            if (reason := _why_no_number(value))
        ]

    def _numbers(self, rows: pa.Table) -> np.ndarray:
        """Shape (num_rows, num_targets), float64."""
        columns = [[float(value) for value in rows[name].to_pylist()] for name in self.config.target_columns]
        return np.array(columns, np.float64).reshape(len(columns), len(rows)).T


class RegressionScores(Scores):
    """Errors in the units of the data, explained variance, and the correlation of predictions and targets; of several
    targets the means over them, and a table. With lists, how the first target's predictions order them."""

    def __init__(self, names: Sequence[str], deviations: Sequence[float], scale: tuple[float, float] | None = None):
        """`scale`: mean and deviation of the first target, where rows are in lists; None: they are in none."""
        self._scale, self._lists = scale, None if scale is None else RankedLists()
        self._names, self._deviations = list(names), np.array(deviations)
        self._count = np.zeros(1, np.int64)
        self._sums = np.zeros((7, len(self._names)))
        """Of errors without sign, squared errors, predictions, targets, squared predictions, squared targets, products;
        scaled, by target."""

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Scaled values, shape (num_targets,) for each sample; `targets` with the number of the list behind them."""
        if not targets:
            return
        if self._scale is not None and self._lists is not None:
            known = np.array(targets, np.float64)
            mean, deviation = self._scale
            of_first = np.array(predictions, np.float64)[:, 0]
            self._lists.add(known[:, -1], of_first, known[:, 0] * deviation + mean)
            targets = list(known[:, :-1])
        ours, true = (np.clip(np.array(one, np.float64), -MOST, MOST) for one in (predictions, targets))
        found = np.stack([abs(ours - true), (ours - true) ** 2, ours, true, ours**2, true**2, ours * true])
        self._sums += (np.round(found / UNIT) * UNIT).sum(1)
        self._count += len(targets)

    def state(self) -> dict[str, np.ndarray]:
        """The sums, and the rows of the lists."""
        lists = {} if self._lists is None else {f"ranking:{name}": one for name, one in self._lists.state().items()}
        return {"sums": self._sums, "count": self._count, **lists}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's sums."""
        self._sums += state["sums"]
        self._count += state["count"]
        if self._lists is not None:
            self._lists.merge({name: state[f"ranking:{name}"] for name in self._lists.state()})

    def compute(self) -> Metrics:
        """All of them. A correlation that is not defined, as of equal predictions, is 0."""
        count = int(self._count[0])
        if not count:
            return Metrics({})
        absolute, squared, ours, true, ours2, true2, products = self._sums / count
        spread_of_ours, spread = np.maximum(ours2 - ours**2, 0.0), np.maximum(true2 - true**2, 0.0)
        explained = 1 - np.divide(squared, spread, out=np.ones_like(squared), where=spread > 1e-12)
        norm = np.sqrt(spread_of_ours * spread)
        correlation = np.divide(products - ours * true, norm, out=np.zeros_like(norm), where=norm > 1e-12)
        columns = {
            "mse": squared * self._deviations**2,
            "mae": absolute * self._deviations,
            "r2": explained,
            "pearson": np.clip(correlation, -1.0, 1.0),
        }
        values = {name: float(column.mean()) for name, column in columns.items()}
        tables: dict[str, dict[str, Any]] = {}
        if len(self._names) > 1:
            rows = [[name, *map(float, row)] for name, *row in zip(self._names, *columns.values(), strict=True)]
            tables = {"per_target": {"columns": ["target", *columns], "rows": rows}}
        return with_ranking(Metrics(values, tables), self._lists)


def _why_no_number(value: Any) -> str:
    """Why a cell can't be read as a number, or an empty string."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return f"is {described(value)} and not a number"
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return f"is {str(value)[:40]!r} and not a number"
    return "" if math.isfinite(number) else f"is {number} and not a finite number"
