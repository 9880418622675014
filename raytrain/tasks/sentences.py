"""Sentences as token ids that know where their words begin, and the samples that are made of them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass
class Words:
    """A sentence, or several of one document, as lists that grow together."""

    input_ids: list[int] = field(default_factory=list)
    token_type_ids: list[int] = field(default_factory=list)
    word_starts: list[int] = field(default_factory=list)
    sentence_lengths: list[int] = field(default_factory=list)
    """Words of each sentence."""

    def add(self, other: "Words") -> None:
        """Append a sentence."""
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


def join(sentences: list[Words], documents: list[int], room: int) -> list[Words]:
    """Neighbouring sentences of a document as one sample, as long as they fit into `room` tokens.

    `documents`: the document of each sentence.
    """
    samples: list[Words] = []
    before = None
    for sentence, document in zip(sentences, documents, strict=True):
        fits = bool(samples) and len(samples[-1].input_ids) + len(sentence.input_ids) <= room
        if document == before and fits:
            samples[-1].add(sentence)
        else:
            samples.append(sentence)
        before = document
    return samples


def by_sentence(values: np.ndarray, is_word: np.ndarray, sentence_lengths: np.ndarray) -> list[np.ndarray]:
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


def of_sentences(values: list[np.ndarray], sentence_lengths: pa.ChunkedArray) -> list[np.ndarray]:
    """Values at the words of each sentence, empty where none of its words fits into a sample.

    Args:
        values: At the words of each sample, the first axis.
        sentence_lengths: Words of each of its sentences.
    """
    lengths = sentence_lengths.to_pylist()
    parts = [np.split(sample, np.cumsum(of)[:-1]) for sample, of in zip(values, lengths, strict=True)]
    return [sentence for sample in parts for sentence in sample]


def with_unknowns(words: list[str], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Pieces and their words, one after the other; a word without any piece becomes the unknown token."""
    ids: list[int] = []
    places: list[int] = []
    for place, word in enumerate(words):
        pieces = tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        pieces = pieces or [tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id]
        ids += pieces
        places += [place] * len(pieces)
    return ids, places
