"""Augmentation: training samples with words dropped, exchanged, masked or replaced, as STREAM delivers them.

What happens to a sample is a function of (seed, sample, copy, epoch): its random numbers are hashes of these and of the
word's place, never of a rank or a step, so it is the same at every number of workers and after every resume. A batch is
computed at once, over arrays of all its words.

A sample is a sequence of units: words, of one or more tokens, and special tokens, which stay where they are. Words move
with their tags. Words whose tag is not `O` are never dropped, exchanged, masked or replaced, nor is a word dropped that
keeps two entities apart: all entities survive.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import AugmentConfig, RunConfig
from raytrain.data.word_marks import WordMarks
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks.base import IGNORED, BatchContext, TaskState

OUTSIDE = "O"
_DROP, _KEEP, _SWAP, _MASK, _SPAN, _REPLACE, _OTHER = range(7)  # the uses of random numbers
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Augment:
    """Changes training samples before they are collated."""

    def __init__(self, config: AugmentConfig, tokenizer: Any, state: TaskState):
        """Raises ConfigError when words are to be masked and the tokenizer has no token for it."""
        self._config, self._marks = config, WordMarks(tokenizer)
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
        return cls(config.data.augment, load_tokenizer(config.model), state)

    def __call__(self, samples: pa.Table, context: BatchContext) -> pa.Table:
        """The samples, changed. Shape and columns are those of the table; lists may be shorter."""
        units = _Units.of(samples, self._marks, self._outside)
        draw = _Draw(context, units)
        order = self._swapped(units, draw)
        order = order[~self._dropped(units, draw)[order]]
        columns = {name: column.copy() for name, column in units.columns.items()}
        self._mask(units, draw, columns["input_ids"])
        self._replace(units, draw, columns["input_ids"])
        return units.rebuilt(samples, order, columns)

    def _swapped(self, units: "_Units", draw: "_Draw") -> np.ndarray:
        """The units in their new order: some words have changed places with the next. Shape (num_units,)."""
        order = np.arange(len(units))
        if not self._config.word_swap or len(units) < 2:
            return order
        has_next = units.is_free[:-1] & units.is_free[1:] & (units.segment[:-1] == units.segment[1:])
        chosen = has_next & (draw(_SWAP)[:-1] < self._config.word_swap)
        chosen[1:] &= ~chosen[:-1]  # a word takes part in one exchange: in a row of chosen ones, the first
        first = np.flatnonzero(chosen & ~np.r_[False, chosen[:-1]])
        order[first], order[first + 1] = first + 1, first
        return order

    def _dropped(self, units: "_Units", draw: "_Draw") -> np.ndarray:
        """Whether each unit is dropped. Shape (num_units,)."""
        if not self._config.word_drop:
            return np.zeros(len(units), bool)
        may_go = units.is_free & ~np.r_[units.is_entity[1:], False]
        dropped = may_go & (draw(_DROP) < self._config.word_drop)
        # A segment keeps one word at least: the one with the largest number.
        is_word, keys = ~units.is_special, draw(_KEEP)
        left = np.bincount(units.segment[is_word & ~dropped], minlength=int(units.segment.max(initial=0)) + 1)
        empty = is_word & (left[units.segment] == 0)
        places = np.flatnonzero(empty)
        by_key = places[np.lexsort((keys[places], units.segment[places]))]
        is_last = np.r_[units.segment[by_key][1:] != units.segment[by_key][:-1], True][: len(by_key)]
        dropped[by_key[is_last]] = False
        return dropped

    def _mask(self, units: "_Units", draw: "_Draw", ids: np.ndarray) -> None:
        """Put the mask token in the place of the tokens of some neighboring words."""
        rate, most = self._config.span_mask, self._config.span_words
        if not rate:
            return
        # A span has 1 to `most` words, so fewer spans than masked words begin.
        begins = units.is_free & (draw(_MASK) < 2 * rate / (1 + most))
        length = 1 + (draw(_SPAN) * most).astype(np.int64)
        covered = np.zeros(len(units), bool)
        for place in range(min(most, len(units))):
            reached = begins & (length > place)
            end = len(units) - place
            covered[place:] |= reached[:end] & (units.segment[place:] == units.segment[:end])
        ids[(covered & units.is_free)[units.of_token]] = self._mask_id

    def _replace(self, units: "_Units", draw: "_Draw", ids: np.ndarray) -> None:
        """Put random tokens in the place of some."""
        if not self._config.token_replacement:
            return
        chosen = draw.of_tokens(_REPLACE) < self._config.token_replacement
        chosen &= units.is_free[units.of_token] & (ids != self._mask_id)
        ids[chosen] = self._marks.others(ids[chosen], draw.of_tokens(_OTHER)[chosen])


@dataclass(frozen=True)
class _Units:
    """The words and the special tokens of a batch of samples, one sample after the other."""

    columns: dict[str, np.ndarray]
    """The columns that have a value a token, all samples one after the other. Shape (num_tokens,) each."""
    of_token: np.ndarray
    """The unit of each token, shape (num_tokens,)."""
    first_token: np.ndarray
    """Of each unit. Shape (num_units,), as below."""
    num_tokens: np.ndarray
    sample: np.ndarray
    segment: np.ndarray
    """Words of one text, or of one sentence, have one number; those of other samples have others."""
    is_special: np.ndarray
    is_entity: np.ndarray
    """Whether it is a word with a tag that is not `O`."""

    @classmethod
    def of(cls, samples: pa.Table, marks: WordMarks, outside: int | None) -> "_Units":
        """Cut samples to units. `outside`: id of the tag `O`; None: there is none, or samples have one label."""
        flat, sizes = _flat(samples["input_ids"])
        columns = {"input_ids": flat}
        has_tags = "sentence_lengths" in samples.column_names  # else `labels` are those of the samples
        for name in ("token_type_ids", "labels") if has_tags else ("token_type_ids",):
            if name in samples.column_names:
                columns[name], _ = _flat(samples[name])
        sample = np.repeat(np.arange(len(sizes)), sizes)
        is_first = np.r_[True, sample[1:] != sample[:-1]]
        special = marks.is_special(flat)
        if has_tags:
            is_word = columns["labels"] != IGNORED
            special = special & ~is_word
            starts = is_word | is_first | special | np.r_[True, special[:-1]]
        else:
            starts = marks.starts(flat, is_first) | is_first | special
        first = np.flatnonzero(starts)
        of_token = np.cumsum(starts) - 1
        of_unit, is_special = sample[first], special[first]
        is_border = np.r_[True, of_unit[1:] != of_unit[:-1]] | is_special
        is_entity = np.zeros(len(first), bool)
        if has_tags:
            tags = columns["labels"][first]
            is_special = is_special | (tags == IGNORED)  # anything but words stays in its place
            is_entity = ~is_special & (tags != outside) if outside is not None else is_entity
            is_border |= is_special | _begins_sentence(samples, ~is_special)
        return cls(
            columns=columns,
            of_token=of_token,
            first_token=first,
            num_tokens=np.diff(np.r_[first, len(flat)]),
            sample=of_unit,
            segment=np.cumsum(is_border) - 1,
            is_special=is_special,
            is_entity=is_entity,
        )

    def __len__(self) -> int:
        """The number of units."""
        return len(self.first_token)

    @property
    def is_free(self) -> np.ndarray:
        """Whether a unit may be changed: words that are not part of an entity. Shape (num_units,)."""
        return ~self.is_special & ~self.is_entity

    def rebuilt(self, samples: pa.Table, order: np.ndarray, columns: dict[str, np.ndarray]) -> pa.Table:
        """The table of some of the units, in this order. `columns`: as `self.columns`, with other values."""
        sizes = self.num_tokens[order]
        begins = np.repeat(self.first_token[order] - (np.cumsum(sizes) - sizes), sizes)
        tokens = begins + np.arange(int(sizes.sum()))
        per_sample = np.bincount(self.sample[order], weights=sizes, minlength=samples.num_rows).astype(np.int32)
        offsets = pa.array(np.cumsum(np.r_[0, per_sample]), pa.int32())
        for name, column in columns.items():
            kind = samples.schema.field(name).type
            lists = pa.ListArray.from_arrays(offsets, pa.array(column[tokens]).cast(kind.value_type))
            samples = samples.set_column(samples.schema.get_field_index(name), name, lists)
        if "sentence_lengths" in samples.column_names:
            samples = self._with_sentence_lengths(samples, order)
        return samples

    def _with_sentence_lengths(self, samples: pa.Table, order: np.ndarray) -> pa.Table:
        """Count the words of each sentence again. Each keeps one at least, so that there are as many as before."""
        words = order[~self.is_special[order]]
        counts = np.bincount(self.segment[words], minlength=int(self.segment.max(initial=0)) + 1)
        counts = counts[counts > 0]
        old, sizes = _flat(samples["sentence_lengths"])
        new = np.zeros(len(old), np.int32)
        new[old > 0] = counts
        lists = pa.ListArray.from_arrays(pa.array(np.cumsum(np.r_[0, sizes]), pa.int32()), pa.array(new, pa.int32()))
        return samples.set_column(samples.schema.get_field_index("sentence_lengths"), "sentence_lengths", lists)


class _Draw:
    """The random numbers of a batch: hashes of the sample and of a place in it."""

    def __init__(self, context: BatchContext, units: _Units):
        key = _mixed(np.full(len(context.ids), context.seed % 2**64, np.uint64))
        for part in (context.ids, context.copies, np.full(len(context.ids), context.epoch)):
            key = _mixed(key ^ _mixed(part.astype(np.uint64)))
        self._key, self._units = key, units
        starts = np.r_[True, units.sample[1:] != units.sample[:-1]]
        first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
        self._place = np.arange(len(units)) - first
        self._token_place = np.arange(len(units.of_token)) - units.first_token[first][units.of_token]

    def __call__(self, use: int) -> np.ndarray:
        """A number in [0, 1) for each unit. Shape (num_units,)."""
        return self._uniform(use, self._units.sample, self._place)

    def of_tokens(self, use: int) -> np.ndarray:
        """A number in [0, 1) for each token. Shape (num_tokens,)."""
        return self._uniform(use, self._units.sample[self._units.of_token], self._token_place)

    def _uniform(self, use: int, sample: np.ndarray, place: np.ndarray) -> np.ndarray:
        which = (place.astype(np.uint64) << np.uint64(8)) | np.uint64(use)
        return (_mixed(self._key[sample] ^ _mixed(which)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _begins_sentence(samples: pa.Table, is_word: np.ndarray) -> np.ndarray:
    """Whether each unit is the first word of a sentence. `is_word`: shape (num_units,); the result too."""
    lengths, _ = _flat(samples["sentence_lengths"])
    begins = np.zeros(len(is_word), bool)
    firsts = np.cumsum(lengths) - lengths
    begins[np.flatnonzero(is_word)[firsts[lengths > 0]]] = True
    return begins


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A list column as the values of all lists, one after the other, and the length of each."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.int64), np.diff(lists.offsets.to_numpy())


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al., 2014) of each number, uint64."""
    with np.errstate(over="ignore"):
        x = x + _MIX
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
