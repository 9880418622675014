"""Token ids of many texts, by the Rust part of a fast tokenizer alone."""

from collections.abc import Sequence
from typing import Any


def encode_texts(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """(token ids, segments) of texts, with special tokens and in full: those of `tokenizer(texts, pairs)`.

    Calling the tokenizer also tells which characters each token stands for, and makes masks that nobody needs here:
    about a quarter of its time. A tokenizer with Python code of its own for texts is called as usual.
    """
    if not texts:
        return [], []
    if not _is_plain(tokenizer):
        encoding = tokenizer(list(texts), None if pairs is None else list(pairs), verbose=False)
        ids = encoding["input_ids"]
        return ids, encoding["token_type_ids"] if "token_type_ids" in encoding else [[0] * len(row) for row in ids]
    from transformers.tokenization_utils_base import TruncationStrategy
    from transformers.utils import PaddingStrategy

    whole = {"max_length": None, "stride": 0, "pad_to_multiple_of": None, "padding_side": None}
    tokenizer.set_truncation_and_padding(
        padding_strategy=PaddingStrategy.DO_NOT_PAD, truncation_strategy=TruncationStrategy.DO_NOT_TRUNCATE, **whole
    )
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = tokenizer.split_special_tokens
    found = backend.encode_batch_fast(list(texts) if pairs is None else list(zip(texts, pairs, strict=True)))
    return [one.ids for one in found], [one.type_ids for one in found]


def _is_plain(tokenizer: Any) -> bool:
    """Whether calling it does nothing but hand the texts to its Rust part."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    kind = type(tokenizer)
    return (
        issubclass(kind, TokenizersBackend)
        and kind._encode_plus is TokenizersBackend._encode_plus
        and kind._convert_encoding is TokenizersBackend._convert_encoding
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and not hasattr(kind, "_switch_to_input_mode")
    )
