"""Which tokens begin a word, by the marks that tokenizers put on their tokens. No Ray, no torch.

WordPiece marks what continues a word (`##ing`), SentencePiece and byte-level BPE what begins one (`▁film`, `Ġfilm`),
and some older BPE what ends one (`film</w>`). Nothing has to be stored for it, so runs with and without augmentation
share their prepared data. Where a tokenizer has no marks each token counts as a word.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

CONTINUES, BEGINS, ENDS = "##", ("▁", "Ġ", " "), "</w>"


class WordMarks:
    """The marks of a tokenizer's vocabulary."""

    def __init__(self, tokenizer: Any):
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._size = max(vocabulary.values(), default=0) + 1
        kept = {tokenizer.unk_token_id, getattr(tokenizer, "mask_token_id", None)}
        self._is_special = self._where([one for one in tokenizer.all_special_ids if one not in kept])
        begins = [i for token, i in vocabulary.items() if token.startswith(BEGINS)]
        continues = [i for token, i in vocabulary.items() if token.startswith(CONTINUES) and token != CONTINUES]
        ends = [i for token, i in vocabulary.items() if token.endswith(ENDS)]
        # A vocabulary has one kind of mark; a few tokens that look like another are texts themselves.
        most = max((begins, continues, ends), key=len)
        self._begins = self._where(begins) if most is begins and begins else ~self._where(continues)
        self._ends = self._where(ends) if most is ends and ends else None
        known = self._where(list(vocabulary.values())) & ~self._is_special
        known &= ~self._where([one for one in kept if one is not None])
        self._tokens = (np.flatnonzero(known & ~self._begins), np.flatnonzero(known & self._begins))

    def is_special(self, ids: np.ndarray) -> np.ndarray:
        """Whether a token is a mark of the model's, such as the first and the last of a sample; unknown words and masks
        are none. Shape as `ids`, (n,)."""
        return self._is_special[np.minimum(ids, self._size - 1)]

    def starts(self, ids: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """Whether each token begins a word; special tokens don't.

        Args:
            ids: Tokens of samples, one after the other. Shape (n,), and so is the result.
            is_first: The first token of each sample.
        """
        special, within = self.is_special(ids), np.minimum(ids, self._size - 1)
        begins = self._begins[within] if self._ends is None else np.r_[True, self._ends[within[:-1]]]
        return ~special & (begins | is_first | np.r_[True, special[:-1]])

    def others(self, ids: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Another token for each: one that begins a word for one that does.

        Args:
            ids: Shape (n,), and so is the result.
            uniform: Random numbers in [0, 1), shape (n,).
        """
        found = ids.copy()
        for begins, tokens in enumerate(self._tokens):
            chosen = self._begins[np.minimum(ids, self._size - 1)] == bool(begins)
            if len(tokens):
                found[chosen] = tokens[(uniform[chosen] * len(tokens)).astype(np.int64)]
        return found

    def _where(self, ids: Sequence[int]) -> np.ndarray:
        """Whether each id is one of these. Shape (vocabulary,)."""
        marked = np.zeros(self._size, bool)
        marked[list(ids)] = True
        return marked
