"""A tag for each word: named entities, parts of speech.

A word is tagged at its first piece; its other pieces and the special tokens have no target. With `document_context`
a sample holds several sentences of a document; predictions are cut back to sentences before they are scored, so
scores mean the same with and without it.
"""

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, TokenClassificationConfig, TrainingConfig
from raytrain.errors import counted
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
from raytrain.tasks.collate import pad_column
from raytrain.tasks.entities import TagScores, has_entities
from raytrain.tasks.judging import judge_tags
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
from raytrain.tasks.predicting import Decoding, Judged, Predicting
from raytrain.tasks.sentences import Words, by_sentence, join, of_sentences, with_unknowns
from raytrain.tasks.special_tokens import check_room, needs_blanks, special_tokens, with_blanks
from raytrain.tasks.tagged import decode_tags, tag_columns
from raytrain.tasks.text import TextTask, model_inputs, padded_inputs, why_no_text

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

NUM_CASES = 4  # lower or no letters, Title, UPPER, miXed
WORD_STARTS = "word_starts"  # positions of the words' first pieces; not stored, as they follow from the targets


class TokenClassification(TextTask, Predicting):
    """Cross-entropy over the words of a sample."""

    def __init__(self, config: TokenClassificationConfig, max_length: int):
        self.config = config
        self.max_length = max_length

    @property
    def metrics(self) -> dict[str, Mode]:
        """The metrics that can be watched; those of entities unless tags are declared that mark none."""
        entity = ("entity_precision", "entity_recall", "entity_f1")
        may_have = self.config.labels is None or has_entities(self.config.labels)
        names = (*(entity if may_have else ()), "token_micro_f1", "token_macro_f1", "token_weighted_f1")
        return with_own_modes(dict.fromkeys(names, "max"), self.config)

    @property
    def best_metric(self) -> str:
        """entity_f1 if the declared tags have entities. Tags that are not declared may be parts of speech."""
        return "entity_f1" if has_entities(self.config.labels or []) else "token_macro_f1"

    def best_metric_for(self, state: TaskState) -> str:
        """entity_f1 if the tags have entities, whether declared or found in the data."""
        return "entity_f1" if has_entities(labels_in(state)) else "token_macro_f1"

    def input_columns(self) -> list[str]:
        """The words."""
        return [self.config.tokens_column]

    def word_columns(self) -> list[str]:
        """The words."""
        return [self.config.tokens_column]

    def target_columns(self) -> list[str]:
        """Their tags."""
        return [self.config.tags_column]

    def declared_state(self) -> TaskState | None:
        """The declared tags."""
        return None if self.config.labels is None else label_state(self.config.labels)

    def assumed_state(self) -> TaskState:
        """The declared tags, or two: the head's rows hardly change the number of parameters."""
        return label_state(self.config.labels or ["a", "b"])

    def survey(self, rows: pa.Table, split: str) -> TaskState:
        """How often each tag occurs in a chunk, in the rows whose words can be used."""
        reader, rejected = LabelReader(self.config.labels or []), {one.row for one in self.check_inputs(rows)}
        cells = enumerate(rows[self.config.tags_column].to_pylist())
        usable = [tags for row, tags in cells if row not in rejected and isinstance(tags, list)]
        return count_labels((name for tags in usable for tag in tags if (name := reader.one(tag)[0])), split)

    def state_from(self, surveys: list[TaskState]) -> TaskState:
        """The tags found: O first, then numbers by value, others by name."""
        tags = in_order(found_in(surveys))
        check_several(tags, "task.tags_column", self.config.tags_column)
        if "O" in tags and not has_entities(tags):
            logger.warning(
                "entities are not scored, as the tags (%s) follow none of the known schemes: a type with one of the "
                "letters of IOB, IOBES, BILOU or BMEWO before or after it, as in B-PER, PER-B and B_PER",
                ", ".join(tags[:8]),
            )
        return label_state(tags)

    def remarks(self, surveys: list[TaskState]) -> list[str]:
        """Tags that may be none, or that may be meant as one."""
        return suspicious(surveys, "task.tags_column", self.config.tags_column)

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows without words, or with an empty one."""
        rejected, column = [], self.config.tokens_column
        for row, words in enumerate(rows[column].to_pylist()):
            reason = ""
            if not words and words != 0:
                reason = "is empty"
            elif not isinstance(words, list):  # text would pass as a list of letters
                reason = "must be a list of words"
            elif wrong := next((why for word in words if (why := why_no_text(word))), ""):
                reason = "holds an empty word" if wrong == "is empty" else f"holds a word that {wrong}"
            if reason:
                rejected.append(Rejection(row, RowError.BAD_INPUT, f"{column} {reason}"))
        return rejected

    def check_targets(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        """Rows without exactly one known tag for each word."""
        return self._check_tags(rows, labels_in(state))

    def check_before_survey(self, rows: pa.Table) -> list[Rejection]:
        """Rows without words, or without exactly one tag for each."""
        return [*self.check_inputs(rows), *self._check_tags(rows, None)]

    def _check_tags(self, rows: pa.Table, labels: list[str] | None) -> list[Rejection]:
        """Rows whose tags can't be used, or are none of `labels` where these are known."""
        reader, known = LabelReader(labels or []), None if labels is None else dict.fromkeys(labels)
        words_of, tags_of = (rows[name].to_pylist() for name in self.required_columns())
        pairs = enumerate(zip(words_of, tags_of, strict=True))
        found = (self._reject(row, words, tags, reader, known) for row, (words, tags) in pairs)
        return [rejection for rejection in found if rejection is not None]

    def long_rows(self) -> pa.Table:
        """Two sentences."""
        return pa.table({self.config.tokens_column: [["a"] * self.max_length] * 2})

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Cut words to pieces. Words that are lost to truncation are not scored; their sentences are counted.

        Raises ConfigError when `max_length` has no room for a word.
        """
        check_room(tokenizer, self.max_length)
        documents = rows["document"].to_pylist() if "document" in rows.column_names else [0] * rows.num_rows
        sentences = self._encode_sentences(rows[self.config.tokens_column].to_pylist(), documents, tokenizer)
        prefix, suffix = special_tokens(tokenizer)
        room = self.max_length - len(prefix) - len(suffix)
        is_long = [len(sentence.input_ids) > room for sentence in sentences]
        for sentence, long in zip(sentences, is_long, strict=True):
            if long:
                sentence.cut(room)
        samples = join(sentences, documents, room) if self.config.document_context else sentences
        for sample in samples:
            sample.wrap(prefix, suffix)
        names = [
            "input_ids",
            *(["token_type_ids"] if self.config.case_feature else []),
            "sentence_lengths",
            WORD_STARTS,
        ]
        columns = {name: pa.array([getattr(s, name) for s in samples], pa.list_(pa.int32())) for name in names}
        first = np.cumsum([0, *(len(sample.sentence_lengths) for sample in samples)], dtype=np.int64)[:-1]
        return Inputs(pa.table(columns), sum(is_long), first)

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """Adds `labels`: each word's tag id at its first piece, and no target elsewhere."""
        ids = {label: i for i, label in enumerate(labels_in(state))}
        tags_of, reader = iter(rows[self.config.tags_column].to_pylist()), LabelReader(ids)
        columns = (inputs[name].to_pylist() for name in (WORD_STARTS, "sentence_lengths"))
        labels = []
        for starts, lengths, size in zip(*columns, self.sizes(inputs), strict=True):
            tags = [tag for length in lengths for tag in next(tags_of)[:length]]
            row = [IGNORED] * int(size)
            for place, tag in zip(starts, tags, strict=True):
                row[place] = ids[reader.one(tag)[0]]
            labels.append(row)
        return inputs.drop_columns(WORD_STARTS).append_column("labels", pa.array(labels, pa.list_(pa.int32())))

    def count_labels(self, samples: pa.Table, state: TaskState) -> dict[str, int]:
        """Words with each tag."""
        ids = samples["labels"].combine_chunks().flatten().to_numpy()
        return count_ids(ids[ids != IGNORED], labels_in(state))

    def name_targets(self, targets: Any, tokens: list[str], state: TaskState) -> Any:
        """word/tag for each first piece."""
        names = labels_in(state)
        return [f"{token}/{names[i]}" for token, i in zip(tokens, targets, strict=True) if i != IGNORED]

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """The padded inputs, with case_feature `token_type_ids` among them, and `labels`, all of shape (num_samples,
        seq_len); `sentence_lengths` of shape (num_samples, sentences of the sample that has most)."""
        batch = padded_inputs(samples, context.pad_token_id)
        batch["labels"] = pad_column(samples["labels"], IGNORED, batch["input_ids"].shape[1])
        batch["sentence_lengths"] = pad_column(samples["sentence_lengths"], 0)
        return batch

    def blank(self, batch: Batch) -> Batch:
        """The first sample of a batch without its tags."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        blank["labels"][:] = IGNORED
        blank["sentence_lengths"][:] = 0
        return blank

    def target_weight(self, batch: Batch) -> float:
        """Tagged words."""
        return float((batch["labels"] != IGNORED).sum())

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """An encoder with a head for each token; with case_feature its token-type embedding has a row a letter case.

        Raises ConfigError when the model has no token-type embedding.
        """
        from raytrain.models.build import build_with_head
        from raytrain.models.token_types import widen_token_types

        built = build_with_head("AutoModelForTokenClassification", model, labels_in(state), training)
        if self.config.case_feature:
            widen_token_types(built, NUM_CASES)
        return built

    def loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        """Sum over the tagged words."""
        return self._loss_and_logits(model, batch)[0]

    def smoothed_loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]", smoothing: float) -> "Tensor":
        """The same, of smoothed tags."""
        return self._loss_and_logits(model, batch, smoothing)[0]

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each sentence the tag ids of its words, int32."""
        loss, logits = self._loss_and_logits(model, batch)
        chosen = logits.argmax(-1).cpu().numpy().astype(np.int32)
        is_word = batch["labels"].cpu().numpy() != IGNORED
        return loss, by_sentence(chosen, is_word, batch["sentence_lengths"].cpu().numpy())

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each sentence the true tag ids of its words."""
        labels = batch["labels"].astype(np.int32)
        return by_sentence(labels, labels != IGNORED, batch["sentence_lengths"])

    def output_columns(self, state: TaskState, decoding: Decoding) -> list[str]:
        """The tags, the entities where the tags mark them, on request the probability of each tag."""
        return tag_columns(state, decoding)

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """The padded inputs, and `word_starts` of shape (num_samples, words of the sample that has most), -1 at the
        end."""
        return {**padded_inputs(samples, pad_token_id), WORD_STARTS: pad_column(samples[WORD_STARTS], -1)}

    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample the logits of its words, shape (num_words, num_labels)."""
        logits = model(**model_inputs(batch)).logits.float().cpu().numpy()
        starts = batch[WORD_STARTS].cpu().numpy()
        return [row[places[places >= 0]] for row, places in zip(logits, starts, strict=True)]

    def decode(
        self, outputs: list[np.ndarray], samples: pa.Table, rows: pa.Table, state: TaskState, decoding: Decoding
    ) -> pa.Table:
        """A tag for each word, null for those beyond `max_length`, and the entities."""
        logits = of_sentences(outputs, samples["sentence_lengths"])
        return decode_tags(logits, rows, self.config.tokens_column, state, decoding)

    @property
    def uses_threshold(self) -> bool:
        """The tag with the largest logit is given."""
        return False

    def judge(
        self, outputs: list[np.ndarray], samples: pa.Table, state: TaskState, decoding: Decoding
    ) -> Judged | None:
        """The tags of each sentence beside the true ones. None with a loss of the user's."""
        if self.config.loss is not None:
            return None
        return judge_tags(outputs, samples, state)

    def scores(self, state: TaskState) -> Scores:
        """Entity-level scores (where the tags mark entities) and token-level scores over all tags, O included."""
        labels = labels_in(state)
        return with_own_metrics(TagScores(labels), self.config, labels)

    def _loss_and_logits(self, model: Any, batch: "dict[str, Tensor]", smoothing: float = 0.0) -> Any:
        from torch.nn.functional import cross_entropy

        logits = model(**model_inputs(batch)).logits.float()
        flat, labels = logits.flatten(0, 1), batch["labels"].flatten()
        if self.config.loss is not None:
            return own_loss_sum(self.config, flat, labels, None), logits
        return cross_entropy(flat, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing), logits

    def _reject(
        self, row: int, words: Any, tags: Any, reader: LabelReader, known: Collection[str] | None
    ) -> Rejection | None:
        tokens, column = self.config.tokens_column, self.config.tags_column
        if not isinstance(words, list) or not isinstance(tags, list | None):
            reason = f"{tokens} and {column} must be lists, one tag a word"
            return Rejection(row, RowError.BAD_TARGET, reason)
        if tags is None or len(tags) != len(words):
            return Rejection(
                row,
                RowError.BAD_TARGET,
                f"the tags are not one per word: {counted(len(words), 'word')}, but {counted(len(tags or []), 'tag')}",
            )
        names = [reader.one(tag) for tag in tags]
        if wrong := next((reason for _, reason in names if reason), ""):
            reason = f"{column} lacks the tag of a word" if wrong == "is missing" else f"a tag in {column} {wrong}"
            return Rejection(row, RowError.BAD_TARGET, reason)
        unknown = [] if known is None else [name for name, _ in names if name not in known]
        if known is None or not unknown:
            return None
        return Rejection(row, RowError.UNKNOWN_LABEL, f"label {unknown[0]!r} is none of {list(known)}")

    def _encode_sentences(self, words_of: list[list[str]], documents: list[int], tokenizer: Any) -> list[Words]:
        """Each sentence without special tokens."""
        if not words_of:
            return []
        if needs_blanks(tokenizer):
            words_of = with_blanks(words_of, documents if self.config.document_context else None)
        encoding = tokenizer(words_of, is_split_into_words=True, add_special_tokens=False, verbose=False)
        sentences = []
        for row, words in enumerate(words_of):
            ids, places = encoding["input_ids"][row], encoding.word_ids(row)
            if len(set(places)) < len(words):  # the tokenizer dropped a word, such as a control character
                ids, places = with_unknowns(words, tokenizer)
            starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1]]
            cases = [letter_case(words[place]) for place in places] if self.config.case_feature else [0] * len(ids)
            sentences.append(Words(list(ids), cases, starts, [len(words)]))
        return sentences


def letter_case(word: str) -> int:
    """0: lower case or no letters; 1: Title; 2: UPPER, two letters at least; 3: anything else."""
    word = word.strip()
    letters = [c for c in word if c.isalpha()]
    if not letters or word.islower():
        return 0
    if len(letters) > 1 and word.isupper():
        return 2
    return 1 if word[0].isupper() and not any(c.isupper() for c in word[1:]) else 3
