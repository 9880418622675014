"""A tag for each word: named entities, parts of speech.

A word is tagged at its first piece; its other pieces and the special tokens have no target. With `document_context`
a sample holds several sentences of a document; predictions are cut back to sentences before they are scored, so
scores mean the same with and without it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ModelConfig, TokenClassificationConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.tasks.base import IGNORED, Batch, Encoded, Metrics
from raytrain.tasks.collate import attention_mask, pad_column
from raytrain.tasks.special_tokens import check_room

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_CASES = 4  # lower or no letters, Title, UPPER, miXed


@dataclass
class _Sample:
    """A sentence, or several of one document, as lists that grow together."""

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    token_type_ids: list[int] = field(default_factory=list)
    sentence_lengths: list[int] = field(default_factory=list)
    """Tagged words of each sentence."""

    def add(self, other: "_Sample") -> None:
        self.input_ids += other.input_ids
        self.labels += other.labels
        self.token_type_ids += other.token_type_ids
        self.sentence_lengths += other.sentence_lengths

    def cut(self, num_tokens: int) -> None:
        """Keep the first tokens of a single sentence."""
        for values in (self.input_ids, self.labels, self.token_type_ids):
            del values[num_tokens:]
        self.sentence_lengths = [sum(label != IGNORED for label in self.labels)]

    def wrap(self, prefix: list[int], suffix: list[int]) -> None:
        """Put special tokens, which have no target, around it."""
        self.input_ids = [*prefix, *self.input_ids, *suffix]
        self.labels = [IGNORED] * len(prefix) + self.labels + [IGNORED] * len(suffix)
        self.token_type_ids = [0] * len(prefix) + self.token_type_ids + [0] * len(suffix)


class TokenClassification:
    """Cross-entropy over the words of a sample."""

    best_mode = "max"

    def __init__(self, config: TokenClassificationConfig, max_length: int):
        self.config = config
        self.max_length = max_length
        # Tags that are not declared are known too late to name a metric by: they may be parts of speech.
        self.best_metric = "entity_f1" if has_entities(config.labels or []) else "token_macro_f1"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What can be watched; the entities' only where the declared tags have some, or no tags are declared."""
        entity = ("entity_precision", "entity_recall", "entity_f1")
        may_have = self.config.labels is None or has_entities(self.config.labels)
        return ("loss", *(entity if may_have else ()), "token_micro_f1", "token_macro_f1", "token_weighted_f1")

    def required_columns(self) -> list[str]:
        """The words and their tags."""
        return [self.config.tokens_column, self.config.tags_column]

    def find_labels(self, table: pa.Table) -> set[str]:
        """Tags in a chunk."""
        rows = table[self.config.tags_column].to_pylist()
        return {str(tag) for tags in rows for tag in tags or [] if not _is_missing(tag)}

    def order_labels(self, found: set[str]) -> list[str]:
        """The declared tags, else those found: O first, then sorted."""
        return self.config.labels or sorted(found, key=lambda tag: (tag != "O", tag))

    def encode(self, table: pa.Table, tokenizer: Any, labels: list[str]) -> Encoded:
        """Align pieces with words. Words that are lost to truncation are not scored; their samples are counted.

        Raises ConfigError when `max_length` has no room for a word.
        """
        check_room(tokenizer, self.max_length)
        ids = {label: i for i, label in enumerate(labels)}
        words_of, tags_of = (table[name].to_pylist() for name in self.required_columns())
        rejected = [
            (row, reason)
            for row, (words, tags) in enumerate(zip(words_of, tags_of, strict=True))
            if (reason := self._reject(words, tags, ids)) is not None
        ]
        bad = {row for row, _ in rejected}
        kept = [row for row in range(len(words_of)) if row not in bad]
        sentences = self._encode_sentences(
            [words_of[row] for row in kept], [[ids[str(tag)] for tag in tags_of[row]] for row in kept], tokenizer
        )
        documents = table["document"].to_pylist() if "document" in table.column_names else [0] * table.num_rows
        prefix, suffix = special_tokens(tokenizer)
        room = self.max_length - len(prefix) - len(suffix)
        num_truncated = 0
        for sentence in sentences:
            if len(sentence.input_ids) > room:
                sentence.cut(room)
                num_truncated += 1
        samples = self._join(sentences, [documents[row] for row in kept], room)
        for sample in samples:
            sample.wrap(prefix, suffix)
        return Encoded(self._table(samples), num_truncated, rejected)

    def collate(self, samples: pa.Table, pad_token_id: int, pad_to: int | None = None) -> Batch:
        """`input_ids`, `attention_mask`, `labels` and with case_feature `token_type_ids`, each of shape
        (num_samples, seq_len); `sentence_lengths` of shape (num_samples, sentences of the sample that has most)."""
        input_ids = pad_column(samples["input_ids"], pad_token_id, pad_to)
        width = input_ids.shape[1]
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask(samples["input_ids"], width),
            "labels": pad_column(samples["labels"], IGNORED, width),
            "sentence_lengths": pad_column(samples["sentence_lengths"], 0),
        }
        if self.config.case_feature:
            batch["token_type_ids"] = pad_column(samples["token_type_ids"], 0, width)
        return batch

    def blank(self, batch: Batch) -> Batch:
        """The first sample of a batch without its tags."""
        blank = {name: array[:1].copy() for name, array in batch.items()}
        blank["labels"][:] = IGNORED
        blank["sentence_lengths"][:] = 0
        return blank

    def num_targets(self, batch: Batch) -> int:
        """Tagged words."""
        return int((batch["labels"] != IGNORED).sum())

    def build_model(self, model: ModelConfig, labels: list[str], training: TrainingConfig) -> "nn.Module":
        """An encoder with a head for each token; with case_feature its token-type embedding has a row a letter case.

        Raises ConfigError when the model has no token-type embedding, or fewer positions than data.max_length.
        """
        from raytrain.models.build import build_with_head, check_positions

        built = build_with_head("AutoModelForTokenClassification", model, labels, training)
        check_positions(built, self.max_length)
        if self.config.case_feature:
            widen_token_types(built)
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

    def metrics(self, predictions: list[np.ndarray], targets: list[np.ndarray], labels: list[str]) -> Metrics:
        """Entity-level scores (of IOB2 tags only) and token-level scores over all tags, O included; token_micro_f1 is
        then the share of words that are tagged right."""
        from raytrain.tasks.scores import averages, class_table, entity_scores

        if not targets:
            return Metrics({})
        predicted, true = np.concatenate(predictions), np.concatenate(targets)
        token = {f"token_{name}": value for name, value in averages(predicted, true, labels).items()}
        values = {"token_micro_f1": float((predicted == true).mean()), **token}
        tables = {"per_tag": class_table(predicted, true, labels)}
        if has_entities(labels):
            names = np.array(labels)
            entities = entity_scores([names[p].tolist() for p in predictions], [names[t].tolist() for t in targets])
            values, tables = {**entities.values, **values}, {**entities.tables, **tables}
        return Metrics(values, tables)

    def _loss_and_logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        from torch.nn import functional

        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        logits = model(**inputs).logits.float()
        loss = functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return loss, logits

    def _reject(self, words: list[str] | None, tags: list[Any] | None, ids: dict[str, int]) -> str | None:
        if not words:
            return f"{self.config.tokens_column} is empty"
        if not isinstance(words, list) or not isinstance(tags, list | None):  # text would pass as a list of letters
            return f"{self.config.tokens_column} and {self.config.tags_column} must be lists, one tag a word"
        if tags is None or len(tags) != len(words):
            return f"{len(words)} words, but {len(tags or [])} tags"
        if any(not isinstance(word, str) or not word.strip() for word in words):
            return f"{self.config.tokens_column} holds an empty word"
        if any(_is_missing(tag) for tag in tags):
            return f"{self.config.tags_column} lacks the tag of a word"
        unknown = [tag for tag in tags if str(tag) not in ids]
        return f"label {unknown[0]!r} is none of {list(ids)}" if unknown else None

    def _encode_sentences(self, words_of: list[list[str]], tags_of: list[list[int]], tokenizer: Any) -> list[_Sample]:
        """Each sentence without special tokens."""
        if not words_of:
            return []
        encoding = tokenizer(words_of, is_split_into_words=True, add_special_tokens=False, verbose=False)
        sentences = []
        for row, (words, tags) in enumerate(zip(words_of, tags_of, strict=True)):
            ids, places = encoding["input_ids"][row], encoding.word_ids(row)
            if len(set(places)) < len(words):  # the tokenizer dropped a word, a control character say
                ids, places = _with_unknowns(words, tokenizer)
            is_first = [i == 0 or place != places[i - 1] for i, place in enumerate(places)]
            labels = [tags[place] if first else IGNORED for place, first in zip(places, is_first, strict=True)]
            cases = [letter_case(words[place]) for place in places] if self.config.case_feature else [0] * len(ids)
            sentences.append(_Sample(list(ids), labels, cases, [len(words)]))
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

    def _table(self, samples: list[_Sample]) -> pa.Table:
        names = ["input_ids", "labels", "sentence_lengths"]
        if self.config.case_feature:
            names.append("token_type_ids")
        return pa.table({name: pa.array([getattr(s, name) for s in samples], pa.list_(pa.int32())) for name in names})


def has_entities(labels: list[str]) -> bool:
    """Whether tags mark entities, which parts of speech do not."""
    return any(label.startswith(("B-", "I-")) for label in labels)


def _is_missing(tag: Any) -> bool:
    return tag is None or not str(tag).strip()


def letter_case(word: str) -> int:
    """0: lower case or no letters; 1: Title; 2: UPPER, two letters at least; 3: anything else."""
    letters = [c for c in word if c.isalpha()]
    if not letters or word.islower():
        return 0
    if len(letters) > 1 and word.isupper():
        return 2
    return 1 if word[0].isupper() and not any(c.isupper() for c in word[1:]) else 3


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that this tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def widen_token_types(model: Any) -> None:
    """Give the token-type embedding a row for each letter case: the pretrained row 0, plus a little noise in the
    others so that they can grow apart.

    Raises:
        ConfigError: The model has no token-type embedding.
    """
    import torch

    owner = next((m for m in model.modules() if getattr(m, "token_type_embeddings", None) is not None), None)
    if owner is None:
        raise ConfigError(
            f"task.case_feature needs a model with token-type embeddings (such as BERT); {type(model).__name__} has "
            "none. Set task.case_feature=false"
        )
    before = owner.token_type_embeddings
    if before.num_embeddings == NUM_CASES and model.config.type_vocab_size == NUM_CASES:
        return
    after = torch.nn.Embedding(NUM_CASES, before.embedding_dim)
    generator = torch.Generator().manual_seed(0)  # on the CPU, also for a model that is only counted
    noise = torch.randn(NUM_CASES, before.embedding_dim, generator=generator, device="cpu") * 0.02
    noise[0] = 0.0
    after.weight.data.copy_(before.weight.data[0] + noise.to(before.weight.device))
    owner.token_type_embeddings = after
    model.config.type_vocab_size = NUM_CASES


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
