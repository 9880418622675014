"""What language models share: texts whose own tokens are predicted, and the loss of each of them."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.tasks.base import IGNORED, Batch, Rejection, RowError, Scores, TaskState
from raytrain.tasks.predicting import Decoding, Judged, Predicting
from raytrain.tasks.text import TextTask, model_inputs, why_no_text
from raytrain.tasks.token_scores import TokenScores, loss_units

if TYPE_CHECKING:
    from torch import Tensor, nn

PIECE = "piece"  # place of a sample in its document, from 0; not stored
NUM_BYTES = "num_bytes"  # of the text that a sample's targets stand for


class TokenPrediction(TextTask, Predicting):
    """Cross-entropy over tokens. A row is a document, which may become several samples."""

    def __init__(self, config: Any, max_length: int):
        """`config`: has a `text_column`."""
        self.config = config
        self.max_length = max_length

    def input_columns(self) -> list[str]:
        """The text."""
        return [self.config.text_column]

    def text_columns(self) -> list[str]:
        """The text."""
        return self.input_columns()

    def target_columns(self) -> list[str]:
        """None: the targets are the text's own tokens."""
        return []

    @property
    def uses_threshold(self) -> bool:
        """Nothing is chosen by a probability."""
        return False

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows without a text."""
        column = self.config.text_column
        return [
            Rejection(row, RowError.BAD_INPUT, f"{column} {reason}")
            for row, text in enumerate(rows[column].to_pylist())
            if (reason := why_no_text(text))
        ]

    def long_rows(self) -> pa.Table:
        """A text."""
        return pa.table({self.config.text_column: ["a " * self.max_length]})

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """The samples: targets are made of them when they are collated."""
        return inputs.drop_columns(PIECE)

    @abstractmethod
    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """Samples with `labels`: texts are their own targets."""

    def blank(self, batch: Batch) -> Batch:
        """The first sample of a batch without targets."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        blank["labels"][:] = IGNORED
        return blank

    def target_weight(self, batch: Batch) -> float:
        """Tokens that are predicted."""
        return float((batch["labels"] != IGNORED).sum())

    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the tokens that are predicted."""
        from raytrain.models.token_losses import loss_sum_at_targets

        return loss_sum_at_targets(model, model_inputs(batch), batch["labels"])

    def smoothed_loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]", smoothing: float) -> "Tensor":
        """The same, of smoothed targets."""
        from raytrain.models.token_losses import loss_sum_at_targets

        return loss_sum_at_targets(model, model_inputs(batch), batch["labels"], smoothing)

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each sample with a target its loss, in LOSS_UNITS, and the number of tokens predicted right, int64."""
        from raytrain.models.token_losses import log_probabilities, losses_at_targets

        found = losses_at_targets(model, model_inputs(batch), batch["labels"])
        parts = _by_sample(log_probabilities(*found), batch)
        return found[0].sum(), [_prediction(part) for part in parts if len(part)]

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each sample with a target their number, and the bytes of the text that they stand for, int64."""
        counts = (batch["labels"] != IGNORED).sum(1)
        num_bytes = batch.get(NUM_BYTES, np.zeros(len(counts), np.int64))
        return [np.array(one) for one in zip(counts, num_bytes, strict=True) if one[0]]

    def scores(self, state: TaskState) -> Scores:
        """Perplexity, bits per byte where the bytes are known, and accuracy of the tokens."""
        return TokenScores(knows_bytes="bits_per_byte" in self.metrics)

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """The mean loss of the row's targets, and their number."""
        return ["loss", "num_tokens"]

    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample, of each target the log-probability, and that of the most probable other token; shape
        (num_targets, 2), fp32."""
        from raytrain.models.token_losses import log_probabilities, losses_at_targets

        return _by_sample(log_probabilities(*losses_at_targets(model, model_inputs(batch), batch["labels"])), batch)

    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """The loss of each document, over all its samples; null where it has no token to predict."""
        sums, counts = self._losses(outputs, samples)
        losses = np.divide(sums, counts, out=np.zeros(len(sums)), where=counts > 0)
        columns = [pa.array(losses.round(6), mask=counts == 0), pa.array(counts.astype(np.int64))]
        return pa.table(columns, self.output_columns(state, decoding))

    def judge(self, outputs: list[np.ndarray], samples: pa.Table, state: TaskState, decoding: Decoding) -> Judged:
        """The sums of a row's samples."""
        documents = _documents(samples)
        losses, counts = self._losses(outputs, samples)
        predictions, targets = np.zeros((2, len(losses), 2), np.int64)
        np.add.at(predictions, documents, np.array([_prediction(one) for one in outputs]).reshape(-1, 2))
        targets[:, 0] = counts
        if NUM_BYTES in samples.column_names:
            has_targets = np.array([len(one) > 0 for one in outputs], bool)
            np.add.at(targets[:, 1], documents, samples[NUM_BYTES].to_numpy() * has_targets)
        return Judged(list(predictions), list(targets), losses, counts)

    def _losses(self, outputs: list[np.ndarray], samples: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """For each row the sum of its losses, and the number of its targets; float64, shape (num_rows,)."""
        documents = _documents(samples)
        sums, counts = np.zeros((2, int(documents.max(initial=-1)) + 1))
        for document, found in zip(documents, outputs, strict=True):
            sums[document] -= found[:, 0].sum(dtype=np.float64)
            counts[document] += len(found)
        return sums, counts


def _documents(samples: pa.Table) -> np.ndarray:
    """The row of each sample, from 0; shape (num_samples,)."""
    return np.asarray(np.cumsum(samples[PIECE].to_numpy() == 0) - 1)


def _prediction(values: np.ndarray) -> np.ndarray:
    """The loss in LOSS_UNITS, and the number of tokens predicted right, int64. `values`: those of `infer`."""
    loss = loss_units(-float(values[:, 0].sum(dtype=np.float64)))
    return np.array([loss, (values[:, 0] > values[:, 1]).sum()], np.int64)


def _by_sample(values: "Tensor", batch: "dict[str, Tensor]") -> list[np.ndarray]:
    """Values of all targets, by sample. `values`: shape (num_targets, ...)."""
    counts = (batch["labels"] != IGNORED).sum(1).cpu().numpy()
    return np.split(values.float().cpu().numpy()[: counts.sum()], np.cumsum(counts)[:-1])
