"""One label for a text, or for another input, or with `multi_label` any number of them."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ImageClassificationConfig, ModelConfig, SequenceClassificationConfig, TrainingConfig
from raytrain.tasks.base import (
    IGNORED,
    Batch,
    BatchContext,
    Mode,
    Rejection,
    RowError,
    Scores,
    Task,
    TaskState,
)
from raytrain.tasks.exact_weights import exact_weights
from raytrain.tasks.judging import above, judge_one, judge_several
from raytrain.tasks.label_cells import LabelReader
from raytrain.tasks.labels import (
    check_several,
    count_ids,
    count_labels,
    found_in,
    in_order,
    label_state,
    labels_in,
    suspicious,
)
from raytrain.tasks.own_code import own_loss_sum, with_own_metrics, with_own_modes
from raytrain.tasks.predicting import Decoding, Judged, Predicting, sigmoid, softmax
from raytrain.tasks.scores import MultiLabelScores, SingleLabelScores
from raytrain.tasks.text_pairs import TextPairTask

if TYPE_CHECKING:
    from torch import Tensor, nn

# Columns in which equal cells are the same label.
SIMPLE = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)


class Labelling(Task, Predicting):
    """What classifications share, whatever their inputs are: cross-entropy over the labels of a sample, weighted by
    class where the state has `class_weights`; with `multi_label`, binary cross-entropy averaged over the labels."""

    config: SequenceClassificationConfig | ImageClassificationConfig
    best_metric = "macro_f1"

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        own = ("subset_accuracy", "micro_f1") if self.config.multi_label else ("accuracy",)
        return with_own_modes(dict.fromkeys((*own, "macro_f1", "weighted_f1"), "max"), self.config)

    def target_columns(self) -> list[str]:
        """The label."""
        return [self.config.label_column]

    def row_labels(self, rows: pa.Table) -> list[list[str]]:
        """Their labels, declared or not."""
        return [labels for labels, _ in self._labels_of(rows, self.config.labels or [])]

    def declared_state(self) -> TaskState | None:
        """The declared labels."""
        return None if self.config.labels is None else label_state(self.config.labels)

    def assumed_state(self) -> TaskState:
        """The declared labels, or two: the head's rows hardly change the number of parameters."""
        return label_state(self.config.labels or ["a", "b"])

    def survey(self, rows: pa.Table, split: str) -> TaskState:
        """How often each label occurs in a chunk, in the rows whose inputs can be used."""
        rejected = {rejection.row for rejection in self.check_inputs(rows)}
        cells = enumerate(self._labels_of(rows, self.config.labels or []))
        return count_labels((label for row, (labels, _) in cells if row not in rejected for label in labels), split)

    def state_from(self, surveys: list[TaskState]) -> TaskState:
        """The declared labels, else those found: numbers by value, others by name."""
        labels = self.config.labels
        if labels is None:
            labels = in_order(found_in(surveys))
            if not self.config.multi_label:
                check_several(labels, "task.label_column", self.config.label_column)
        return label_state(labels)

    def remarks(self, surveys: list[TaskState]) -> list[str]:
        """Labels that may be none, or that may be meant as one."""
        return suspicious(surveys, "task.label_column", self.config.label_column) if self.config.labels is None else []

    def check_targets(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        """Rows without a label, with several where one is meant, or with one that is not in the state."""
        return self._check_labels(rows, labels_in(state))

    def check_before_survey(self, rows: pa.Table) -> list[Rejection]:
        """Rows without a text, or whose label can't be one."""
        return [*self.check_inputs(rows), *self._check_labels(rows, None)]

    def _check_labels(self, rows: pa.Table, labels: list[str] | None) -> list[Rejection]:
        """Rows whose label can't be used, or is none of `labels` where these are known."""
        known, column, rejected = dict.fromkeys(labels or []), self.config.label_column, []
        for row, (names, reason) in enumerate(self._labels_of(rows, known)):
            unknown = [] if labels is None else [name for name in names if name not in known]
            if reason:
                rejected.append(Rejection(row, RowError.BAD_TARGET, f"{column} {reason}"))
            elif unknown:
                reason = f"label {unknown[0]!r} is none of {list(known)}"
                rejected.append(Rejection(row, RowError.UNKNOWN_LABEL, reason))
        return rejected

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """Adds `labels`: the label's id, or with multi_label 0 or 1 for each."""
        labels, ids = labels_in(state), {label: i for i, label in enumerate(labels_in(state))}
        names = [names for names, _ in self._labels_of(rows, labels)]
        if self.config.multi_label:
            column = pa.array([[float(n in row) for n in labels] for row in names], pa.list_(pa.float32()))
        else:
            column = pa.array([ids[row[0]] for row in names], pa.int64())
        return inputs.append_column("labels", column)

    def label_ids(self, samples: pa.Table) -> np.ndarray | None:
        """The label's id; with multi_label there is no single one."""
        return None if self.config.multi_label else samples["labels"].to_numpy()

    def count_labels(self, samples: pa.Table, state: TaskState) -> dict[str, int]:
        """Samples with each label."""
        labels = labels_in(state)
        if not self.config.multi_label:
            return count_ids(samples["labels"].to_numpy(), labels)
        places = np.flatnonzero(samples["labels"].combine_chunks().flatten().to_numpy())
        return count_ids(places % len(labels), labels)

    def name_targets(self, targets: Any, tokens: Sequence[str], state: TaskState) -> Any:
        """The label's name, or with multi_label the names of those that are on."""
        labels = labels_in(state)
        if self.config.multi_label:
            return [name for name, is_on in zip(labels, targets, strict=True) if is_on]
        return labels[targets]

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """The padded inputs; `labels` of shape (num_samples,), or with multi_label (num_samples, num_labels) float32;
        with class weights `weights` of shape (num_samples,), float32."""
        labels = samples["labels"]
        # A copy: Arrow's own memory is read-only, and torch warns of it.
        targets = (
            np.array(labels.to_pylist(), dtype=np.float32) if self.config.multi_label else labels.to_numpy().copy()
        )
        batch = {**self.collate_inputs(samples, context.pad_token_id), "labels": targets}
        if (weights := context.state.get("class_weights")) is not None:
            batch["weights"] = exact_weights(np.array(weights))[targets]
        return batch

    def blank(self, batch: Batch) -> Batch:
        """The first sample of a batch without its label."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        blank["labels"][:] = IGNORED
        return blank

    def target_weight(self, batch: Batch) -> float:
        """Samples with a label, or with class weights the sum of their weights."""
        is_labelled = self._is_labelled(batch["labels"])
        if "weights" in batch:
            return float(batch["weights"][is_labelled].sum(dtype=np.float64))
        return float(is_labelled.sum())

    @property
    def problem_type(self) -> str:
        """As a Transformers config names what is predicted."""
        return "multi_label_classification" if self.config.multi_label else "single_label_classification"

    @abstractmethod
    def _logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Shape (num_samples, num_labels), fp32."""

    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the samples."""
        return self._loss_and_logits(model, batch)[0]

    def smoothed_loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]", smoothing: float) -> "Tensor":
        """The same, of smoothed labels."""
        return self._loss_and_logits(model, batch, smoothing)[0]

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each labelled sample its label id, shape (1,); with multi_label 0 or 1 a label, shape (num_labels,)."""
        loss, logits = self._loss_and_logits(model, batch)
        if self.config.multi_label:
            chosen = above(logits.detach().float().cpu().numpy(), Decoding(threshold=self.threshold))
        else:
            chosen = logits.argmax(-1, keepdim=True).cpu().numpy()
        is_labelled = self._is_labelled(batch["labels"].cpu().numpy())
        return loss, list(chosen.astype(np.int32)[is_labelled])

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each labelled sample its true label id, or 0 or 1 a label."""
        labels = batch["labels"][self._is_labelled(batch["labels"])].astype(np.int32)
        return list(labels if self.config.multi_label else labels[:, None])

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """`predicted_label` and `probability`, or `predicted_labels`; on request a probability for each label."""
        each = [f"probability_{label}" for label in labels_in(state)] if decoding.probabilities else []
        return [*(["predicted_labels"] if self.config.multi_label else ["predicted_label", "probability"]), *each]

    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """The label with the largest probability, or all whose probability is above the threshold."""
        labels = labels_in(state)
        logits = np.array(outputs, np.float32).reshape(len(outputs), len(labels))
        probabilities = (sigmoid if self.config.multi_label else softmax)(logits).round(6) if len(outputs) else logits
        each = list(probabilities.T.astype(np.float64)) if decoding.probabilities else []
        if self.config.multi_label:
            names = [[labels[i] for i in np.flatnonzero(row)] for row in above(logits, decoding)]
            first = [pa.array(names, pa.list_(pa.string()))]
        else:
            best = logits.argmax(-1)
            chosen = probabilities[np.arange(len(best)), best].astype(np.float64)
            first = [pa.array([labels[i] for i in best], pa.string()), pa.array(chosen)]
        return pa.table([*first, *map(pa.array, each)], self.output_columns(state, decoding))

    @property
    def uses_threshold(self) -> bool:
        """With several labels per row."""
        return self.config.multi_label

    def judge(
        self, outputs: list[np.ndarray], samples: pa.Table, state: TaskState, decoding: Decoding
    ) -> Judged | None:
        """The label, or the labels above the threshold, beside the true ones. None with a loss of the user's."""
        if self.config.loss is not None:
            return None
        logits = np.array(outputs, np.float32).reshape(len(outputs), len(labels_in(state)))
        judged = judge_several if self.config.multi_label else judge_one
        return judged(logits, samples["labels"], state, decoding)

    def scores(self, state: TaskState) -> Scores:
        """Accuracy, macro, micro and weighted F1, the table of labels, and the confusion matrix."""
        labels = labels_in(state)
        scores = (MultiLabelScores if self.config.multi_label else SingleLabelScores)(labels)
        return with_own_metrics(scores, self.config, labels)

    def _loss_and_logits(
        self, model: "nn.Module", batch: "dict[str, Tensor]", smoothing: float = 0.0
    ) -> "tuple[Tensor, Tensor]":
        import torch
        from torch.nn import functional

        logits, labels = self._logits(model, batch), batch["labels"]
        if self.config.loss is not None:
            return own_loss_sum(self.config, logits, labels, batch.get("weights")), logits
        options: Any = {"ignore_index": IGNORED, "label_smoothing": smoothing}
        if not self.config.multi_label and "weights" not in batch:
            return functional.cross_entropy(logits, labels, reduction="sum", **options), logits
        if not self.config.multi_label:
            losses = functional.cross_entropy(logits, labels, reduction="none", **options)
            return (losses * batch["weights"]).sum(), logits
        is_labelled = labels[:, 0] != IGNORED
        wanted = torch.where(is_labelled[:, None], labels, torch.zeros_like(labels))
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
        return (losses * is_labelled).sum(), logits

    def _is_labelled(self, labels: np.ndarray) -> np.ndarray:
        return (labels[:, 0] if self.config.multi_label else labels) != IGNORED

    def _labels_of(self, rows: pa.Table, known: Collection[str]) -> list[tuple[list[str], str]]:
        """For each row its labels, or why it has none that can be used."""
        reader = LabelReader(known, self.config.label_separator)
        read = reader.several if self.config.multi_label else reader.only
        column = rows[self.config.label_column]
        cells = column.to_pylist()
        if not any(is_kind(column.type) for is_kind in SIMPLE):
            return [read(cell) for cell in cells]
        read_of = {cell: read(cell) for cell in set(cells)}  # there are far fewer labels than rows
        return [read_of[cell] for cell in cells]


class SequenceClassification(Labelling, TextPairTask):
    """Labels of a text, or of a pair of texts."""

    config: SequenceClassificationConfig
    _logits = TextPairTask._logits

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """An encoder or decoder with a classification head."""
        from raytrain.models.build import build_with_head

        auto_class, labels = "AutoModelForSequenceClassification", labels_in(state)
        return build_with_head(auto_class, model, labels, training, problem_type=self.problem_type)
