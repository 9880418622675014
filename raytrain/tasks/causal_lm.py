"""A language model that predicts each next token: pretrained and trained on, or new.

A row is a document. It gets the special tokens that the tokenizer adds and an end-of-text token, and is cut into
samples of at most `max_length` tokens. Its first token, which nothing precedes, is not predicted.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import CausalLmConfig, ModelConfig, TrainingConfig
from raytrain.errors import ConfigError
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
from raytrain.tasks.collate import list_lengths
from raytrain.tasks.documents import check_room_for_text, read_documents
from raytrain.tasks.predicting import Continued, Decoding, Generating, Predicting
from raytrain.tasks.text import TextTask, model_inputs, padded_inputs, why_no_text
from raytrain.tasks.token_scores import TokenScores, loss_units

if TYPE_CHECKING:
    from torch import Tensor, nn

PIECE = "piece"  # place of a sample in its document, from 0; not stored
NUM_BYTES = "num_bytes"


class CausalLm(TextTask, Predicting, Generating):
    """Cross-entropy over all tokens but the first of each document."""

    def __init__(self, config: CausalLmConfig, max_length: int):
        self.config = config
        self.max_length = max_length

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        return {"perplexity": "min", "bits_per_byte": "min", "token_accuracy": "max"}

    def input_columns(self) -> list[str]:
        """The text."""
        return [self.config.text_column]

    def text_columns(self) -> list[str]:
        """The text."""
        return self.input_columns()

    def target_columns(self) -> list[str]:
        """None: the targets are the text's own tokens."""
        return []

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

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Documents, cut at `max_length`: nothing of a text is left out.

        Raises ConfigError when the tokenizer has no end-of-text token, or `max_length` has no room for a target.
        """
        check_room_for_text(tokenizer, self.max_length)
        ids: list[list[int]] = []
        num_bytes, pieces, first_rows = [], [], []
        for row, document in enumerate(read_documents(tokenizer, rows[self.config.text_column].to_pylist())):
            for piece, (tokens, of_bytes) in enumerate(document.pieces(self.max_length)):
                ids.append(tokens)
                num_bytes.append(of_bytes)
                pieces.append(piece)
                first_rows.append(row)
        columns = {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            NUM_BYTES: pa.array(num_bytes, pa.int32()),
            PIECE: pa.array(pieces, pa.int32()),
        }
        return Inputs(pa.table(columns), 0, np.array(first_rows, dtype=np.int64))

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """The samples: a target is the token that follows."""
        return inputs.drop_columns(PIECE)

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

    def blank(self, batch: Batch) -> Batch:
        """The first sample of a batch without targets."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        blank["labels"][:], blank[NUM_BYTES][:] = IGNORED, 0
        return blank

    def target_weight(self, batch: Batch) -> float:
        """Tokens that are predicted."""
        return float((batch["labels"] != IGNORED).sum())

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """A model that predicts the next token. Raises ConfigError when it sees later ones."""
        from raytrain.models.language import build_causal_lm

        return build_causal_lm(model, training)

    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the tokens that are predicted."""
        from raytrain.models.token_losses import losses_at_targets

        return losses_at_targets(model, model_inputs(batch), batch["labels"])[0].sum()

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each sample with a target its loss, in LOSS_UNITS, and the number of tokens predicted right, int64."""
        from raytrain.models.token_losses import log_probabilities, losses_at_targets

        found = losses_at_targets(model, model_inputs(batch), batch["labels"])
        parts = _by_sample(log_probabilities(*found), batch)
        sums = [(loss_units(-float(one[:, 0].sum(dtype=np.float64))), (one[:, 0] > one[:, 1]).sum()) for one in parts]
        return found[0].sum(), [np.array(one, np.int64) for one, part in zip(sums, parts, strict=True) if len(part)]

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each sample with a target their number, and the bytes of the text that they stand for, int64."""
        counts = (batch["labels"] != IGNORED).sum(1)
        return [np.array(one) for one in zip(counts, batch[NUM_BYTES], strict=True) if one[0]]

    def scores(self, state: TaskState) -> Scores:
        """Perplexity, bits per byte, and accuracy of the tokens."""
        return TokenScores()

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """The mean loss of the row's tokens, and their number."""
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
        documents = np.cumsum(samples[PIECE].to_numpy() == 0) - 1
        sums, counts = np.zeros((2, len(rows)))
        for document, found in zip(documents, outputs, strict=True):
            sums[document] -= found[:, 0].sum(dtype=np.float64)
            counts[document] += len(found)
        losses = np.divide(sums, counts, out=np.zeros(len(rows)), where=counts > 0)
        columns = [pa.array(losses.round(6), mask=counts == 0), pa.array(counts.astype(np.int64))]
        return pa.table(columns, self.output_columns(state, decoding))

    def generate(
        self, model: Any, samples: pa.Table, numbers: np.ndarray, tokenizer: Any, decoding: Decoding
    ) -> Continued:
        """Continue each document, without the token that would end it."""
        from raytrain.models.generation import continue_prompts

        prompts = self.prompts(samples, tokenizer)
        num_cut, positions = 0, getattr(model.config, "max_position_embeddings", None)
        if positions is not None:
            room = positions - decoding.max_new_tokens
            if room < 1:
                raise ConfigError(
                    f"max_new_tokens {decoding.max_new_tokens} leaves no room for a text in the {positions} positions "
                    f"of the model: give at most {positions - 1}"
                )
            num_cut = sum(len(prompt) > room for prompt in prompts)
            prompts = [prompt[-room:] for prompt in prompts]
        stops = model.generation_config.eos_token_id  # a list where a model of a chat has several
        stop_ids = [tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])]
        found = continue_prompts(
            model,
            prompts,
            numbers.tolist(),
            list(dict.fromkeys(token for token in stop_ids if token is not None)),
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            seed=decoding.seed,
        )
        return Continued([tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found], num_cut)

    def prompts(self, samples: pa.Table, tokenizer: Any) -> list[list[int]]:
        """The tokens that are continued, for each row: its document, without the token that ends it."""
        documents: list[list[int]] = []
        for piece, ids in zip(samples[PIECE].to_pylist(), samples["input_ids"].to_pylist(), strict=True):
            if piece:
                documents[-1] += ids[1:]
            else:
                documents.append(ids)
        return [ids[:-1] or [tokenizer.eos_token_id] for ids in documents]


def _by_sample(values: "Tensor", batch: "dict[str, Tensor]") -> list[np.ndarray]:
    """Values of all targets, by sample. `values`: shape (num_targets, ...)."""
    counts = (batch["labels"] != IGNORED).sum(1).cpu().numpy()
    return np.split(values.float().cpu().numpy()[: counts.sum()], np.cumsum(counts)[:-1])
