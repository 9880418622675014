"""Words in other letter case and with slips of the keyboard: the part of augmentation that needs the tokenizer.

A word is decoded, changed and encoded again by itself. Tags stay with the words, entities included. A change that would
make a sample longer than `data.max_length` is left out, so that nothing is cut off; and so is one of a word that the
tokenizer does not know.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import AugmentConfig
from raytrain.data.word_units import Draw, Units, Use
from raytrain.tasks.base import IGNORED
from raytrain.tasks.token_classification import letter_case

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FEWEST_LETTERS = 3  # of a word that gets a slip: shorter ones would become other words


class Respelling:
    """Changes the letters of some words."""

    def __init__(self, config: AugmentConfig, tokenizer: Any, max_length: int, *, has_cases: bool):
        """Args:
        has_cases: Whether `token_type_ids` are the words' letter cases (task.case_feature).
        """
        self._config, self._tokenizer, self._max_length = config, tokenizer, max_length
        self._has_cases = has_cases
        self._unknown = tokenizer.unk_token_id

    def __call__(self, samples: pa.Table, units: Units, draw: Draw) -> pa.Table:
        """The samples with some words changed."""
        cased, slipped = draw(Use.CASE) < self._config.case, draw(Use.TYPO) < self._config.typo
        chosen = np.flatnonzero((cased | slipped) & ~units.is_special)
        if not len(chosen):
            return samples
        pieces = [units.tokens_of(int(unit)) for unit in chosen]
        tokens = self._tokenizer.convert_ids_to_tokens([ids[0] for ids in pieces])
        texts = [text.strip() for text in self._tokenizer.batch_decode(pieces, clean_up_tokenization_spaces=False)]
        numbers = [draw(use)[chosen] for use in (Use.WHICH_TYPO, Use.TYPO_PLACE, Use.TYPO_LETTER, Use.WHICH_CASE)]
        changed = []
        for text, unit, which, place, letter, case in zip(texts, chosen, *numbers, strict=True):
            changed.append(slip(text, which, place, letter) if slipped[unit] else text)
            changed[-1] = in_other_case(changed[-1], case) if cased[unit] else changed[-1]
        # Byte-level tokens have the blank before a word in them.
        written = [f" {text}" if token.startswith("Ġ") else text for text, token in zip(changed, tokens, strict=True)]
        encoded = self._tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"]
        room = self._max_length - np.bincount(units.sample, units.num_tokens, samples.num_rows).astype(np.int64)
        new: dict[int, list[int]] = {}
        cases: dict[int, int] = {}
        for unit, before, after, text in zip(chosen.tolist(), pieces, encoded, changed, strict=True):
            growth, sample = len(after) - len(before), units.sample[unit]
            if not after or self._unknown in (*before, *after) or growth > room[sample]:
                continue
            room[sample] -= growth
            new[unit] = after
            if cased[unit]:
                cases[unit] = letter_case(text)
        return self._rebuilt(samples, units, new, cases)

    def _rebuilt(self, samples: pa.Table, units: Units, new: dict[int, list[int]], cases: dict[int, int]) -> pa.Table:
        """The samples with these units' tokens. `cases`: of those that have another letter case."""
        sizes = units.num_tokens.copy()
        for unit, ids in new.items():
            sizes[unit] = len(ids)
        ends = np.cumsum(sizes)
        # Each token is taken from the same place of its word, or from the word's last: its tag is at the first.
        inside = np.arange(int(ends[-1])) - np.repeat(ends - sizes, sizes)
        of_unit = np.repeat(np.arange(len(units)), sizes)
        source = units.first_token[of_unit] + np.minimum(inside, units.num_tokens[of_unit] - 1)
        columns = {name: column[source] for name, column in units.columns.items()}
        if "labels" in columns:
            columns["labels"][inside > 0] = IGNORED
        for unit, ids in new.items():
            columns["input_ids"][ends[unit] - len(ids) : ends[unit]] = ids
        for unit, case in cases.items() if self._has_cases else ():
            columns["token_type_ids"][ends[unit] - sizes[unit] : ends[unit]] = case
        return units.with_columns(samples, columns, np.bincount(units.sample, sizes, samples.num_rows))


def slip(text: str, which: float, place: float, letter: float) -> str:
    """A word with one slip of the keyboard: two letters exchanged, or one left out, doubled or another. Words of fewer
    than FEWEST_LETTERS, and those that are not made of letters alone, stay.

    Args:
        which, place, letter: Random numbers in [0, 1).
    """
    if len(text) < FEWEST_LETTERS or not text.isalpha():
        return text
    at = int(place * (len(text) - 1))
    before, this, after = text[:at], text[at], text[at + 1 :]
    other = LETTERS[int(letter * len(LETTERS))]
    return before + (after[0] + this + after[1:], after, this + this + after, other + after)[int(which * 4)]


def in_other_case(text: str, which: float) -> str:
    """A word in lower case, upper case or capitalized, whichever it is not. `which`: a random number in [0, 1)."""
    others = [one for one in dict.fromkeys((text.lower(), text.upper(), text.capitalize())) if one != text]
    return others[int(which * len(others))] if others else text
