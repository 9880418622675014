"""Sentences as token ids that know where their words begin, and the samples that are made of them."""

from dataclasses import dataclass, field

import numpy as np


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
