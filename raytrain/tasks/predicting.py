"""What a task has when a trained model can be asked about rows whose targets nobody knows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.errors import ConfigError
from raytrain.tasks.base import Batch, TaskState
from raytrain.tasks.nested import HALF_CHARACTER, is_unicode, texts_in

if TYPE_CHECKING:
    from torch import Tensor, nn

WORD_STARTS_IN_TEXT, SOURCE_TEXT = "__word_starts__", "__source_text__"
"""Columns of rows whose words were found in a text: where each begins in it, in characters, and the text."""


@dataclass(frozen=True)
class Decoding:
    """How a model's outputs are told."""

    probabilities: bool = False
    """Whether the probability of each label is told too."""
    threshold: float | tuple[float, ...] | None = None
    """With several labels per row: the probability from which on a label is given, or one for each label in the order
    of their ids. None: that of the model's card. `decode` and `judge` of a task that uses it get a number or a
    tuple."""
    max_new_tokens: int = 0
    """Tokens by which a language model continues each text at most; 0: texts are not continued."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0: always the most probable token."""
    seed: int = 0
    """Of these draws."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what is out of range."""
        if self.max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens {self.max_new_tokens}: give a number of tokens, or 0 to generate none")
        if not 0.0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature {self.temperature:g}: give a number from 0, which is greedy, such as 0.8")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: give an integer from 0")
        if (self.temperature or self.seed) and not self.max_new_tokens:
            name = "temperature" if self.temperature else "seed"
            raise ConfigError(f"{name} is for texts that are generated: give max_new_tokens too")


PLAIN = Decoding()
DEFAULT_THRESHOLD = 0.5


def threshold_by_id(
    threshold: float | dict[str, float] | None, labels: Sequence[str]
) -> float | tuple[float, ...] | None:
    """The threshold of a card as `Decoding` has it. `labels`: in the order of their ids."""
    return tuple(threshold[label] for label in labels) if isinstance(threshold, dict) else threshold


@dataclass(frozen=True)
class Judged:
    """The answers for rows whose targets are known, beside these."""

    predictions: list[np.ndarray]
    """For each row what `Task.predict` gives for it, with the decoding's threshold."""
    targets: list[np.ndarray]
    """For each row the true values, shaped like its predictions."""
    losses: np.ndarray
    """For each row the sum over its targets of the loss times the target's weight; shape (num_rows,), float64."""
    weights: np.ndarray
    """For each row the sum of the weights of its targets; shape (num_rows,), float64."""
    true: pa.Table | None = None
    """A column that tells the true values, for the files of predictions; None: there is none."""
    probabilities: np.ndarray | None = None
    """With several labels per row, that of each; shape (num_rows, num_labels), float64."""


ASKED = "__asked__"
"""Column of what stands for the columns of the inputs."""


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

    @property
    def uses_threshold(self) -> bool:
        """Whether `decode` depends on the decoding's threshold."""
        return True

    threshold: float | tuple[float, ...] | None = None
    """By which `predict` gives labels, as `Decoding.threshold`: that of a model's card when a finished model is
    evaluated; None: 0.5, as in the evaluations of a training."""

    def judge(
        self, outputs: list[np.ndarray], samples: pa.Table, state: TaskState, decoding: Decoding
    ) -> "Judged | None":
        """Compare the answers with the targets, as an evaluation does.

        Args:
            outputs: What `infer` gave, by sample.
            samples: Inputs with their targets, as `encode_targets` made them, and the columns of `encode_inputs` that
                it left out.
            state: With `class_weights`, a list in the order of the ids, if the loss was weighted.

        Returns:
            One entry per source row. None: `Task.predict` is called for one sample after the other instead, which needs
            a sample for each row.
        """
        return None

    @abstractmethod
    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """The predictions, one line per source row.

        Args:
            outputs: What `infer` gave, by sample.
            rows: The source rows that the samples were made of, as they were read.
        """

    def also_read(self) -> list[str]:
        """Columns beside those of the inputs that `encode_inputs` reads where rows have them."""
        return []

    def shown_texts(self, rows: pa.Table) -> list[str] | None:
        """What stands for each source row where rows are listed for people; None: `Task.compared_texts`."""
        return None

    def passed_through(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
        """A column of the source as it is written beside the predictions where no columns are asked for; None: not."""
        return column

    def value_from_python(self, value: Any) -> Any:
        """What a row's only input, given from Python, has in its column. Raises ConfigError."""
        return value

    def example_row(self) -> dict[str, Any] | None:
        """A row that can be answered, for the first call of a model; None: any text can."""
        return None

    def stand_ins(self) -> list[str]:
        """Columns one of which is enough, in place of those of the inputs, the first that there is. Where it is not one
        of the inputs, its values are in a column ASKED, too."""
        return []


@dataclass(frozen=True)
class Continued:
    """What a language model continues rows with."""

    texts: list[str]
    num_cut: int
    """Rows whose beginning was left out, as the model has too few positions for all of it."""


class Generating(ABC):
    """A task class whose model continues texts inherits from this beside `Predicting`."""

    generated_column = "generated"
    """Name of the column with what each row is continued with."""
    answers_turns = False
    """Whether it answers the turns of a conversation, and does not continue a text."""
    default_new_tokens = 0
    """Tokens by which rows are continued at most where nothing is asked; 0: they are not continued."""

    @abstractmethod
    def generate(
        self, model: "nn.Module", samples: pa.Table, numbers: np.ndarray, tokenizer: Any, decoding: Decoding
    ) -> Continued:
        """Continue each source row.

        Args:
            samples: Those of `encode_inputs`.
            numbers: The rows' places in their source, which random numbers are drawn by; shape (num_rows,).

        Raises ConfigError when the model has no room for `max_new_tokens`.
        """

    @abstractmethod
    def prompt_ids(self, asked: str | list[dict[str, Any]], tokenizer: Any) -> list[int]:
        """The tokens after which the model continues a text, or answers turns. Raises ConfigError for what can't be
        used."""


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text."""
    stops = model.generation_config.eos_token_id  # a list where a model of a chat has several
    found = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]
    return list(dict.fromkeys(token for token in found if token is not None))


def room_for_prompt(positions: int | None, max_new_tokens: int) -> int | None:
    """Tokens of a text that a model with this number of positions can continue; None: any number. Raises
    ConfigError when none may be left."""
    if positions is None:
        return None
    if max_new_tokens >= positions:
        raise ConfigError(
            f"max_new_tokens {max_new_tokens} leaves no room for a text in the {positions} positions of the model: "
            f"give at most {positions - 1}"
        )
    return positions - max_new_tokens


def check_characters(asked: Any) -> None:
    """Raises ConfigError for a text, or turns, that no tokenizer takes."""
    if not all(is_unicode(text) for text in texts_in(asked)):
        raise ConfigError(HALF_CHARACTER)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A probability per logit, float64."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))
