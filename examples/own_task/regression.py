"""A task of one's own: a number from a few numbers, by a network of one's own, with metrics of its own.

python make_data.py                   # in this folder: writes data/train.parquet
raytrain train regression.yaml
raytrain predict regression data/train.parquet --out predicted.csv
"""

from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.tasks import (
    Batch,
    BatchContext,
    Decoding,
    Inputs,
    Metrics,
    Predicting,
    Rejection,
    RowError,
    Scores,
    Task,
    TaskState,
)


class Regression(Task, Predicting):
    """The mean squared error of a prediction of `target` from `features`."""

    metrics = {"mae": "min", "r2": "max"}
    best_metric = "mae"

    def __init__(self, max_length: int, features: list[str], target: str):
        self.features, self.target = features, target

    def input_columns(self) -> list[str]:
        return self.features

    def target_columns(self) -> list[str]:
        return [self.target]

    # What is learned from the data: the scale of the targets.

    def declared_state(self) -> TaskState | None:
        return None

    def assumed_state(self) -> TaskState:
        return {"mean": 0.0, "std": 1.0}

    def survey(self, rows: pa.Table, split: str) -> TaskState:
        values = _floats(rows[self.target]) if split == "train" else np.zeros(0)
        values = values[np.isfinite(values)]
        return {"count": len(values), "sum": float(values.sum()), "squares": float((values**2).sum())}

    def state_from(self, surveys: list[TaskState]) -> TaskState:
        count, total, squares = (sum(survey[key] for survey in surveys) for key in ("count", "sum", "squares"))
        mean = total / max(1, count)
        return {"mean": mean, "std": max(1e-6, squares / max(1, count) - mean**2) ** 0.5}

    # Rows to samples, samples to batches.

    def check_targets(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        is_bad = ~np.isfinite(_floats(rows[self.target]))
        return [Rejection(int(row), RowError.BAD_TARGET, f"{self.target} is missing") for row in np.flatnonzero(is_bad)]

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        columns = {name: pa.array(np.nan_to_num(_floats(rows[name])), pa.float32()) for name in self.features}
        return Inputs(pa.table(columns), num_truncated=0)

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        return inputs.append_column(self.target, pa.array(_floats(rows[self.target]), pa.float32()))

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        y = (_floats(samples[self.target]) - context.state["mean"]) / context.state["std"]
        return {
            "x": np.stack([_floats(samples[name]) for name in self.features], axis=1).astype(np.float32),
            "y": y.astype(np.float32),
            "has_target": np.ones(len(samples), np.float32),
        }

    def blank(self, batch: Batch) -> Batch:
        return {**{name: array[:1].copy() for name, array in batch.items()}, "has_target": np.zeros(1, np.float32)}

    def target_weight(self, batch: Batch) -> float:
        return float(batch["has_target"].sum())

    # The network and its loss.

    def build_model(self, model: Any, state: TaskState, training: Any) -> Any:
        from torch import nn

        hidden = model.config["hidden"]
        return nn.Sequential(nn.Linear(len(self.features), hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def loss_sum(self, model: Any, batch: dict[str, Any]) -> Any:
        return self._squares(model, batch)[0]

    def predict(self, model: Any, batch: dict[str, Any]) -> tuple[Any, list[np.ndarray]]:
        loss, predicted = self._squares(model, batch)
        return loss, list(predicted.cpu().numpy()[batch["has_target"].cpu().numpy() > 0])

    def targets(self, batch: Batch) -> list[np.ndarray]:
        return list(batch["y"][batch["has_target"] > 0])

    # Predictions of a trained model, for rows that need no target.

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        return [f"predicted_{self.target}"]

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        return {"x": np.stack([_floats(samples[name]) for name in self.features], axis=1).astype(np.float32)}

    def infer(self, model: Any, batch: dict[str, Any]) -> list[np.ndarray]:
        return list(model(batch["x"]).float()[:, 0].cpu().numpy())

    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        values = np.array(outputs, np.float64) * state["std"] + state["mean"]
        return pa.table([pa.array(values)], self.output_columns(state, decoding))

    def scores(self, state: TaskState) -> Scores:
        return RegressionScores(state["std"])

    def _squares(self, model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        weight = next(model.parameters())
        predicted = model(batch["x"].to(weight.dtype)).float()[:, 0]
        return ((predicted - batch["y"]) ** 2 * batch["has_target"]).sum(), predicted


class RegressionScores(Scores):
    """Mean absolute error in the unit of the target, and the share of its variance that is explained."""

    def __init__(self, std: float):
        self.std = std
        self.sums = np.zeros(5)  # samples, absolute errors, squared errors, targets, squared targets

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        predicted, true = np.array(predictions, np.float64), np.array(targets, np.float64)
        error = predicted - true
        self.sums += [len(true), np.abs(error).sum(), (error**2).sum(), true.sum(), (true**2).sum()]

    def state(self) -> dict[str, np.ndarray]:
        return {"sums": self.sums}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        self.sums += state["sums"]

    def compute(self) -> Metrics:
        count, absolute, squared, total, squares = self.sums
        if not count:
            return Metrics({})
        variance = max(1e-12, squares - total**2 / count)
        return Metrics({"mae": float(absolute / count * self.std), "r2": float(1 - squared / variance)})


def _floats(column: Any) -> np.ndarray:
    """Numbers as they are, what is missing or no number as nan."""
    return np.array([value if isinstance(value, (int, float)) else np.nan for value in column.to_pylist()], np.float64)
