"""What tasks on a text, or on a pair of texts, share: the samples, and a model with a number for each output."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.models.encode_texts import encode_texts
from raytrain.tasks.base import Batch, Inputs, Rejection, RowError
from raytrain.tasks.predicting import Predicting
from raytrain.tasks.special_tokens import check_room
from raytrain.tasks.text import TextTask, model_inputs, padded_inputs, padded_left, reads_last_position, why_no_text

if TYPE_CHECKING:
    from torch import Tensor, nn


class TextPairTask(TextTask, Predicting):
    """A task with a `text_column`, maybe a `text_pair_column`, and a model with a head for the whole."""

    def __init__(self, config: Any, max_length: int):
        self.config = config
        self.max_length = max_length

    def input_columns(self) -> list[str]:
        """The text, and its pair when there is one."""
        return [column for column in (self.config.text_column, self.config.text_pair_column) if column is not None]

    def text_columns(self) -> list[str]:
        """All inputs."""
        return self.input_columns()

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

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """The padded inputs."""
        return padded_inputs(samples, pad_token_id)

    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample its logits, shape (num_labels,)."""
        return list(self._logits(model, batch).cpu().numpy())

    def _logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Shape (num_samples, num_labels), fp32."""
        inputs = model_inputs(batch)
        logits: Tensor = model(**(padded_left(inputs) if reads_last_position(model) else inputs)).logits
        return logits.float()

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
