"""A tag for each word: named entities, parts of speech.

A word is tagged at its first piece; its other pieces and the special tokens have no target. With `document_context`
a sample holds several sentences of a document; predictions are cut back to sentences before they are scored, so
scores mean the same with and without it.
"""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, TokenClassificationConfig, TrainingConfig
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
from raytrain.tasks.labels import count_labels, found_in, label_state, labels_in
from raytrain.tasks.special_tokens import check_room, needs_blanks, special_tokens, with_blanks
from raytrain.tasks.text import TextTask, model_inputs, padded_inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

NUM_CASES = 4  # lower or no letters, Title, UPPER, miXed
WORD_STARTS = "word_starts"  # positions of the words' first pieces; not stored, as they follow from the targets


@dataclass
class _Sample:
    """A sentence, or several of one document, as lists that grow together."""

    input_ids: list[int] = field(default_factory=list)
    token_type_ids: list[int] = field(default_factory=list)
    word_starts: list[int] = field(default_factory=list)
    sentence_lengths: list[int] = field(default_factory=list)
    """Words of each sentence."""

    def add(self, other: "_Sample") -> None:
        self.word_starts += [len(self.input_ids) + place for place in other.word_starts]
        self.input_ids += other.input_ids
        self.token_type_ids += other.token_type_ids
        self.sentence_lengths += other.sentence_lengths

    def cut(self, num_tokens: int) -> None:
        """Keep the first tokens of a single sentence."""
        del self.input_ids[num_tokens:], self.token_type_ids[num_tokens:]
        self.word_starts = [place for place in self.word_starts if place < num_tokens]
        self.sentence_lengths = [len(self.word_starts)]

    def wrap(self, prefix: list[int], suffix: list[int]) -> None:
        """Put special tokens around it."""
        self.input_ids = [*prefix, *self.input_ids, *suffix]
        self.token_type_ids = [0] * len(prefix) + self.token_type_ids + [0] * len(suffix)
        self.word_starts = [len(prefix) + place for place in self.word_starts]


class TokenClassification(TextTask):
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
        return dict.fromkeys(names, "max")

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
        """How often each tag occurs in a chunk."""
        cells = rows[self.config.tags_column].to_pylist()
        return count_labels((str(tag) for tags in cells for tag in tags or [] if not _is_missing(tag)), split)

    def state_from(self, surveys: list[TaskState]) -> TaskState:
        """The tags found: O first, then sorted."""
        tags = sorted(found_in(surveys), key=lambda tag: (tag != "O", tag))
        if "O" in tags and len(tags) > 1 and not has_entities(tags):
            logger.warning(
                "entities are not scored, as the tags (%s) follow none of the known schemes: a type with one of the "
                "letters of IOB, IOBES, BILOU or BMEWO before or after it, as in B-PER, PER-B and B_PER",
                ", ".join(tags[:8]),
            )
        return label_state(tags)

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows without words, or with an empty one."""
        rejected = []
        for row, words in enumerate(rows[self.config.tokens_column].to_pylist()):
            reason = None
            if not words:
                reason = f"{self.config.tokens_column} is empty"
            elif not isinstance(words, list):  # text would pass as a list of letters
                reason = f"{self.config.tokens_column} must be a list of words"
            elif any(not isinstance(word, str) or not word.strip() for word in words):
                reason = f"{self.config.tokens_column} holds an empty word"
            if reason is not None:
                rejected.append(Rejection(row, RowError.BAD_INPUT, reason))
        return rejected

    def check_targets(self, rows: pa.Table, state: TaskState) -> list[Rejection]:
        """Rows without exactly one known tag for each word."""
        known = dict.fromkeys(labels_in(state))
        words_of, tags_of = (rows[name].to_pylist() for name in self.required_columns())
        pairs = enumerate(zip(words_of, tags_of, strict=True))
        return [found for row, (words, tags) in pairs if (found := self._reject(row, words, tags, known)) is not None]

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
        samples = self._join(sentences, documents, room)
        for sample in samples:
            sample.wrap(prefix, suffix)
        names = [
            "input_ids",
            *(["token_type_ids"] if self.config.case_feature else []),
            "sentence_lengths",
            WORD_STARTS,
        ]
        columns = {name: pa.array([getattr(s, name) for s in samples], pa.list_(pa.int32())) for name in names}
        return Inputs(pa.table(columns), sum(is_long))

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """Adds `labels`: each word's tag id at its first piece, and no target elsewhere."""
        ids = {label: i for i, label in enumerate(labels_in(state))}
        tags_of = iter(rows[self.config.tags_column].to_pylist())
        columns = (inputs[name].to_pylist() for name in (WORD_STARTS, "sentence_lengths"))
        labels = []
        for starts, lengths, size in zip(*columns, self.sizes(inputs), strict=True):
            tags = [tag for length in lengths for tag in next(tags_of)[:length]]
            row = [IGNORED] * int(size)
            for place, tag in zip(starts, tags, strict=True):
                row[place] = ids[str(tag)]
            labels.append(row)
        return inputs.drop_columns(WORD_STARTS).append_column("labels", pa.array(labels, pa.list_(pa.int32())))

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

    def predict(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, list[np.ndarray]]":
        """For each sentence the tag ids of its words, int32."""
        loss, logits = self._loss_and_logits(model, batch)
        chosen = logits.argmax(-1).cpu().numpy().astype(np.int32)
        is_word = batch["labels"].cpu().numpy() != IGNORED
        return loss, _by_sentence(chosen, is_word, batch["sentence_lengths"].cpu().numpy())

    def targets(self, batch: Batch) -> list[np.ndarray]:
        """For each sentence the true tag ids of its words."""
        labels = batch["labels"].astype(np.int32)
        return _by_sentence(labels, labels != IGNORED, batch["sentence_lengths"])

    def scores(self, state: TaskState) -> Scores:
        """Entity-level scores (where the tags mark entities) and token-level scores over all tags, O included."""
        return TagScores(labels_in(state))

    def _loss_and_logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        from torch.nn import functional

        logits = model(**model_inputs(batch)).logits.float()
        loss = functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return loss, logits

    def _reject(self, row: int, words: Any, tags: Any, known: dict[str, None]) -> Rejection | None:
        tokens, column = self.config.tokens_column, self.config.tags_column
        if not isinstance(words, list) or not isinstance(tags, list | None):
            reason = f"{tokens} and {column} must be lists, one tag a word"
            return Rejection(row, RowError.BAD_TARGET, reason)
        if tags is None or len(tags) != len(words):
            return Rejection(row, RowError.BAD_TARGET, f"{len(words)} words, but {len(tags or [])} tags")
        if any(_is_missing(tag) for tag in tags):
            return Rejection(row, RowError.BAD_TARGET, f"{column} lacks the tag of a word")
        unknown = [tag for tag in tags if str(tag) not in known]
        if not unknown:
            return None
        return Rejection(row, RowError.UNKNOWN_LABEL, f"label {unknown[0]!r} is none of {list(known)}")

    def _encode_sentences(self, words_of: list[list[str]], documents: list[int], tokenizer: Any) -> list[_Sample]:
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
                ids, places = _with_unknowns(words, tokenizer)
            starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1]]
            cases = [letter_case(words[place]) for place in places] if self.config.case_feature else [0] * len(ids)
            sentences.append(_Sample(list(ids), cases, starts, [len(words)]))
        return sentences

    def _join(self, sentences: list[_Sample], documents: list[int], room: int) -> list[_Sample]:
        """Neighbouring sentences of a document as one sample, as long as they fit; without context one each."""
        if not self.config.document_context:
            return sentences
        samples: list[_Sample] = []
        before = None
        for sentence, document in zip(sentences, documents, strict=True):
            fits = bool(samples) and len(samples[-1].input_ids) + len(sentence.input_ids) <= room
            if document == before and fits:
                samples[-1].add(sentence)
            else:
                samples.append(sentence)
            before = document
        return samples


def _is_missing(tag: Any) -> bool:
    return tag is None or not str(tag).strip()


def letter_case(word: str) -> int:
    """0: lower case or no letters; 1: Title; 2: UPPER, two letters at least; 3: anything else."""
    word = word.strip()
    letters = [c for c in word if c.isalpha()]
    if not letters or word.islower():
        return 0
    if len(letters) > 1 and word.isupper():
        return 2
    return 1 if word[0].isupper() and not any(c.isupper() for c in word[1:]) else 3


def _with_unknowns(words: list[str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Pieces and their words, one after the other; a word without any piece becomes the unknown token."""
    ids: list[int] = []
    places: list[int] = []
    for place, word in enumerate(words):
        pieces = tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        pieces = pieces or [tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id]
        ids += pieces
        places += [place] * len(pieces)
    return ids, places


def _by_sentence(values: np.ndarray, is_word: np.ndarray, sentence_lengths: np.ndarray) -> list[np.ndarray]:
    """Values at the words of each sentence.

    Args:
        values, is_word: Shape (num_samples, seq_len).
        sentence_lengths: Words of each sentence, 0 where a sample has fewer; shape (num_samples, max_sentences).
    """
    parts = []
    for row, row_words, lengths in zip(values, is_word, sentence_lengths, strict=True):
        lengths = lengths[lengths > 0]
        if len(lengths):
            parts += np.split(row[row_words], np.cumsum(lengths)[:-1])
    return parts
