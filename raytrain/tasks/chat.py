"""A language model that answers, fine-tuned on the answers in conversations.

A row is a conversation, which a chat template writes as one text. Targets are the tokens of the answers, each with the
token that ends its turn. A template that writes earlier turns otherwise once others follow, as one that leaves out
earlier reasoning does, makes a sample of each answer.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.config.chat import ChatConfig, SpecialTokens, TooLong
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks.base import IGNORED, Batch, Inputs, Mode, Rejection, RowError, TaskState
from raytrain.tasks.causal_lm import CausalLm
from raytrain.tasks.chat_template import ChatTemplate, Rendered, Sample
from raytrain.tasks.conversations import (
    Conversation,
    UnusableError,
    input_columns,
    read_conversation,
    target_columns,
    why_no_answer,
)
from raytrain.tasks.predicting import ASKED, check_characters
from raytrain.tasks.text import padded_inputs
from raytrain.tasks.token_prediction import PIECE

if TYPE_CHECKING:
    from torch import nn

ANSWERS, PROMPT = "answers", "prompt_ids"
"""Tokens [start, stop) of each answer, one after the other; and the tokens that an answer follows, where a conversation
ends with a question, which are not stored."""


class Chat(CausalLm):
    """Cross-entropy over the tokens of the answers."""

    generated_column = "answer"
    default_new_tokens = 256
    answers_turns = True

    config: Any  # a ChatConfig; that of its base class is another

    def __init__(self, config: ChatConfig, max_length: int):
        super().__init__(config, max_length)
        self._template: tuple[Any, ChatTemplate] | None = None

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched."""
        return {"perplexity": "min", "token_accuracy": "max"}

    def input_columns(self) -> list[str]:
        """The questions, or the turns."""
        return input_columns(self.config)

    def target_columns(self) -> list[str]:
        """The answers, where they have a column."""
        return target_columns(self.config)

    def text_columns(self) -> list[str]:
        """Where the cells are texts and not lists of turns, all of them."""
        return [name for name in self.required_columns() if name != self.config.tools_column] if self._is_flat else []

    def compared_texts(self, rows: pa.Table) -> list[str]:
        """The texts of the turns, without a system prompt."""
        texts = []
        for found in self._read(rows):
            turns = [] if isinstance(found, UnusableError) else found.turns
            texts.append("\n".join(turn["content"] for turn in turns if turn["role"] != "system"))
        return texts

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows whose turns can't be read."""
        found = enumerate(self._read(rows))
        return [Rejection(row, one.code, str(one)) for row, one in found if isinstance(one, UnusableError)]

    def check_targets(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        """Conversations without an answer to learn."""
        reasons = [
            "" if isinstance(one, UnusableError) else why_no_answer(self.config, one) for one in self._read(rows)
        ]
        return [Rejection(row, RowError.BAD_TARGET, reason) for row, reason in enumerate(reasons) if reason]

    def longest_inputs(self, tokenizer: Any) -> Batch | None:
        """A sample of `max_length` tokens."""
        ids = np.full((1, self.max_length), tokenizer.pad_token_id, np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Conversations as tokens. Rows that only the template or the tokenizer shows to be unusable are rejected.

        Raises ConfigError when the template can't be used.
        """
        template = self.template(tokenizer)
        texts: list[Rendered] = []
        of_row: list[list[int]] = []  # places in `texts`
        prompts: dict[int, int] = {}
        rejected: dict[int, Rejection] = {}
        for row, one in enumerate(self._read(rows)):
            of_row.append([])
            try:
                if isinstance(one, UnusableError):
                    raise one
                rendered = template.render(one) if one.trained else []
                asking = [template.ask(one)] if one.asks else []
            except UnusableError as error:
                rejected[row] = Rejection(row, error.code, str(error))
                continue
            of_row[row] = [*range(len(texts), len(texts) + len(rendered))]
            texts += [*rendered, *asking]
            if asking:
                prompts[row] = len(texts) - 1
        samples, table = template.encode(texts), _Table()
        num_truncated = 0
        for row, places in enumerate(of_row):
            if row in rejected:
                continue
            prompt = samples[prompts[row]].ids if row in prompts else []
            kept, is_cut = self._fitting([samples[place] for place in places])
            if not places:
                kept = [Sample(prompt[:1], [])]
            if not kept or (is_cut and self.config.too_long != TooLong.CUT):
                rejected[row] = self._too_long(row, max(len(samples[place].ids) for place in places))
                continue
            num_truncated += is_cut
            table.add(row, kept, prompt)
        return Inputs(table.columns(), num_truncated, table.first_rows(), [rejected[row] for row in sorted(rejected)])

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """The samples, with the places of the answers."""
        return inputs.select(["input_ids", ANSWERS])

    def describe(self, sample: dict[str, Any], tokenizer: Any, state: TaskState) -> dict[str, Any]:
        """The text as the template writes it, the tokens, and each answer that is learned."""
        ids, answers = sample["input_ids"], spans_of(sample[ANSWERS])
        texts = [tokenizer.decode(ids[start:stop]) for start, stop in answers]
        return {
            "text": tokenizer.decode(ids),
            "tokens": tokenizer.convert_ids_to_tokens(ids),
            "labels": [f"{text} ({stop - start} tokens)" for text, (start, stop) in zip(texts, answers, strict=True)],
        }

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """The padded inputs; `labels`, the token that follows each position where it is one of an answer, of shape
        (num_samples, seq_len)."""
        batch = padded_inputs(samples, pad_token_id)
        ids, labels = batch["input_ids"], np.full_like(batch["input_ids"], IGNORED)
        for row, answers in enumerate(samples[ANSWERS].to_pylist()):
            for start, stop in spans_of(answers):
                labels[row, start - 1 : stop - 1] = ids[row, start:stop]
        return {**batch, "labels": labels}

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """A model that predicts the next token, and stops at the end of a turn. Raises ConfigError."""
        built = super().build_model(model, state, training)
        return stopping_at_turns(built, self.template, model)

    def prompts(self, samples: pa.Table, tokenizer: Any) -> list[list[int]]:
        """For each row the tokens that an answer follows: of its question, or those before its last answer."""
        prompts: list[list[int]] = []
        for piece, ids, answers, prompt in zip(
            *(samples[name].to_pylist() for name in (PIECE, "input_ids", ANSWERS, PROMPT)), strict=True
        ):
            found = prompt or ids[: answers[-2]]
            prompts = prompts[:-1] if piece else prompts
            prompts.append(found)
        return prompts

    def prompt_ids(self, asked: str | list[dict[str, Any]], tokenizer: Any) -> list[int]:
        """The tokens of a question or of turns, with the header that asks for an answer. Raises ConfigError when the
        turns are out of order, do not end with a question, or are refused by the template."""
        return self.prompts(asked_samples(self, asked, tokenizer), tokenizer)[0]

    def saved_tokenizer(self, tokenizer: Any) -> Any:
        """With the template of the training."""
        tokenizer.chat_template = self.template(tokenizer).text
        return tokenizer

    def template(self, tokenizer: Any) -> ChatTemplate:
        """The chat template. Raises ConfigError when there is none that can be used."""
        if self._template is None or self._template[0] is not tokenizer:
            as_text = self.config.special_tokens == SpecialTokens.TEXT
            self._template = tokenizer, ChatTemplate(tokenizer, self.config.chat_template, as_text=as_text)
        return self._template[1]

    # For predictions.

    def also_read(self) -> list[str]:
        """The answers, whose losses are told, and the question in place of the columns of the format."""
        return [*self.target_columns(), ASKED]

    def stand_ins(self) -> list[str]:
        """A question alone, or turns."""
        question = self.input_columns()[0]
        return list(dict.fromkeys([question, "messages", "prompt", "text"]))

    # Parts of the above.

    @property
    def _is_flat(self) -> bool:
        return bool(self.target_columns())

    def _read(self, rows: pa.Table) -> list[Conversation | UnusableError]:
        names = [name for name in (*self.required_columns(), ASKED) if name in rows.column_names]
        found: list[Conversation | UnusableError] = []
        for row in rows.select(names).to_pylist():
            try:
                found.append(read_conversation(self.config, row))
            except UnusableError as error:
                found.append(error)
        return found

    def _fitting(self, samples: list[Sample]) -> tuple[list[Sample], bool]:
        """The samples up to the last answer that fits, and whether one does not."""
        kept, is_cut = [], False
        for sample in samples:
            spans = [span for span in sample.spans if span[1] <= self.max_length]
            is_cut = is_cut or len(spans) < len(sample.spans)
            if spans:
                kept.append(Sample(sample.ids[: spans[-1][1]], spans))
        return kept, is_cut

    def _too_long(self, row: int, num_tokens: int) -> Rejection:
        how = self.config.too_long
        why = ", and no answer to learn fits as a whole" if how == TooLong.CUT else ""
        reason = f"has {num_tokens:,} tokens, more than data.max_length {self.max_length:,}{why}"
        return Rejection(row, RowError.TOO_LONG, reason, is_set_aside=how == TooLong.SET_ASIDE)


def asked_samples(task: Any, asked: str | list[dict[str, Any]], tokenizer: Any) -> pa.Table:
    """The sample of a question, or of turns, of a task that reads conversations. Raises ConfigError when the turns are
    out of order, do not end with a question, or are refused by the template."""
    check_characters(asked)
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
        raise ConfigError("the last turn is the assistant's: end with the user's, which is to be answered")
    rows = pa.table({ASKED: [json.dumps(turns)]})
    refused = task.check_inputs(rows)
    if not refused:
        inputs = task.encode_inputs(rows, tokenizer)
        refused = inputs.rejected
    if refused:
        raise ConfigError(refused[0].reason)
    samples: pa.Table = inputs.table
    return samples


class _Table:
    """Samples, one after the other."""

    def __init__(self) -> None:
        self._lines: list[tuple[list[int], list[int], list[int], int]] = []
        self._rows: list[int] = []

    def add(self, row: int, samples: list[Sample], prompt: list[int]) -> None:
        """The samples of a row, at least one."""
        for piece, sample in enumerate(samples):
            places = [place for span in sample.spans for place in span]
            self._lines.append((sample.ids, places, prompt if piece == len(samples) - 1 else [], piece))
            self._rows.append(row)

    def columns(self) -> pa.Table:
        """All of them."""
        ids, answers, prompts, pieces = zip(*self._lines, strict=True) if self._lines else ((), (), (), ())
        tokens = pa.list_(pa.int32())
        arrays = [*(pa.array(lists, tokens) for lists in (ids, answers, prompts)), pa.array(pieces, pa.int32())]
        return pa.table(arrays, ["input_ids", ANSWERS, PROMPT, PIECE])

    def first_rows(self) -> np.ndarray:
        """The row of each sample."""
        return np.array(self._rows, dtype=np.int64)


def spans_of(places: list[int]) -> list[tuple[int, int]]:
    """[start, stop) of each answer, of a cell of ANSWERS."""
    return list(zip(places[::2], places[1::2], strict=True))


def stopping_at_turns(built: Any, template_of: Callable[[Any], ChatTemplate], model: ModelConfig) -> "nn.Module":
    """A language model with the end of a turn among the tokens that end a text. `template_of`: the template for a
    tokenizer. Raises ConfigError."""
    import torch

    if torch.get_default_device().type != "meta" and built.generation_config is not None:
        ends = built.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        ids = [template_of(load_tokenizer(model)).end_id, *ends]
        built.generation_config.eos_token_id = list(dict.fromkeys(token for token in ids if token is not None))
    module: nn.Module = built
    return module
