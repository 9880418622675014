"""Samples as words and special tokens, and random numbers that belong to them: what augmentation works on."""

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
import pyarrow as pa

from raytrain.data.word_marks import WordMarks
from raytrain.steps.hashes import GOLDEN, mixed
from raytrain.tasks.base import IGNORED, BatchContext


class Use(IntEnum):
    """What a random number is for."""

    DROP = 0
    KEEP = auto()
    SWAP = auto()
    MASK = auto()
    SPAN = auto()
    REPLACE = auto()
    OTHER = auto()
    CASE = auto()
    WHICH_CASE = auto()
    TYPO = auto()
    WHICH_TYPO = auto()
    TYPO_PLACE = auto()
    TYPO_LETTER = auto()


@dataclass(frozen=True)
class Units:
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
    def of(cls, samples: pa.Table, marks: WordMarks, outside: int | None) -> "Units":
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
        per_sample = np.bincount(self.sample[order], weights=sizes, minlength=samples.num_rows)
        samples = self.with_columns(samples, {name: column[tokens] for name, column in columns.items()}, per_sample)
        if "sentence_lengths" in samples.column_names:
            samples = self._with_sentence_lengths(samples, order)
        return samples

    def with_columns(self, samples: pa.Table, columns: dict[str, np.ndarray], per_sample: np.ndarray) -> pa.Table:
        """The table with other columns of tokens. `per_sample`: tokens of each sample, shape (num_samples,)."""
        offsets = pa.array(np.cumsum(np.r_[0, per_sample]), pa.int32())
        for name, column in columns.items():
            kind = samples.schema.field(name).type
            lists = pa.ListArray.from_arrays(offsets, pa.array(column).cast(kind.value_type))
            samples = samples.set_column(samples.schema.get_field_index(name), name, lists)
        return samples

    def tokens_of(self, unit: int) -> list[int]:
        """The token ids of a unit."""
        first = self.first_token[unit]
        return self.columns["input_ids"][first : first + self.num_tokens[unit]].tolist()

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


class Draw:
    """The random numbers of a batch: hashes of the sample and of a place in it."""

    def __init__(self, context: BatchContext, units: Units):
        key = _mixed(np.full(len(context.ids), context.seed % 2**64, np.uint64))
        for part in (context.ids, context.copies, np.full(len(context.ids), context.epoch)):
            key = _mixed(key ^ _mixed(part.astype(np.uint64)))
        self._key, self._units = key, units
        starts = np.r_[True, units.sample[1:] != units.sample[:-1]]
        first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
        self._place = np.arange(len(units)) - first
        self._token_place = np.arange(len(units.of_token)) - units.first_token[first][units.of_token]

    def __call__(self, use: Use) -> np.ndarray:
        """A number in [0, 1) for each unit. Shape (num_units,)."""
        return self._uniform(use, self._units.sample, self._place)

    def of_tokens(self, use: Use) -> np.ndarray:
        """A number in [0, 1) for each token. Shape (num_tokens,)."""
        return self._uniform(use, self._units.sample[self._units.of_token], self._token_place)

    def _uniform(self, use: Use, sample: np.ndarray, place: np.ndarray) -> np.ndarray:
        which = (place.astype(np.uint64) << np.uint64(8)) | np.uint64(int(use))
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
    """splitmix64 of each number, uint64."""
    with np.errstate(over="ignore"):
        return mixed(x + GOLDEN)
