"""A language model that predicts masked words from both sides of them, such as BERT: pretrained, or new.

A row is a document, cut into samples of at most `max_length` tokens, each with the tokenizer's special tokens. What is
masked in a sample is drawn anew in each epoch, by the sample's id and the run's seed, and is the same at every number
of workers; in an evaluation it is the same each time.
"""

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import MaskedLmConfig, ModelConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.tasks.base import IGNORED, Batch, BatchContext, Inputs, Mode, TaskState
from raytrain.tasks.collate import pad_column
from raytrain.tasks.special_tokens import check_room, special_tokens
from raytrain.tasks.text import padded_inputs
from raytrain.tasks.token_prediction import PIECE, TokenPrediction

if TYPE_CHECKING:
    from torch import nn

MASKED, REPLACED = 0.8, 0.1  # shares of the chosen tokens; the others stay
WORDS, MASK_ID, VOCABULARY = "word_ids", "mask_id", "num_tokens"
SPECIAL = -1  # the word of a special token
_TEXT_STREAM = 6  # first in the seed of a text's masks in a prediction; `raytrain.models.generation` has 5


class MaskedLm(TokenPrediction):
    """Cross-entropy over the chosen tokens."""

    config: MaskedLmConfig

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        return {"perplexity": "min", "token_accuracy": "max"}

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Documents, cut at `max_length`, and which word each token is of.

        Raises ConfigError when the tokenizer has no token for masks or does not tell words, or `max_length` has no
        room for a text.
        """
        check_room(tokenizer, self.max_length)
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                "task.kind=masked_lm: this tokenizer has no token for masks (mask_token). Use the tokenizer of an "
                "encoder, such as BERT's"
            )
        prefix, suffix = special_tokens(tokenizer)
        room = self.max_length - len(prefix) - len(suffix)
        columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", WORDS, PIECE)}
        first_rows = []
        for row, (ids, words) in enumerate(_tokens_of(tokenizer, rows[self.config.text_column].to_pylist())):
            for piece, begin in enumerate(range(0, max(1, len(ids)), room)):
                columns["input_ids"].append([*prefix, *ids[begin : begin + room], *suffix])
                columns[WORDS].append(
                    [*[SPECIAL] * len(prefix), *words[begin : begin + room], *[SPECIAL] * len(suffix)]
                )
                columns[PIECE].append(piece)
                first_rows.append(row)
        kinds = {PIECE: pa.int32()}
        table = pa.table({name: pa.array(v, kinds.get(name, pa.list_(pa.int32()))) for name, v in columns.items()})
        for name, value in ((MASK_ID, tokenizer.mask_token_id), (VOCABULARY, len(tokenizer))):
            table = table.append_column(name, pa.array(np.full(len(table), value, np.int32)))
        return Inputs(table, 0, np.array(first_rows, dtype=np.int64))

    def describe(self, sample: dict[str, Any], tokenizer: Any, state: TaskState) -> dict[str, Any]:
        """The text and the tokens, of which some are chosen anew in each epoch."""
        words = len(set(sample[WORDS]) - {SPECIAL})
        shown = super().describe({"input_ids": sample["input_ids"]}, tokenizer, state)
        return {**shown, "labels": f"{self.config.mask_fraction:.0%} of the tokens, of {words} words"}

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """The padded inputs with masks; `labels`, the tokens that were chosen; each of shape (num_samples, seq_len)."""
        return self._masked(samples, context.pad_token_id, [context.generator(i) for i in range(len(samples))])

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """The same, with masks that are drawn by the text alone."""
        texts = samples["input_ids"].to_pylist()
        checks = [zlib.crc32(np.array(ids, np.int64).tobytes()) for ids in texts]
        return self._masked(samples, pad_token_id, [np.random.default_rng((_TEXT_STREAM, check)) for check in checks])

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """A model that predicts masked tokens."""
        from raytrain.models.language import build_masked_lm

        return build_masked_lm(model, training)

    def _masked(self, samples: pa.Table, pad_token_id: int, generators: list[np.random.Generator]) -> Batch:
        batch = padded_inputs(samples, pad_token_id)
        ids, labels = batch["input_ids"], np.full_like(batch["input_ids"], IGNORED)
        words = pad_column(samples[WORDS], SPECIAL, ids.shape[1])
        constants = (samples[name].to_numpy() for name in (MASK_ID, VOCABULARY))
        for row, generator, mask_id, vocabulary in zip(range(len(ids)), generators, *constants, strict=True):
            chosen = self._chosen(words[row], generator)
            labels[row, chosen] = ids[row, chosen]
            draw = generator.random(len(chosen))
            others = generator.integers(0, vocabulary, len(chosen))
            kept = np.where(draw < MASKED + REPLACED, others, ids[row, chosen])
            ids[row, chosen] = np.where(draw < MASKED, mask_id, kept)
        return {**batch, "labels": labels}

    def _chosen(self, words: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Places of the tokens that are predicted: those of words in random order, `mask_fraction` of the tokens on
        average, and one word at least. `words`: the word of each token, shape (seq_len,)."""
        places = np.flatnonzero(words != SPECIAL)
        if not len(places):
            return places
        of_word = words[places] if self.config.whole_words else np.arange(len(places))
        _, unit, sizes = np.unique(of_word, return_inverse=True, return_counts=True)
        order = generator.permutation(len(sizes))
        ends, wanted = np.cumsum(sizes[order]), self.config.mask_fraction * len(places)
        count = int(np.searchsorted(ends, wanted, side="right"))
        # The next word would be too much: it is chosen as often as makes the average right.
        if count < len(ends) and generator.random() * sizes[order[count]] < wanted - (ends[count - 1] if count else 0):
            count += 1
        is_chosen = np.zeros(len(sizes), bool)
        is_chosen[order[: max(1, count)]] = True
        return places[is_chosen[unit]]


def _tokens_of(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """(token ids, the word of each), without special tokens. Raises ConfigError when the tokenizer does not tell
    words."""
    if not texts:
        return []
    if not tokenizer.is_fast:
        raise ConfigError("task.kind=masked_lm needs a fast tokenizer (tokenizer.json), which tells words apart")
    encoding = tokenizer(texts, add_special_tokens=False, verbose=False)
    return [(encoding["input_ids"][row], encoding.word_ids(row)) for row in range(len(texts))]
