"""One label for a text, or with `multi_label` any number of them."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, SequenceClassificationConfig, TrainingConfig
from raytrain.tasks.base import IGNORED, Batch, Encoded, Metrics
from raytrain.tasks.collate import attention_mask, pad_column
from raytrain.tasks.special_tokens import check_room

if TYPE_CHECKING:
    from torch import Tensor, nn


class SequenceClassification:
    """Cross-entropy over the labels of a sample; with `multi_label`, binary cross-entropy averaged over the labels."""

    best_metric = "macro_f1"
    best_mode = "max"

    def __init__(self, config: SequenceClassificationConfig, max_length: int):
        self.config = config
        self.max_length = max_length

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What can be watched."""
        own = ("subset_accuracy", "micro_f1") if self.config.multi_label else ("accuracy",)
        return ("loss", *own, "macro_f1", "weighted_f1")

    def required_columns(self) -> list[str]:
        """The text, its pair when there is one, and the label."""
        columns = [self.config.text_column, self.config.text_pair_column, self.config.label_column]
        return [column for column in columns if column is not None]

    def find_labels(self, table: pa.Table) -> set[str]:
        """Labels in a chunk, as strings."""
        cells = table[self.config.label_column].to_pylist()
        return {label for cell in cells for label in self._labels_of(cell) if label}

    def order_labels(self, found: set[str]) -> list[str]:
        """The declared labels, else those found: numbers by value, others by name."""
        if self.config.labels is not None:
            return self.config.labels
        if all(re.fullmatch("-?[0-9]+", label) for label in found):
            return sorted(found, key=lambda label: (int(label), label))  # "1" and "01" are two labels
        return sorted(found)

    def encode(self, table: pa.Table, tokenizer: Any, labels: list[str]) -> Encoded:
        """Tokenize the texts; rows without a text or with a label outside `labels` are rejected.

        Raises ConfigError when `max_length` has no room for a text.
        """
        check_room(tokenizer, self.max_length, num_texts=2 if self.config.text_pair_column else 1)
        ids = {label: i for i, label in enumerate(labels)}
        columns = [table[name].to_pylist() for name in self.required_columns()]
        kept, rejected, targets = [], [], []
        for row, values in enumerate(zip(*columns, strict=True)):
            names = self._labels_of(values[-1])
            reason = self._reject(values, names, ids)
            if reason is not None:
                rejected.append((row, reason))
                continue
            kept.append(values[:-1])
            targets.append([float(label in names) for label in labels] if self.config.multi_label else ids[names[0]])
        tokens, segments = self._tokenize(tokenizer, kept)
        is_long = [len(t) > self.max_length for t in tokens]
        self._truncate(tokenizer, kept, (tokens, segments), is_long)
        label_type = pa.list_(pa.float32()) if self.config.multi_label else pa.int64()
        encoded = {
            "input_ids": pa.array(tokens, pa.list_(pa.int32())),
            "labels": pa.array(targets, label_type),
        }
        if self._has_segments(tokenizer):
            encoded["token_type_ids"] = pa.array(segments, pa.list_(pa.int32()))
        return Encoded(pa.table(encoded), sum(is_long), rejected)

    def collate(self, samples: pa.Table, pad_token_id: int, pad_to: int | None = None) -> Batch:
        """`input_ids`, `attention_mask` and, for pairs, `token_type_ids` of shape (num_samples, seq_len); `labels` of
        shape (num_samples,), or with multi_label (num_samples, num_labels) float32."""
        input_ids = pad_column(samples["input_ids"], pad_token_id, pad_to)
        labels = samples["labels"]
        # A copy: Arrow's own memory is read-only, and torch warns of it.
        targets = (
            np.array(labels.to_pylist(), dtype=np.float32) if self.config.multi_label else labels.to_numpy().copy()
        )
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask(samples["input_ids"], input_ids.shape[1]),
            "labels": targets,
        }
        if "token_type_ids" in samples.column_names:
            batch["token_type_ids"] = pad_column(samples["token_type_ids"], 0, input_ids.shape[1])
        return batch

    def blank(self, batch: Batch) -> Batch:
        """The first sample of a batch without its label."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        blank["labels"][:] = IGNORED
        return blank

    def num_targets(self, batch: Batch) -> int:
        """Samples with a label."""
        return int(self._is_labelled(batch["labels"]).sum())

    def build_model(self, model: ModelConfig, labels: list[str], training: TrainingConfig) -> "nn.Module":
        """An encoder or decoder with a classification head."""
        from raytrain.models.build import build_with_head, check_positions

        kind = "multi_label_classification" if self.config.multi_label else "single_label_classification"
        built = build_with_head("AutoModelForSequenceClassification", model, labels, training, problem_type=kind)
        check_positions(built, self.max_length)
        return built

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

    def metrics(self, predictions: list[np.ndarray], targets: list[np.ndarray], labels: list[str]) -> Metrics:
        """Accuracy, macro, micro and weighted F1, the table of labels, and the confusion matrix."""
        from raytrain.tasks.scores import multi_label_scores, single_label_scores

        shape = (-1, len(labels)) if self.config.multi_label else (-1,)
        predicted = np.concatenate(predictions).reshape(shape) if predictions else np.zeros((0, *shape[1:]), np.int32)
        true = np.concatenate(targets).reshape(shape) if targets else np.zeros((0, *shape[1:]), np.int32)
        score = multi_label_scores if self.config.multi_label else single_label_scores
        return score(predicted, true, labels)

    def _loss_and_logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        import torch
        from torch.nn import functional

        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        logits = model(**inputs).logits.float()
        if not self.config.multi_label:
            return functional.cross_entropy(logits, batch["labels"], ignore_index=IGNORED, reduction="sum"), logits
        is_labelled = batch["labels"][:, 0] != IGNORED
        wanted = torch.where(is_labelled[:, None], batch["labels"], torch.zeros_like(batch["labels"]))
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
        return (losses * is_labelled).sum(), logits

    def _is_labelled(self, labels: np.ndarray) -> np.ndarray:
        return (labels[:, 0] if self.config.multi_label else labels) != IGNORED

    def _labels_of(self, value: Any) -> list[str]:
        """Label names in a row's label cell; none for a missing cell, "" for a missing label in a list."""
        if not isinstance(value, (list, tuple)):
            return [name] if (name := _label_name(value)) else []
        return [_label_name(v) for v in value]

    def _reject(self, values: tuple[Any, ...], names: list[str], ids: dict[str, int]) -> str | None:
        if not isinstance(values[0], str) or not values[0].strip():
            return f"{self.config.text_column} is empty"
        if self.config.text_pair_column and not isinstance(values[1], (str, type(None))):
            return f"{self.config.text_pair_column} is no text"
        is_list = isinstance(values[-1], (list, tuple))
        if "" in names or (not names and not is_list):
            return f"{self.config.label_column} is missing"
        if not self.config.multi_label and len(names) != 1:
            return f"{self.config.label_column} holds {len(names)} labels; set task.multi_label=true for several"
        unknown = [name for name in names if name not in ids]
        return f"label {unknown[0]!r} is none of {list(ids)}" if unknown else None

    def _has_segments(self, tokenizer: Any) -> bool:
        """Whether the model is told the first text of a pair from the second."""
        return self.config.text_pair_column is not None and "token_type_ids" in tokenizer.model_input_names

    def _tokenize(
        self, tokenizer: Any, kept: list[tuple[Any, ...]], **truncation: Any
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids, and for pairs the segment of each token."""
        if not kept:
            return [], []
        texts = [values[0] for values in kept]
        pairs = [values[1] or "" for values in kept] if self.config.text_pair_column else None
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


def _label_name(value: Any) -> str:
    """A label as text; "" for one that is missing: null, not a number, or blank (an empty field of a CSV file)."""
    if value is None or value != value:
        return ""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text if text.strip() else ""
