"""One label for a text, or with `multi_label` any number of them."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, SequenceClassificationConfig, TrainingConfig
from raytrain.tasks.base import IGNORED, Batch, Encoded, Metrics
from raytrain.tasks.collate import attention_mask, pad_column

if TYPE_CHECKING:
    from torch import Tensor, nn


class SequenceClassification:
    """Cross-entropy over the labels of a sample; with `multi_label`, binary cross-entropy averaged over the labels."""

    best_metric = "macro_f1"
    best_mode = "max"

    def __init__(self, config: SequenceClassificationConfig, max_length: int):
        self.config = config
        self.max_length = max_length

    def required_columns(self) -> list[str]:
        """The text, its pair when there is one, and the label."""
        columns = [self.config.text_column, self.config.text_pair_column, self.config.label_column]
        return [column for column in columns if column is not None]

    def find_labels(self, table: pa.Table) -> set[str]:
        """Labels in a chunk, as strings."""
        return {label for row in table[self.config.label_column].to_pylist() for label in self._labels_of(row)}

    def order_labels(self, found: set[str]) -> list[str]:
        """The declared labels, else those found: numbers by value, others by name."""
        if self.config.labels is not None:
            return self.config.labels
        if all(label.lstrip("-").isdigit() for label in found):
            return sorted(found, key=int)
        return sorted(found)

    def encode(self, table: pa.Table, tokenizer: Any, labels: list[str]) -> Encoded:
        """Tokenize the texts; rows without a text or with a label outside `labels` are rejected."""
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
        tokens = self._tokenize(tokenizer, kept)
        is_long = [len(t) > self.max_length for t in tokens]
        label_type = pa.list_(pa.float32()) if self.config.multi_label else pa.int64()
        encoded = pa.table(
            {
                "input_ids": pa.array(self._truncate(tokenizer, kept, tokens, is_long), pa.list_(pa.int32())),
                "labels": pa.array(targets, label_type),
            }
        )
        return Encoded(encoded, sum(is_long), rejected)

    def collate(self, samples: pa.Table, pad_token_id: int, pad_to: int | None = None) -> Batch:
        """`input_ids` and `attention_mask` of shape (num_samples, seq_len); `labels` of shape (num_samples,), or with
        multi_label (num_samples, num_labels) float32."""
        input_ids = pad_column(samples["input_ids"], pad_token_id, pad_to)
        labels = samples["labels"]
        targets = np.array(labels.to_pylist(), dtype=np.float32) if self.config.multi_label else labels.to_numpy()
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask(samples["input_ids"], input_ids.shape[1]),
            "labels": targets,
        }

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
        from raytrain.tasks.models import build_with_head

        return build_with_head("AutoModelForSequenceClassification", model, labels, training)

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

        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        if not self.config.multi_label:
            return functional.cross_entropy(logits, batch["labels"], ignore_index=IGNORED, reduction="sum"), logits
        is_labelled = batch["labels"][:, 0] != IGNORED
        wanted = torch.where(is_labelled[:, None], batch["labels"], torch.zeros_like(batch["labels"]))
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
        return (losses * is_labelled).sum(), logits

    def _is_labelled(self, labels: np.ndarray) -> np.ndarray:
        return (labels[:, 0] if self.config.multi_label else labels) != IGNORED

    def _labels_of(self, value: Any) -> list[str]:
        """Label names in a row's label cell; none for a missing value."""
        if value is None:
            return []
        values = value if isinstance(value, (list, tuple)) else [value]
        return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values]

    def _reject(self, values: tuple[Any, ...], names: list[str], ids: dict[str, int]) -> str | None:
        if not isinstance(values[0], str) or not values[0].strip():
            return f"{self.config.text_column} is empty"
        if values[-1] is None:
            return f"{self.config.label_column} is missing"
        if not self.config.multi_label and len(names) != 1:
            return f"{self.config.label_column} holds {len(names)} labels; set task.multi_label=true for several"
        unknown = [name for name in names if name not in ids]
        return f"label {unknown[0]!r} is none of {list(ids)}" if unknown else None

    def _tokenize(self, tokenizer: Any, kept: list[tuple[Any, ...]]) -> list[list[int]]:
        if not kept:
            return []
        texts = [values[0] for values in kept]
        pairs = [values[1] or "" for values in kept] if self.config.text_pair_column else None
        return tokenizer(texts, pairs, truncation=False, verbose=False)["input_ids"]

    def _truncate(
        self, tokenizer: Any, kept: list[tuple[Any, ...]], tokens: list[list[int]], is_long: list[bool]
    ) -> list[list[int]]:
        """Samples that are too long, tokenized again with truncation, which knows where special tokens go."""
        for i, long in enumerate(is_long):
            if long:
                tokens[i] = tokenizer(*kept[i], truncation=True, max_length=self.max_length)["input_ids"]
        return tokens
