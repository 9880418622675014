"""One label for a text, or with `multi_label` any number of them."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, SequenceClassificationConfig, TrainingConfig
from raytrain.models.encode_texts import encode_texts
from raytrain.tasks.base import (
    IGNORED,
    Batch,
    BatchContext,
    Inputs,
    Mode,
    Rejection,
    RowError,
    Scores,
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
from raytrain.tasks.predicting import Decoding, Judged, Predicting, sigmoid, softmax
from raytrain.tasks.scores import MultiLabelScores, SingleLabelScores
from raytrain.tasks.special_tokens import check_room
from raytrain.tasks.text import TextTask, model_inputs, padded_inputs, padded_left, reads_last_position, why_no_text

if TYPE_CHECKING:
    from torch import Tensor, nn

# Columns in which equal cells are the same label.
SIMPLE = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)


class SequenceClassification(TextTask, Predicting):
    """Cross-entropy over the labels of a sample, weighted by class where the state has `class_weights`; with
    `multi_label`, binary cross-entropy averaged over the labels."""

    best_metric = "macro_f1"

    def __init__(self, config: SequenceClassificationConfig, max_length: int):
        self.config = config
        self.max_length = max_length

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        own = ("subset_accuracy", "micro_f1") if self.config.multi_label else ("accuracy",)
        return dict.fromkeys((*own, "macro_f1", "weighted_f1"), "max")

    def input_columns(self) -> list[str]:
        """The text, and its pair when there is one."""
        return [column for column in (self.config.text_column, self.config.text_pair_column) if column is not None]

    def text_columns(self) -> list[str]:
        """All inputs."""
        return self.input_columns()

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

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows without a text, or whose pair is not text."""
        first, *pairs = self.input_columns()
        rejected = [
            Rejection(row, RowError.BAD_INPUT, f"{first} {reason}")
            for row, text in enumerate(rows[first].to_pylist())
            if (reason := why_no_text(text))
        ]
        return rejected + [
            Rejection(row, RowError.BAD_INPUT, f"{column} {why_no_text(pair)}")
            for column in pairs
            for row, pair in enumerate(rows[column].to_pylist())
            if not isinstance(pair, (str, type(None)))
        ]

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

    def long_rows(self) -> pa.Table:
        """Two texts, or pairs."""
        return pa.table({name: ["a " * self.max_length] * 2 for name in self.input_columns()})

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Tokenize the texts. Raises ConfigError when `max_length` has no room for a text."""
        check_room(tokenizer, self.max_length, num_texts=2 if self.config.text_pair_column else 1)
        texts = list(zip(*(rows[name].to_pylist() for name in self.input_columns()), strict=True))
        tokens, segments = self._tokenize(tokenizer, texts)
        is_long = [len(t) > self.max_length for t in tokens]
        self._truncate(tokenizer, texts, (tokens, segments), is_long)
        columns = {"input_ids": pa.array(tokens, pa.list_(pa.int32()))}
        if self._has_segments(tokenizer):
            columns["token_type_ids"] = pa.array(segments, pa.list_(pa.int32()))
        return Inputs(pa.table(columns), sum(is_long))

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

    def name_targets(self, targets: Any, tokens: list[str], state: TaskState) -> Any:
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
        batch = {**padded_inputs(samples, context.pad_token_id), "labels": targets}
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

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """An encoder or decoder with a classification head."""
        from raytrain.models.build import build_with_head

        kind = "multi_label_classification" if self.config.multi_label else "single_label_classification"
        return build_with_head(
            "AutoModelForSequenceClassification", model, labels_in(state), training, problem_type=kind
        )

    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the samples."""
        return self._loss_and_logits(model, batch)[0]

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each labelled sample its label id, shape (1,); with multi_label 0 or 1 a label, shape (num_labels,)."""
        loss, logits = self._loss_and_logits(model, batch)
        chosen = (logits > 0).long() if self.config.multi_label else logits.argmax(-1, keepdim=True)
        is_labelled = self._is_labelled(batch["labels"].cpu().numpy())
        return loss, list(chosen.cpu().numpy().astype(np.int32)[is_labelled])

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each labelled sample its true label id, or 0 or 1 a label."""
        labels = batch["labels"][self._is_labelled(batch["labels"])].astype(np.int32)
        return list(labels if self.config.multi_label else labels[:, None])

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """`predicted_label` and `probability`, or `predicted_labels`; on request a probability for each label."""
        each = [f"probability_{label}" for label in labels_in(state)] if decoding.probabilities else []
        return [*(["predicted_labels"] if self.config.multi_label else ["predicted_label", "probability"]), *each]

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """The padded inputs."""
        return padded_inputs(samples, pad_token_id)

    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample its logits, shape (num_labels,)."""
        return list(self._logits(model, batch).cpu().numpy())

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

    def judge(self, outputs: list[np.ndarray], samples: pa.Table, state: TaskState, decoding: Decoding) -> Judged:
        """The label, or the labels above the threshold, beside the true ones."""
        logits = np.array(outputs, np.float32).reshape(len(outputs), len(labels_in(state)))
        judged = judge_several if self.config.multi_label else judge_one
        return judged(logits, samples["labels"], state, decoding)

    def scores(self, state: TaskState) -> Scores:
        """Accuracy, macro, micro and weighted F1, the table of labels, and the confusion matrix."""
        return (MultiLabelScores if self.config.multi_label else SingleLabelScores)(labels_in(state))

    def _loss_and_logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        import torch
        from torch.nn import functional

        logits, labels = self._logits(model, batch), batch["labels"]
        if not self.config.multi_label and "weights" not in batch:
            return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"), logits
        if not self.config.multi_label:
            losses = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
            return (losses * batch["weights"]).sum(), logits
        is_labelled = labels[:, 0] != IGNORED
        wanted = torch.where(is_labelled[:, None], labels, torch.zeros_like(labels))
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
        return (losses * is_labelled).sum(), logits

    def _logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Shape (num_samples, num_labels), fp32."""
        inputs = model_inputs(batch)
        logits: Tensor = model(**(padded_left(inputs) if reads_last_position(model) else inputs)).logits
        return logits.float()

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

    def _has_segments(self, tokenizer: Any) -> bool:
        """Whether the model tells the two texts of a pair apart."""
        return self.config.text_pair_column is not None and "token_type_ids" in tokenizer.model_input_names

    def _tokenize(
        self, tokenizer: Any, kept: list[tuple[Any, ...]], **truncation: Any
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids, and for pairs the segment of each token."""
        if not kept:
            return [], []
        texts = [values[0] for values in kept]
        pairs = [values[1] or "" for values in kept] if self.config.text_pair_column else None
        if not truncation:
            ids, segments = encode_texts(tokenizer, texts, pairs)
            return ids, segments if self._has_segments(tokenizer) else []
        encoding = tokenizer(texts, pairs, verbose=False, **truncation)
        return encoding["input_ids"], encoding["token_type_ids"] if self._has_segments(tokenizer) else []

    def _truncate(
        self, tokenizer: Any, kept: list[tuple[Any, ...]], columns: tuple[list[list[int]], ...], is_long: list[bool]
    ) -> None:
        """Tokenize the samples that are too long again, with truncation, which knows where special tokens go."""
        places = [i for i, long in enumerate(is_long) if long]
        again = self._tokenize(tokenizer, [kept[i] for i in places], truncation=True, max_length=self.max_length)
        for column, values in zip(columns, again, strict=True):
            for i, value in zip(places, values, strict=False):  # a single text has no segments
                column[i] = value
