"""What the tasks on pairs of answers share: a row is a pair, which is one sample and one target.

A chat template writes both conversations. What is compared are the tokens of the answers after their common prompt,
each with the token that ends its turn.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import PairsConfig
from raytrain.config.chat import SpecialTokens
from raytrain.config.preference import PairTooLong
from raytrain.tasks.base import IGNORED, Batch, BatchContext, Inputs, Rejection, RowError, Scores, TaskState
from raytrain.tasks.chat import PROMPT, spans_of
from raytrain.tasks.chat_template import ChatTemplate, Rendered, Sample
from raytrain.tasks.collate import attention_mask, list_lengths, pad_column
from raytrain.tasks.conversations import UnusableError
from raytrain.tasks.pair_scores import PairScores
from raytrain.tasks.pairs import Pair, pair_columns, read_pair
from raytrain.tasks.predicting import ASKED, Decoding, Judged, Predicting
from raytrain.tasks.text import TextTask

if TYPE_CHECKING:
    from torch import Tensor, nn

IDS = ("input_ids", "rejected_ids")
"""Columns with the tokens of the chosen and of the rejected conversation."""
ANSWERS = ("answers", "rejected_answers")
"""Columns with the tokens [start, stop) of each answer that is compared, one after the other."""
IS_PAIR = "is_pair"
"""Column, which is not stored: false for a single conversation, whose second side is its first token."""
REFERENCE = "reference"
"""Column with the log-probabilities of both sides by the model that training starts from."""


class PairTask(TextTask, Predicting):
    """Compares two answers to one prompt."""

    config: Any

    def __init__(self, config: PairsConfig, max_length: int):
        self.config, self.max_length = config, max_length
        self._template: tuple[Any, ChatTemplate] | None = None

    def input_columns(self) -> list[str]:
        """The prompt and both answers."""
        return pair_columns(self.config)

    def target_columns(self) -> list[str]:
        """None: which answer is the better one is told by its column."""
        return []

    @property
    def uses_threshold(self) -> bool:
        """Nothing is chosen by a probability."""
        return False

    def also_read(self) -> list[str]:
        """A conversation in place of the columns of a pair."""
        return [ASKED]

    def compared_texts(self, rows: pa.Table) -> list[str]:
        """The texts of all turns of both conversations, without a system prompt."""
        texts = []
        for found in self._read(rows):
            sides = [] if isinstance(found, UnusableError) else [found.chosen, found.rejected]
            turns = [turn for side in sides if side is not None for turn in side.turns if turn["role"] != "system"]
            texts.append("\n".join(turn["content"] for turn in turns))
        return texts

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows whose pair can't be read."""
        found = enumerate(self._read(rows))
        return [Rejection(row, one.code, str(one)) for row, one in found if isinstance(one, UnusableError)]

    def longest_inputs(self, tokenizer: Any) -> Batch | None:
        """A conversation of `max_length` tokens."""
        ids = np.full((1, self.max_length), tokenizer.pad_token_id, np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Pairs as tokens. Rows that only the template or the tokenizer shows to be unusable are rejected.

        Raises ConfigError when the template can't be used.
        """
        template, found = self.template(tokenizer), self._read(rows)
        rejected: dict[int, Rejection] = {}
        texts: list[Rendered] = []
        places: list[list[int]] = []  # in `texts`, of each row: both sides, or one
        for row, one in enumerate(found):
            places.append([])
            try:
                if isinstance(one, UnusableError):
                    raise one
                rendered = self._rendered(template, one)
            except UnusableError as error:
                rejected[row] = Rejection(row, error.code, str(error))
                continue
            places[row] = [*range(len(texts), len(texts) + len(rendered))]
            texts += rendered
        samples, lines, good = template.encode(texts), [], []
        for row, of_row in enumerate(places):
            sides = [samples[place] for place in of_row]
            if row not in rejected and (why := self._why_not(row, sides)) is not None:
                rejected[row] = why
            if row in rejected:
                continue
            good.append(row)
            lines.append(_line(sides))
        return Inputs(_columns(lines), 0, np.array(good, np.int64), [rejected[row] for row in sorted(rejected)])

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """The samples, with the places of the answers."""
        return inputs.select([*IDS, *ANSWERS])

    def sizes(self, samples: pa.Table) -> np.ndarray:
        """Tokens of both sides."""
        return np.asarray(sum(list_lengths(samples[name]) for name in IDS)).astype(np.int32)

    def describe(self, sample: dict[str, Any], tokenizer: Any, state: TaskState) -> dict[str, Any]:
        """Both texts as the template writes them, the tokens, and the answers that are compared."""
        shown: dict[str, Any] = {}
        for name, ids_name, answers in zip(("chosen", "rejected"), IDS, ANSWERS, strict=True):
            ids = sample[ids_name]
            spans = spans_of(sample[answers])
            texts = [f"{tokenizer.decode(ids[start:stop])} ({stop - start} tokens)" for start, stop in spans]
            shown[name] = {"text": tokenizer.decode(ids), "labels": texts}
        shown["tokens"] = tokenizer.convert_ids_to_tokens(sample["input_ids"])
        return {**shown, **({REFERENCE: sample[REFERENCE]} if REFERENCE in sample else {})}

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """See `collate_inputs`; with REFERENCE where it is stored, of shape (num_samples, 2), fp32."""
        batch = self.collate_inputs(samples, context.pad_token_id)
        if REFERENCE in samples.column_names:
            batch[REFERENCE] = np.array(samples[REFERENCE].to_pylist(), np.float32).reshape(len(samples), 2)
        return batch

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """Both sides, the chosen one first: `input_ids`, `attention_mask` and `labels`, the token that follows each
        position where it is one of an answer, of shape (num_samples, 2, seq_len); `weights`, 1 for each pair, of shape
        (num_samples,), fp32."""
        width = max(int(list_lengths(samples[name]).max(initial=1)) for name in IDS)
        ids = np.stack([pad_column(samples[name], pad_token_id, width) for name in IDS], axis=1)
        mask = np.stack([attention_mask(samples[name], width) for name in IDS], axis=1)
        labels = np.full_like(ids, IGNORED)
        for side, name in enumerate(ANSWERS):
            for row, answers in enumerate(samples[name].to_pylist()):
                for start, stop in spans_of(answers):
                    labels[row, side, start - 1 : stop - 1] = ids[row, side, start:stop]
        weights = np.ones(len(samples), np.float32)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights}

    def blank(self, batch: Batch) -> Batch:
        """The first pair of a batch, which counts nothing."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        blank["labels"][:] = IGNORED
        return {**blank, "weights": np.zeros(1, np.float32)}

    def target_weight(self, batch: Batch) -> float:
        """Pairs."""
        return float(batch["weights"].sum())

    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the pairs."""
        return self._loss_and_values(model, batch)[0]

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each pair the values that `scores` take, fp32."""
        loss, values = self._loss_and_values(model, batch)
        is_pair = batch["weights"].cpu().numpy() > 0
        return loss, list(values.float().cpu().numpy()[is_pair])

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """Nothing but zeros: the first answer of a pair is the better one."""
        return [np.zeros(self.num_values, np.float32) for weight in batch["weights"] if weight > 0]

    @property
    def num_values(self) -> int:
        """Values of a pair that `scores` take."""
        return len(self.value_names)

    @property
    @abstractmethod
    def value_names(self) -> list[str]:
        """Of the metrics that are means of `predict`'s values; the first two are those of the chosen and the rejected
        answer, by which they are compared."""

    def scores(self, state: TaskState) -> Scores:
        """How often the chosen answer has the larger value, by how much, and the means of the values."""
        return PairScores(self.value_names)

    @abstractmethod
    def _loss_and_values(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        """The sum of the losses of the pairs, times their weights; and `predict`'s values, of shape (num_samples,
        num_values)."""

    def _judged(self, losses: "Tensor", values: "Tensor", num_rows: int) -> Judged:
        """`losses`, `values`: of each row."""
        predictions = list(values.float().numpy())
        targets = [np.zeros(self.num_values, np.float32)] * num_rows
        true = pa.table({"true_label": [self.config.chosen_column] * num_rows})
        return Judged(predictions, targets, losses.double().numpy(), np.ones(num_rows), true)

    # Templates.

    def template(self, tokenizer: Any) -> ChatTemplate:
        """The chat template. Raises ConfigError when there is none that can be used."""
        if self._template is None or self._template[0] is not tokenizer:
            as_text = self.config.special_tokens == SpecialTokens.TEXT
            self._template = tokenizer, ChatTemplate(tokenizer, self.config.chat_template, as_text=as_text)
        return self._template[1]

    def saved_tokenizer(self, tokenizer: Any) -> Any:
        """With the template of the training."""
        tokenizer.chat_template = self.template(tokenizer).text
        return tokenizer

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """The larger one of two numbers, by how much, and both."""
        name = self.value_of_answer
        return ["preferred", "margin", f"chosen_{name}", f"rejected_{name}"]

    value_of_answer = ""
    """What the number of an answer is called in predictions."""

    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """Which of two answers has the larger number. Without a second answer, all but its number is null."""
        values = np.array(outputs, np.float64).reshape(len(outputs), 2)
        has_one = np.array([len(answers) > 0 for answers in samples[ANSWERS[0]].to_pylist()], bool)
        is_pair = samples[IS_PAIR].to_numpy(zero_copy_only=False).astype(bool)
        names = np.where(values[:, 0] > values[:, 1], self.config.chosen_column, self.config.rejected_column)
        columns = [
            pa.array(names.tolist(), pa.string(), mask=~is_pair),
            pa.array((values[:, 0] - values[:, 1]).round(6), mask=~is_pair),
            pa.array(values[:, 0].round(6), mask=~has_one),
            pa.array(values[:, 1].round(6), mask=~is_pair),
        ]
        return pa.table(columns, self.output_columns(state, decoding))

    # Parts of the above.

    def _read(self, rows: pa.Table) -> list[Pair | UnusableError]:
        names = [name for name in (*self.input_columns(), ASKED) if name in rows.column_names]
        found: list[Pair | UnusableError] = []
        for row in rows.select(names).to_pylist():
            try:
                found.append(read_pair(self.config, row))
            except UnusableError as error:
                found.append(error)
        return found

    def _rendered(self, template: ChatTemplate, pair: Pair) -> list[Rendered]:
        """The text of each side. Raises UnusableError."""
        if pair.rejected is None:
            return [self._single(template, pair)]
        found = []
        for side in (pair.chosen, pair.rejected):
            texts = template.render(side)
            if len(texts) > 1:
                raise UnusableError(
                    "it has several answers after the common prompt, and the chat template writes earlier answers "
                    "otherwise once others follow, so the two can't be compared: let each end with its first answer"
                )
            found += texts
        return found

    @abstractmethod
    def _single(self, template: ChatTemplate, pair: Pair) -> Rendered:
        """The text of a conversation without a second one. Raises UnusableError."""

    def _why_not(self, row: int, sides: list[Sample]) -> Rejection | None:
        """Why a row can't be used, seen by its tokens."""
        # A prompt alone is answered and not compared: the model's positions are its limit.
        most = max((len(side.ids) for side in sides if len(sides) > 1 or side.spans), default=0)
        if most > self.max_length:
            reason = f"has {most:,} tokens on one side, more than data.max_length {self.max_length:,}"
            is_set_aside = self.config.too_long == PairTooLong.SET_ASIDE
            return Rejection(row, RowError.TOO_LONG, reason, is_set_aside=is_set_aside)
        if len(sides) > 1 and not all(side.spans for side in sides):
            return Rejection(row, RowError.BAD_TARGET, "the chat template leaves nothing of an answer to be compared")
        if len(sides) > 1 and sides[0].ids == sides[1].ids:
            reason = "the chat template and the tokenizer make the same tokens of both answers"
            return Rejection(row, RowError.BAD_TARGET, reason)
        return None


def _line(sides: list[Sample]) -> dict[str, Any]:
    """A sample of `encode_inputs`. A single conversation stands on the first side."""
    is_pair = len(sides) > 1
    first, second = sides[0], sides[1] if is_pair else Sample(sides[0].ids[:1], [])
    places = [[place for span in side.spans for place in span] for side in (first, second)]
    prompt = [] if is_pair or places[0] else first.ids
    if prompt:
        first = second
    return {
        **dict(zip(IDS, (first.ids, second.ids), strict=True)),
        **dict(zip(ANSWERS, places, strict=True)),
        PROMPT: prompt,
        IS_PAIR: is_pair,
    }


def _columns(lines: list[dict[str, Any]]) -> pa.Table:
    tokens = pa.list_(pa.int32())
    fields = [*((name, tokens) for name in (*IDS, *ANSWERS, PROMPT)), (IS_PAIR, pa.bool_())]
    return pa.Table.from_pylist(lines, pa.schema(fields))
