"""Augmentation: training samples with words dropped, exchanged, masked or replaced, as STREAM delivers them.

What happens to a sample is a function of (seed, sample, copy, epoch): its random numbers are hashes of these and of the
word's place, never of a rank or a step, so it is the same at every number of workers and after every resume. A batch is
computed at once, over arrays of all its words.

A sample is a sequence of units: words, of one or more tokens, and special tokens, which stay where they are. Words move
with their tags. Words whose tag is not `O` are never dropped, exchanged, masked or replaced, nor is a word dropped that
keeps two entities apart: all entities survive. Letter case and slips (`data.respell`) change words of any tag.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import AugmentConfig, RunConfig, TokenClassificationConfig
from raytrain.data.custom_augment import CustomAugment
from raytrain.data.respell import Respelling
from raytrain.data.word_marks import WordMarks
from raytrain.data.word_units import Draw, Units, Use
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks.base import BatchContext, TaskState

OUTSIDE = "O"


class Augment:
    """Changes training samples before they are collated."""

    def __init__(
        self,
        config: AugmentConfig,
        tokenizer: Any,
        state: TaskState,
        max_length: int = 128,
        *,
        has_cases: bool = False,
    ):
        """Args:
            max_length: data.max_length, in tokens.
            has_cases: Whether `token_type_ids` are the words' letter cases (task.case_feature).

        Raises ConfigError when words are to be masked and the tokenizer has no token for it.
        """
        self._config, self._marks = config, WordMarks(tokenizer)
        self._custom = (
            CustomAugment(config.custom, config.custom_source, max_length) if config.custom is not None else None
        )
        self._respelling = Respelling(config, tokenizer, max_length, has_cases=has_cases)
        labels = state.get("labels") or []
        self._outside = labels.index(OUTSIDE) if OUTSIDE in labels else None
        self._mask_id = next((i for i in (tokenizer.mask_token_id, tokenizer.unk_token_id) if i is not None), None)
        if config.span_mask and self._mask_id is None:
            raise ConfigError(
                "data.augment.span_mask needs a mask token or one for unknown words, and this model's tokenizer has "
                "neither: set data.augment.span_mask=0"
            )

    @classmethod
    def of(cls, config: RunConfig, state: TaskState) -> "Augment | None":
        """The augmentation of a run; None without one. Raises ConfigError like the constructor."""
        if config.data.augment is None:
            return None
        has_cases = isinstance(config.task, TokenClassificationConfig) and config.task.case_feature
        tokenizer = load_tokenizer(config.model)
        return cls(config.data.augment, tokenizer, state, config.data.max_length, has_cases=has_cases)

    def __call__(self, samples: pa.Table, context: BatchContext) -> pa.Table:
        """The samples, changed. Shape and columns are those of the table; lists may be shorter."""
        units = Units.of(samples, self._marks, self._outside)
        draw = Draw(context, units)
        if self._config.case or self._config.typo:
            samples = self._respelling(samples, units, draw)
            units = Units.of(samples, self._marks, self._outside)
            draw = Draw(context, units)
        order = self._swapped(units, draw)
        order = order[~self._dropped(units, draw)[order]]
        columns = {name: column.copy() for name, column in units.columns.items()}
        self._mask(units, draw, columns["input_ids"])
        self._replace(units, draw, columns["input_ids"])
        changed = units.rebuilt(samples, order, columns)
        return changed if self._custom is None else self._custom(changed, context)

    def _swapped(self, units: Units, draw: Draw) -> np.ndarray:
        """The units in their new order: some words have changed places with the next. Shape (num_units,)."""
        order = np.arange(len(units))
        if not self._config.word_swap or len(units) < 2:
            return order
        has_next = units.is_free[:-1] & units.is_free[1:] & (units.segment[:-1] == units.segment[1:])
        chosen = has_next & (draw(Use.SWAP)[:-1] < self._config.word_swap)
        chosen[1:] &= ~chosen[:-1]  # a word takes part in one exchange: in a row of chosen ones, the first
        first = np.flatnonzero(chosen & ~np.r_[False, chosen[:-1]])
        order[first], order[first + 1] = first + 1, first
        return order

    def _dropped(self, units: Units, draw: Draw) -> np.ndarray:
        """Whether each unit is dropped. Shape (num_units,)."""
        if not self._config.word_drop:
            return np.zeros(len(units), bool)
        may_go = units.is_free & ~np.r_[units.is_entity[1:], False]
        dropped = may_go & (draw(Use.DROP) < self._config.word_drop)
        # A segment keeps one word at least: the one with the largest number.
        is_word, keys = ~units.is_special, draw(Use.KEEP)
        left = np.bincount(units.segment[is_word & ~dropped], minlength=int(units.segment.max(initial=0)) + 1)
        empty = is_word & (left[units.segment] == 0)
        places = np.flatnonzero(empty)
        by_key = places[np.lexsort((keys[places], units.segment[places]))]
        is_last = np.r_[units.segment[by_key][1:] != units.segment[by_key][:-1], True][: len(by_key)]
        dropped[by_key[is_last]] = False
        return dropped

    def _mask(self, units: Units, draw: Draw, ids: np.ndarray) -> None:
        """Put the mask token in the place of the tokens of some neighboring words."""
        rate, most = self._config.span_mask, self._config.span_words
        if not rate:
            return
        # A span has 1 to `most` words, so fewer spans than masked words begin.
        begins = units.is_free & (draw(Use.MASK) < 2 * rate / (1 + most))
        length = 1 + (draw(Use.SPAN) * most).astype(np.int64)
        covered = np.zeros(len(units), bool)
        for place in range(min(most, len(units))):
            reached = begins & (length > place)
            end = len(units) - place
            covered[place:] |= reached[:end] & (units.segment[place:] == units.segment[:end])
        ids[(covered & units.is_free)[units.of_token]] = self._mask_id

    def _replace(self, units: Units, draw: Draw, ids: np.ndarray) -> None:
        """Put random tokens in the place of some."""
        if not self._config.token_replacement:
            return
        chosen = draw.of_tokens(Use.REPLACE) < self._config.token_replacement
        chosen &= units.is_free[units.of_token] & (ids != self._mask_id)
        ids[chosen] = self._marks.others(ids[chosen], draw.of_tokens(Use.OTHER)[chosen])
