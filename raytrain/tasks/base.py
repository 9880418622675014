"""What a task is: one small protocol between the data, the loop and the metrics. A new task is one file.

Encoding and collating run in Ray Data's processes, which stay light: no torch at the top of a task's module.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, np.ndarray]
"""A collated micro-batch: model inputs of shape (micro_batch, seq_len), int64, and `labels`."""

IGNORED = -100
"""Label of a position without a target; torch's cross-entropy leaves it out."""


@dataclass(frozen=True)
class Encoded:
    """A chunk of source rows as samples."""

    table: pa.Table
    """`input_ids` and the task's columns, one row a sample."""
    num_truncated: int
    """Samples that were longer than data.max_length."""
    rejected: list[tuple[int, str]]
    """(row in the chunk, reason) of the rows that can't be used."""


@dataclass(frozen=True)
class Metrics:
    """Outcome of an evaluation."""

    values: dict[str, float]
    """Numbers by name, such as accuracy and macro_f1."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """JSON-able tables: {"columns": [...], "rows": [[...]]} or {"labels": [...], "counts": [[...]]}."""


class Task(Protocol):
    """What is learned: its columns, its loss, its predictions, its metrics."""

    best_metric: str
    """Metric that picks the best model when the config names none."""
    best_mode: str
    """Whether it is better when `min` or `max`."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that an evaluation gives, `loss` among them."""

    def required_columns(self) -> list[str]:
        """Columns that every source must have."""

    def find_labels(self, table: pa.Table) -> set[str]:
        """Labels in a chunk of source rows."""

    def order_labels(self, found: set[str]) -> list[str]:
        """The labels in id order: the declared ones, else those found."""

    def encode(self, table: pa.Table, tokenizer: Any, labels: list[str]) -> Encoded:
        """Source rows as samples. A label outside `labels` is rejected with a reason that starts with "label"."""

    def collate(self, samples: pa.Table, pad_token_id: int, pad_to: int | None = None) -> Batch:
        """Rows of the prepared store as a padded micro-batch."""

    def blank(self, batch: Batch) -> Batch:
        """The same inputs without any target, for a micro-batch that must be run but has no samples."""

    def num_targets(self, batch: Batch) -> int:
        """Targets that the loss is a mean over (P7): tokens, or samples."""

    def build_model(self, model: ModelConfig, labels: list[str], training: TrainingConfig) -> "nn.Module":
        """The model before training, fp32 on the CPU."""

    def loss_sum(self, model: "nn.Module", batch: dict[str, "Tensor"]) -> "Tensor":
        """Sum of the loss over the targets: a scalar, fp32."""

    def predict(self, model: "nn.Module", batch: dict[str, "Tensor"]) -> "tuple[Tensor, list[np.ndarray]]":
        """The summed loss, and for each sample its predicted ids at the targets."""

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each sample the true ids at the targets, shaped like its predictions."""

    def metrics(self, predictions: list[np.ndarray], targets: list[np.ndarray], labels: list[str]) -> Metrics:
        """Metrics over a whole split."""
