"""What a task has when a trained model can be asked about rows whose targets nobody knows."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raytrain.tasks.base import Batch, TaskState

if TYPE_CHECKING:
    from torch import Tensor, nn

WORD_STARTS_IN_TEXT, SOURCE_TEXT = "__word_starts__", "__source_text__"
"""Columns of rows whose words were found in a text: where each begins in it, in characters, and the text."""


@dataclass(frozen=True)
class Decoding:
    """How a model's outputs are told."""

    probabilities: bool = False
    """Whether the probability of each label is told too."""
    threshold: float = 0.5
    """With several labels per row: the probability from which on a label is given."""


PLAIN = Decoding()


class Predicting(ABC):
    """A task class inherits from this beside `Task`, for `raytrain predict` and `raytrain.predict`."""

    @abstractmethod
    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """Names of the columns that `decode` makes."""

    @abstractmethod
    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """Samples of `encode_inputs` as a padded micro-batch without targets."""

    @abstractmethod
    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample what the model says, such as logits: the numbers of which `predict` makes its predictions."""

    @abstractmethod
    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """The predictions, one line per source row.

        Args:
            outputs: What `infer` gave, by sample.
            rows: The source rows that the samples were made of, as they were read.
        """


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A probability per logit, float64."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))
