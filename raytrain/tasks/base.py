"""What a task is: one class between the data, the loop and the metrics. A new task is one file.

Encoding and collating run in Ray Data's processes, which stay light: no torch at the top of a task's module.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from raytrain.config import SPLITS, ModelConfig, TrainingConfig
from raytrain.tasks.nested import texts_in

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, np.ndarray]
"""A collated micro-batch: arrays whose first axis is the samples, numbers only."""

TaskState = dict[str, Any]
"""What a task has learned from the data, such as its labels. JSON-able; it is kept in the prepared store's manifest."""

Mode = Literal["min", "max"]

_SAMPLE_STREAM = 4  # first in the seed of a sample's random numbers; `raytrain.steps.order` has 1 to 3
IGNORED = -100
"""Label of a position without a target; torch's cross-entropy leaves it out."""


class RowError(StrEnum):
    """Why a source row can't be used."""

    UNREADABLE = "unreadable"
    """Its bytes are not what the file's format says."""
    BAD_INPUT = "bad_input"
    """An input of the model is missing, or has the wrong type."""
    BAD_TARGET = "bad_target"
    """A target is missing, or has the wrong type or length."""
    UNKNOWN_LABEL = "unknown_label"
    """Its label is not one of the task's."""
    TOO_LONG = "too_long"
    """It has more tokens than data.max_length, where the task says that such rows can't be used."""
    CUSTOM = "custom"
    """The function of data.clean.custom failed on it, or returned something that is not a row."""


@dataclass(frozen=True)
class Rejection:
    """A row that can't be used."""

    row: int
    """Position in the given table, from 0."""
    code: RowError
    reason: str
    """One sentence for people; no decision depends on it."""
    is_set_aside: bool = False
    """Whether the row is quarantined whatever data.on_error is."""


@dataclass(frozen=True)
class Inputs:
    """Rows as samples without targets."""

    table: pa.Table
    """The columns that the model sees, one row per sample. A sample may hold several neighbouring source rows."""
    num_truncated: int
    """Rows that were longer than data.max_length."""
    first_rows: np.ndarray | None = None
    """For each sample, the position of its first source row in the given table, ascending, shape (num_samples,), int64.
    None: there is one sample per row; if their numbers differ, it is not known."""
    rejected: list[Rejection] = field(default_factory=list)
    """Rows that have no sample, since only their tokens show that they can't be used, in the order of the rows."""


@dataclass(frozen=True)
class Encoded:
    """A chunk of source rows as samples."""

    table: pa.Table
    """Inputs and targets, one row per sample."""
    num_truncated: int
    rejected: list[Rejection]
    """In the order of the rows."""
    first_rows: np.ndarray | None = None
    """The position of each sample's first source row in the given table, (num_samples,), int64; None: not known."""


@dataclass(frozen=True)
class BatchContext:
    """What `collate` may depend on beside the samples. It is the same for a sample at any number of workers, so that
    masks and augmentation drawn from it belong to the sample and not to the worker."""

    state: TaskState
    split: str
    """train, validation or test."""
    ids: np.ndarray
    """Ids of the samples in their split, shape (num_samples,)."""
    epoch: int
    """Passes over the training data before this one; 0 in an evaluation."""
    copies: np.ndarray
    """Which copy of its sample each is within the epoch, from 0; shape (num_samples,)."""
    seed: int
    """The run's seed."""
    pad_token_id: int

    def generator(self, place: int) -> np.random.Generator:
        """Random numbers for the sample at `place` in the batch: the same on every worker, others in each epoch."""
        which = (int(self.ids[place]), int(self.copies[place]))
        seed = (_SAMPLE_STREAM, self.seed, SPLITS.index(self.split), self.epoch, *which)
        return np.random.default_rng(seed)


@dataclass(frozen=True)
class Metrics:
    """Outcome of an evaluation."""

    values: dict[str, float]
    """Numbers by name, such as accuracy and macro_f1."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """JSON-able tables: {"columns": [...], "rows": [[...]]} or {"labels": [...], "counts": [[...]]}."""
    notes: tuple[str, ...] = ()
    """Sentences about the values, for people; shown after the evaluation and in the report."""


class Scores(ABC):
    """Metrics over a split, as counts and sums whose size does not grow with the split.

    Every worker updates its own over its batches; the first merges the others' into its own and computes.
    """

    @abstractmethod
    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Add a batch: what `Task.predict` and `Task.targets` give for it."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """The counts and sums so far."""

    @abstractmethod
    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's `state`."""

    @abstractmethod
    def compute(self) -> Metrics:
        """The metrics of everything added, without `loss`; no values when nothing was added."""


class Task(ABC):
    """Defines the columns, the loss, the predictions and the metrics of what is learned."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, Mode]:
        """Metrics that `scores` give, and whether a smaller or a larger one is better. raytrain adds `loss`."""

    @property
    def best_metric(self) -> str:
        """Metric that picks the best model when the config names none."""
        return "loss"

    def best_metric_for(self, state: TaskState) -> str:
        """`best_metric` once the state is known."""
        return self.best_metric

    # What it learns from the data.

    def declared_state(self) -> TaskState | None:
        """The state when the config alone determines it; None: rows have to be surveyed."""
        return {}

    def survey(self, rows: pa.Table, split: str) -> TaskState:
        """What a chunk of source rows of any split contributes to the state; JSON-able."""
        return {}

    def state_from(self, surveys: list[TaskState]) -> TaskState:
        """The state, from the surveys of all chunks in the order of the sources. Raises ConfigError or DataError."""
        return {}

    def remarks(self, surveys: list[TaskState]) -> list[str]:
        """What looks wrong about the data, though it can be used: a sentence each, which is logged."""
        return []

    def assumed_state(self) -> TaskState:
        """A state to count parameters with before the data has been read."""
        return self.declared_state() or {}

    # Rows to samples.

    @abstractmethod
    def input_columns(self) -> list[str]:
        """Columns of a source that the model's inputs are made of."""

    def compared_texts(self, rows: pa.Table) -> list[str]:
        """The text of each source row by which duplicates are found: all texts of its inputs, also those in lists and
        objects, joined by blanks. A row whose text is empty is compared with no other."""
        columns = [rows[name].to_pylist() for name in self.input_columns() if name in rows.column_names]
        cells_of = zip(*columns, strict=True) if columns else [()] * len(rows)
        return [" ".join(text for cell in cells for text in texts_in(cell)) for cells in cells_of]

    @abstractmethod
    def target_columns(self) -> list[str]:
        """Columns of a source that the targets are made of."""

    def text_columns(self) -> list[str]:
        """Columns of a source whose cells are texts, which data.clean may change or judge."""
        return []

    def word_columns(self) -> list[str]:
        """Columns of a source whose cells are lists of words with targets: data.clean changes word by word."""
        return []

    def row_labels(self, rows: pa.Table) -> list[list[str]] | None:
        """The labels of each source row, [] of one without a usable label; None: targets are not labels of rows."""
        return None

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows whose inputs can't be used."""
        return []

    def check_targets(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        """Rows whose targets can't be used."""
        return []

    def check_before_survey(self, rows: pa.Table) -> list[Rejection]:
        """Rows that can't be used whatever the state will be. The first rows of each file are checked so before Ray
        starts."""
        return self.check_inputs(rows)

    @abstractmethod
    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Samples of rows that passed `check_inputs`, without reading their targets.

        Args:
            tokenizer: The model's; None when `model` names none.
        """

    def stored_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """`encode_inputs` for data that is prepared, where a sample may hold parts of several rows."""
        return self.encode_inputs(rows, tokenizer)

    @abstractmethod
    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """All columns that are stored, given the samples that `encode_inputs` made of the same rows."""

    def sizes(self, samples: pa.Table) -> np.ndarray:
        """Size of each sample, in tokens for texts: samples are grouped by it, and padding is counted in it."""
        return np.ones(len(samples), dtype=np.int32)

    def label_ids(self, samples: pa.Table) -> np.ndarray | None:
        """The id of each stored sample's label, shape (num_samples,); None where a sample can't be balanced by one."""
        return None

    def count_labels(self, samples: pa.Table, state: TaskState) -> dict[str, int]:
        """How often each label occurs in stored samples; empty where the targets are not labels."""
        return {}

    def describe(self, sample: dict[str, Any], tokenizer: Any, state: TaskState) -> dict[str, Any]:
        """A stored sample in a form that a person can read."""
        return sample

    # Samples to batches.

    @abstractmethod
    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """Rows of the prepared store as a padded micro-batch: a function of the samples and the context alone."""

    @abstractmethod
    def blank(self, batch: Batch) -> Batch:
        """One sample's inputs without any target, for a micro-batch that must be run but has no samples."""

    @abstractmethod
    def target_weight(self, batch: Batch) -> float:
        """Sum of the weights that the loss is a mean over (P7); without weights the number of targets.

        It is summed in float64 over batches and workers in any order, so weights should be multiples of a power of two
        (`exact_weights`): then the sum, and with it the step, is the same at every world size.
        """

    def padded_size(self, batch: Batch) -> int:
        """Size of the batch with its padding, in the unit of `sizes`."""
        return len(next(iter(batch.values())))

    # The model.

    @abstractmethod
    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """The model before training, fp32 on the CPU. Parameters without `requires_grad` stay as they are here."""

    def save_model(self, model: "nn.Module", weights: "dict[str, Tensor]", folder: str) -> None:
        """Write the model with these weights to a local folder."""
        import torch
        from safetensors.torch import save_file

        # Tied weights share their memory, which this format does not allow: each name gets a copy.
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
        save_file(tensors, f"{folder}/model.safetensors")

    def load_model(self, folder: str, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """The model that `save_model` wrote."""
        from safetensors.torch import load_file

        loaded = self.build_model(model, state, training)
        loaded.load_state_dict(load_file(f"{folder}/model.safetensors"))
        return loaded

    @abstractmethod
    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the targets of the loss times the target's weight: a scalar, fp32."""

    # Evaluation.

    @abstractmethod
    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """`loss_sum`, and for each sample that has targets its predictions at them."""

    @abstractmethod
    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each sample that has targets the true values, shaped like its predictions."""

    @abstractmethod
    def scores(self, state: TaskState) -> Scores:
        """New, empty scores."""

    # What follows from the above.

    @property
    def modes(self) -> dict[str, Mode]:
        """All metrics of an evaluation, `loss` among them, and whether a smaller or a larger one is better."""
        return {"loss": "min", **self.metrics}

    def required_columns(self) -> list[str]:
        """Columns that every source must have."""
        return list(dict.fromkeys([*self.input_columns(), *self.target_columns()]))

    def encode(self, rows: pa.Table, tokenizer: Any, state: TaskState) -> Encoded:
        """Source rows as samples; rows that can't be used are named instead.

        Raises ConfigError when the config leaves no room for a sample.
        """
        rejected = self.rejections(rows, state)
        bad = {rejection.row for rejection in rejected}
        good = rows.filter(pa.array([row not in bad for row in range(len(rows))], pa.bool_())) if bad else rows
        inputs = self.stored_inputs(good, tokenizer)
        table = self.encode_targets(good, inputs.table, state)
        places = np.setdiff1d(np.arange(len(rows)), list(bad))
        rejected += [replace(one, row=int(places[one.row])) for one in inputs.rejected]
        rejected.sort(key=lambda one: one.row)
        first = inputs.first_rows if inputs.first_rows is not None else np.arange(len(table))
        is_known = inputs.first_rows is not None or len(table) == len(good)
        return Encoded(table, inputs.num_truncated, rejected, places[first] if is_known else None)

    def rejections(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        """The rows that can't be used, in their order, each with the first reason."""
        first: dict[int, Rejection] = {}
        for rejection in (*self.check_inputs(rows), *self.check_targets(rows, state)):
            first.setdefault(rejection.row, rejection)
        return [first[row] for row in sorted(first)]
