"""A language model that predicts each next token: pretrained and trained on, or new.

A row is a document. It gets the special tokens that the tokenizer adds and an end-of-text token, and is cut into
samples of at most `max_length` tokens. Its first token, which nothing precedes, is not predicted.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import CausalLmConfig, Cut, ModelConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.tasks.base import IGNORED, Batch, BatchContext, Inputs, Mode, TaskState
from raytrain.tasks.collate import list_lengths
from raytrain.tasks.documents import Piece, check_room_for_text, joined, read_documents
from raytrain.tasks.packing import Packable, pack
from raytrain.tasks.predicting import Continued, Decoding, Generating, check_characters, room_for_prompt, stop_ids
from raytrain.tasks.text import padded_inputs
from raytrain.tasks.token_prediction import NUM_BYTES, PIECE, TokenPrediction

if TYPE_CHECKING:
    from torch import nn


class CausalLm(TokenPrediction, Generating, Packable):
    """Cross-entropy over all tokens but the first of each document."""

    config: CausalLmConfig

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        return {"perplexity": "min", "bits_per_byte": "min", "token_accuracy": "max"}

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Documents, cut at `max_length`: nothing of a text is left out.

        Raises ConfigError when the tokenizer has no end-of-text token, or `max_length` has no room for a target.
        """
        check_room_for_text(tokenizer, self.max_length)
        found = read_documents(tokenizer, rows[self.config.text_column].to_pylist())
        of_rows = [enumerate(document.pieces(self.max_length)) for document in found]
        return _samples([(row, place, one) for row, pieces in enumerate(of_rows) for place, one in pieces])

    def stored_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """The same, or with `cut: stream` the documents joined and cut into full samples, but for the last one. Each
        token but the very first is a target once. Raises ConfigError."""
        if getattr(self.config, "cut", Cut.DOCUMENTS) is Cut.DOCUMENTS or not len(rows):  # a chat's config has no cut
            return self.encode_inputs(rows, tokenizer)
        check_room_for_text(tokenizer, self.max_length)
        found = read_documents(tokenizer, rows[self.config.text_column].to_pylist())
        row_of_token = np.repeat(np.arange(len(found)), [len(one.ids) for one in found])
        pieces = joined(found).pieces(self.max_length)
        # The first token of a sample is the last target of the one before it.
        rows_of = ((int(row_of_token[one.begin + 1 if one.begin else 0]), one) for one in pieces)
        return _samples([(row, 0, one) for row, one in rows_of])

    def describe(self, sample: dict[str, Any], tokenizer: Any, state: TaskState) -> dict[str, Any]:
        """The text and the tokens, of which all but the first are targets."""
        shown = super().describe(sample, tokenizer, state)
        return {**shown, "labels": f"{len(shown['tokens']) - 1} tokens, all but the first"}

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """The padded inputs; `labels`, the token that follows each position, of shape (num_samples, seq_len);
        `num_bytes` of shape (num_samples,), int64."""
        return self.collate_inputs(samples, context.pad_token_id)

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """The same: texts are their own targets."""
        batch = padded_inputs(samples, pad_token_id)
        ids, labels = batch["input_ids"], np.full_like(batch["input_ids"], IGNORED)
        # By the length, as the token for padding may be one that ends texts.
        has_next = np.arange(1, ids.shape[1]) < list_lengths(samples["input_ids"])[:, None]
        labels[:, :-1][has_next] = ids[:, 1:][has_next]
        return {**batch, "labels": labels, NUM_BYTES: samples[NUM_BYTES].to_numpy().astype(np.int64)}

    def packed(self, batch: Batch, *, one_row: bool) -> Batch:
        """Several samples in a row. The last position of each has no target, so none is one of the next sample."""
        return pack(batch, one_row=one_row)

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """A model that predicts the next token. Raises ConfigError when it sees later ones."""
        from raytrain.models.language import build_causal_lm

        return build_causal_lm(model, training)

    def generate(
        self, model: Any, samples: pa.Table, numbers: np.ndarray, tokenizer: Any, decoding: Decoding
    ) -> Continued:
        """Continue each document, without the token that would end it."""
        return continued(model, self.prompts(samples, tokenizer), numbers, tokenizer, decoding)

    def prompt_ids(self, asked: str | list[dict[str, Any]], tokenizer: Any) -> list[int]:
        """The tokens of a text, without the one that would end it. Raises ConfigError for turns, which only a model
        that chats takes, and for a text that is empty."""
        if not isinstance(asked, str):
            raise ConfigError("this model continues texts and was not trained to answer turns: give a text")
        if not asked:
            raise ConfigError("the text to continue is empty")
        check_characters(asked)
        inputs = self.encode_inputs(pa.table({self.config.text_column: [asked]}), tokenizer)
        return self.prompts(inputs.table, tokenizer)[0]

    def prompts(self, samples: pa.Table, tokenizer: Any) -> list[list[int]]:
        """The tokens that are continued, for each row: its document, without the token that ends it."""
        documents: list[list[int]] = []
        for piece, ids in zip(samples[PIECE].to_pylist(), samples["input_ids"].to_pylist(), strict=True):
            if piece:
                documents[-1] += ids[1:]
            else:
                documents.append(ids)
        return [ids[:-1] or [tokenizer.eos_token_id] for ids in documents]


def continued(
    model: Any, prompts: list[list[int]], numbers: np.ndarray, tokenizer: Any, decoding: Decoding
) -> Continued:
    """What a language model continues prompts with, each a list of tokens. `numbers`: see `Generating.generate`.

    Raises ConfigError when the model has no room for `max_new_tokens`.
    """
    from raytrain.models.generation import continue_prompts
    from raytrain.models.prompts import Prompt

    most, temperature, seed = decoding.max_new_tokens, decoding.temperature, decoding.seed
    room = room_for_prompt(getattr(model.config, "max_position_embeddings", None), most)
    num_cut = 0 if room is None else sum(len(prompt) > room for prompt in prompts)
    asked = [
        Prompt(ids if room is None else ids[-room:], most, temperature, seed=seed, number=number)
        for ids, number in zip(prompts, numbers.tolist(), strict=True)
    ]
    found = continue_prompts(model, asked, stop_ids(model, tokenizer))
    return Continued([tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found], num_cut)


def _samples(pieces: list[tuple[int, int, Piece]]) -> Inputs:
    """Samples as a table. `pieces`: each with its first row, ascending, and its place among those of the row."""
    columns = {
        "input_ids": pa.array([one.ids for _, _, one in pieces], pa.list_(pa.int32())),
        NUM_BYTES: pa.array([one.num_bytes for _, _, one in pieces], pa.int32()),
        PIECE: pa.array([place for _, place, _ in pieces], pa.int32()),
    }
    return Inputs(pa.table(columns), 0, np.array([row for row, _, _ in pieces], dtype=np.int64))
