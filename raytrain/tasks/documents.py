"""Texts as token ids that know which bytes of the text each stands for, and the samples that documents are cut into."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raytrain.errors import ConfigError


@dataclass(frozen=True)
class Document:
    """A text with its special tokens, the end-of-text token last."""

    ids: list[int]
    byte_ends: np.ndarray
    """Bytes of the text, in UTF-8, up to the end of each token; ascending, shape (num_tokens,), int64."""

    def pieces(self, max_length: int) -> Iterator["Piece"]:
        """The samples of at most `max_length` tokens.

        A sample begins with the last token of the one before it, so that each token but the document's first is a
        target exactly once, whatever `max_length` is.
        """
        for begin in range(0, max(1, len(self.ids) - 1), max_length - 1):
            ids = self.ids[begin : begin + max_length]
            yield Piece(begin, ids, int(self.byte_ends[begin + len(ids) - 1] - self.byte_ends[begin]))


@dataclass(frozen=True)
class Piece:
    """A sample of a document."""

    begin: int
    """Place of its first token in the document."""
    ids: list[int]
    num_bytes: int
    """Bytes of the text that its targets stand for."""


def joined(documents: list[Document]) -> Document:
    """Documents, at least one, as one, in which a token stands for the same bytes as in its own."""
    before = np.cumsum([0, *(int(one.byte_ends[-1]) for one in documents[:-1])])
    ends = [one.byte_ends + count for one, count in zip(documents, before, strict=True)]
    return Document([token for one in documents for token in one.ids], np.concatenate(ends))


def read_documents(tokenizer: Any, texts: list[str]) -> list[Document]:
    """The texts with the special tokens that the tokenizer adds, and its end-of-text token."""
    if not texts:
        return []
    encoding = tokenizer(texts, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    offsets = encoding["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    return [
        _document(ids, text, places, tokenizer.eos_token_id)
        for ids, text, places in zip(encoding["input_ids"], texts, offsets, strict=True)
    ]


def check_room_for_text(tokenizer: Any, max_length: int) -> None:
    """Raises ConfigError when the tokenizer has no end-of-text token, or `max_length` leaves no room for a target."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "task.kind=causal_lm: this tokenizer has no end-of-text token (eos_token), so a text could not end. Use "
            "the tokenizer of a language model, or set its eos_token and save it again"
        )
    least = tokenizer.num_special_tokens_to_add() + 2
    if max_length < least:
        raise ConfigError(
            f"data.max_length {max_length} leaves no room for a token and the next one beside this tokenizer's special "
            f"tokens; raise it to at least {least}"
        )


def _document(ids: list[int], text: str, offsets: list[tuple[int, int]] | None, end: int) -> Document:
    """`offsets`: the characters of each token, (0, 0) for a special token; None: not known."""
    num_bytes = len(text.encode())
    if offsets is None:
        ends = np.linspace(0, num_bytes, len(ids) + 1)[1:].astype(np.int64)
    else:
        characters = np.maximum.accumulate(np.array([stop for _, stop in offsets], np.int64))
        ends = _byte_ends(text)[characters]
    if not ids or ids[-1] != end:
        ids, ends = [*ids, end], np.append(ends, num_bytes)
    ends[-1] = num_bytes  # blanks that the tokenizer leaves out
    return Document(ids, ends)


def _byte_ends(text: str) -> np.ndarray:
    """Bytes before each character, and of the whole text; shape (num_characters + 1,)."""
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])
