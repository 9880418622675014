"""Scores of tagged sentences. Entities are counted as the script conlleval of CoNLL-2000 and
seqeval's default mode count them.

A tag is O, or a letter (B, I, E or S), a dash and a type. The letter may also be the last part, as in PER-B, the dash
may be an underscore, and the letters may be those of BILOU or BMEWO. An entity is right when its type and both its ends
are right; one begins at a B, at an S, after an E or S, and where the type changes, so that an I after an O begins one
too.
"""

import re

import numpy as np

from raytrain.tasks.base import Metrics
from raytrain.tasks.scores import CountedScores, LabelCounts, LabelScores, counts_by_label, label_averages

OUTSIDE = "O"
LETTERS = "BIESLUMW"
IOBES = {"L": "E", "U": "S", "M": "I", "W": "S"}  # the letters of BILOU (last, unit) and BMEWO (middle, whole)
OTHER_SPELLINGS = (rf"(?P<letter>[{LETTERS}])_(?P<type>.+)", rf"(?P<type>.+)[-_](?P<letter>[{LETTERS}])")


class EntityCounts:
    """Entities by type: right, predicted, and true ones."""

    def __init__(self, tags: list[str]):
        """`tags`: names in id order."""
        named = [*(parts_of(tags) or map(_split, tags)), (OUTSIDE, "_")]  # the last stands between sentences
        kinds = [kind for _, kind in named]
        self.types = sorted(set(kinds))
        self._prefix = np.array([letter for letter, _ in named])
        self._type = np.array([self.types.index(kind) for kind in kinds])
        self.counts = np.zeros((3, len(self.types)), dtype=np.int64)
        """Right, predicted, true; shape (3, num_types)."""

    def add(self, predicted: list[np.ndarray], true: list[np.ndarray]) -> None:
        """Tag ids of the words of each sentence."""
        for row, (types, _) in enumerate(self._found(predicted, true)):
            self.counts[row] += np.bincount(types, minlength=len(self.types))

    def by_sentence(self, predicted: list[np.ndarray], true: list[np.ndarray]) -> np.ndarray:
        """The counts of each sentence, float64, shape (num_sentences, 3, num_types)."""
        counts = np.zeros((len(true), 3, len(self.types)))
        first_of = np.cumsum([0, *(len(words) + 1 for words in true)])
        for row, (types, places) in enumerate(self._found(predicted, true)):
            sentences = np.searchsorted(first_of, places, side="right") - 1
            np.add.at(counts[:, row], (sentences, types), 1)
        return counts

    def _found(self, predicted: list[np.ndarray], true: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(types, places of their last words) of the entities that are right, predicted, and true."""
        begin, is_last, kind = self._entities(predicted)
        true_begin, true_is_last, true_kind = self._entities(true)
        is_right = is_last & true_is_last & (begin == true_begin) & (kind == true_kind)
        kinds = ((is_right, kind), (is_last, kind), (true_is_last, true_kind))
        return [(types[which], np.flatnonzero(which)) for which, types in kinds]

    def spans(self, sentences: list[np.ndarray]) -> list[list[tuple[int, int, str]]]:
        """The entities of each sentence: first word, last word, type. `sentences`: tag ids of the words of each."""
        begin, is_last, kind = self._entities(sentences)
        first_of = np.cumsum([0, *(len(words) + 1 for words in sentences)])
        found: list[list[tuple[int, int, str]]] = [[] for _ in sentences]
        lasts = np.flatnonzero(is_last)
        for last, row in zip(lasts, np.searchsorted(first_of, lasts, side="right") - 1, strict=True):
            offset = int(first_of[row])
            found[row].append((int(begin[last]) - 1 - offset, int(last) - offset, self.types[kind[last]]))
        return found

    def _entities(self, sentences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each word (and each end of a sentence) where the newest entity began, whether one ends here, its type."""
        outside = np.array([len(self._type) - 1])
        tags = np.concatenate([outside, *(part for words in sentences for part in (words, outside))])
        prefix, kind = self._prefix[tags], self._type[tags]
        before, now = prefix[:-1], prefix[1:]
        is_new_type = kind[:-1] != kind[1:]
        closes = np.isin(before, ["E", "S"]) | (np.isin(before, ["B", "I"]) & np.isin(now, ["B", "S", "O"]))
        ends = closes | (~np.isin(before, ["O", "."]) & is_new_type)
        opens = np.isin(now, ["B", "S"]) | (np.isin(before, ["E", "S", "O"]) & np.isin(now, ["E", "I"]))
        starts = opens | (~np.isin(now, ["O", "."]) & is_new_type)
        begin = np.maximum.accumulate(np.where(starts, np.arange(1, len(tags)), 0))
        return begin[:-1], ends[1:], kind[1:-1]

    def compute(self) -> Metrics:
        """Precision, recall and F1 over all entities, and the table of the types that occur."""
        occurs = np.flatnonzero(self.counts.any(0))
        names = [self.types[i] for i in occurs]
        values = {name: float(value) for name, value in entity_values(self.counts).items()}
        tables = {"entities": LabelScores(*self.counts[:, occurs]).table(names, "entity")}
        return Metrics(values, tables, self._notes(*self.counts.sum(1)))

    def _notes(self, num_right: int, num_predicted: int, num_true: int) -> tuple[str, ...]:
        """Why all scores are 0, if they are."""
        if num_right:
            return ()
        if not num_true:
            return ("all entity scores are 0: this split has no entity",)
        if not num_predicted:
            return (f"all entity scores are 0: nothing but {OUTSIDE} is predicted",)
        return (f"all entity scores are 0: none of the {num_predicted:,} predicted entities is right",)


def entity_values(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 over all entities, each of shape (...); `counts`: shape (..., 3, num_types)."""
    total = LabelScores(*np.moveaxis(counts.sum(-1), -1, 0))
    return {"entity_precision": total.precision, "entity_recall": total.recall, "entity_f1": total.f1}


class TagScores(CountedScores):
    """token_micro_f1 (the share of words that are tagged right), token_macro_f1, token_weighted_f1 over all tags, and
    for tags of entities their precision, recall and F1; a table of the tags, and one of the types."""

    def __init__(self, labels: list[str]):
        self._labels, self._counts = labels, LabelCounts(len(labels))
        self._entities = EntityCounts(labels) if has_entities(labels) else None

    def update(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> None:
        """Tag ids of the words of each sentence."""
        if not targets:
            return
        self._counts.add(np.concatenate(predictions), np.concatenate(targets))
        if self._entities is not None:
            self._entities.add(predictions, targets)

    def state(self) -> dict[str, np.ndarray]:
        """Counts by tag, and of entities by type."""
        entities = {} if self._entities is None else {"entities": self._entities.counts}
        return {"tags": self._counts.counts, **entities}

    def merge(self, state: dict[str, np.ndarray]) -> None:
        """Add another worker's counts."""
        self._counts.counts += state["tags"]
        if self._entities is not None:
            self._entities.counts += state["entities"]

    def compute(self) -> Metrics:
        """All of them."""
        counts = self._counts
        if not counts.num_samples:
            return Metrics({})
        values = {f"token_{name}": value for name, value in counts.averages("micro_f1").items()}
        tables = {"per_tag": counts.per_label().table(self._labels)}
        if self._entities is None:
            return Metrics(values, tables)
        entities = self._entities.compute()
        return Metrics({**entities.values, **values}, {**entities.tables, **tables}, entities.notes)

    def counts_of(self, predictions: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
        """Right, predicted and true, by tag, and behind these of entities by type."""
        rows = np.repeat(np.arange(len(targets)), [len(words) for words in targets])
        empty = [np.zeros(0, np.int32)]
        predicted, true = (np.concatenate([*empty, *words]) for words in (predictions, targets))
        parts = [counts_by_label(predicted, true, rows, (len(targets), len(self._labels)))]
        if self._entities is not None:
            parts.append(self._entities.by_sentence(predictions, targets))
        return np.concatenate([part.reshape(len(targets), -1) for part in parts], -1)

    def values_of(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """All values."""
        end = 3 * len(self._labels)
        tags = label_averages(counts[..., :end].reshape(*counts.shape[:-1], 3, -1), "micro_f1")
        values = {f"token_{name}": value for name, value in tags.items()}
        if self._entities is None:
            return values
        by_type = counts[..., end:].reshape(*counts.shape[:-1], 3, -1)
        return {**entity_values(by_type), **values}


def has_entities(labels: list[str]) -> bool:
    """Whether tags mark entities, which parts of speech do not."""
    return parts_of(labels) is not None


def parts_of(tags: list[str]) -> list[tuple[str, str]] | None:
    """The letter (of IOBES) and the type of each tag; None when the tags do not mark entities."""
    others = [tag for tag in tags if tag != OUTSIDE]
    marks = [tag for tag in others if re.match(rf"[{LETTERS}]-", tag)]
    is_plain = any(tag[0] in "BI" for tag in marks) or (bool(marks) and OUTSIDE in tags)
    if is_plain and len(marks) == len(others):
        return [_split(tag) for tag in tags]
    for spelling in OTHER_SPELLINGS if OUTSIDE in tags else ():
        found = {tag: re.fullmatch(spelling, tag) for tag in others}
        parts = {tag: (_iobes(match["letter"]), match["type"]) for tag, match in found.items() if match}
        if len(parts) == len(others) and any(letter in "BIS" for letter, _ in parts.values()):
            return [parts.get(tag, (OUTSIDE, "_")) for tag in tags]
    return [_split(tag) for tag in tags] if is_plain else None


def _split(tag: str) -> tuple[str, str]:
    """As seqeval splits a tag that begins with its letter; a tag without a dash keeps its own first letter."""
    letter = _iobes(tag[0]) if tag[1:2] == "-" else tag[0]
    return letter, tag[1:].split("-", maxsplit=1)[-1] or "_"


def _iobes(letter: str) -> str:
    return IOBES.get(letter, letter)
