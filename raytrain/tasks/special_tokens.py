"""What a tokenizer adds to a text, and what it expects before a word."""

from typing import Any

from raytrain.errors import ConfigError


def check_room(tokenizer: Any, max_length: int, num_texts: int = 1) -> None:
    """Raises ConfigError when `max_length` tokens are filled by special tokens alone, or leave a text without any.

    Args:
        num_texts: 1 for a text, 2 for a pair.
    """
    num_special = tokenizer.num_special_tokens_to_add(pair=num_texts == 2)
    if max_length < num_special + num_texts:
        raise ConfigError(
            f"data.max_length {max_length} leaves no room beside the {num_special} special tokens of this tokenizer; "
            f"raise it to at least {num_special + num_texts}"
        )


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that this tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def needs_blanks(tokenizer: Any) -> bool:
    """Whether a word that is given by itself needs its blank to be cut as in running text. Byte-level BPE (GPT-2,
    RoBERTa, Llama 3) takes a word without one for the middle of a word; BERT's and SentencePiece's do not."""
    text = _ids(tokenizer, "a cat is in a house", is_split_into_words=False)
    words = ["a", "cat", "is", "in", "a", "house"]
    if _ids(tokenizer, words, is_split_into_words=True) == text:
        return False
    return _ids(tokenizer, [words[0], *(f" {word}" for word in words[1:])], is_split_into_words=True) == text


def with_blanks(words_of: list[list[str]], documents: list[int] | None) -> list[list[str]]:
    """The words with the blanks that stand before them in running text: not before a text's first word, but before that
    of a sentence which follows another of its document (`documents`, by sentence)."""
    spaced = []
    for row, words in enumerate(words_of):
        follows = documents is not None and row > 0 and documents[row] == documents[row - 1]
        spaced.append([word if i == 0 and not follows else f" {word}" for i, word in enumerate(words)])
    return spaced


def _ids(tokenizer: Any, text: Any, *, is_split_into_words: bool) -> list[int]:
    return tokenizer(text, is_split_into_words=is_split_into_words, add_special_tokens=False)["input_ids"]
