"""data.clean: rules that change or drop rows, in a fixed order, before rows are encoded.

Rules that change a text are applied to every split, and apply to a text that a model is asked about as well. Rules that
drop rows drop training rows only: a score is one over all rows of its split, whatever the rules of the training data.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raytrain.config import CleanConfig, CleanPreset
from raytrain.config.cleaning import RULES
from raytrain.data.readers.base import ROW, as_column, row_itself
from raytrain.data.stages import filters, text_rules
from raytrain.data.stages.counts import RowCounts
from raytrain.data.stages.custom import CustomRowError, custom_rule
from raytrain.data.stages.examples import MOST_EXAMPLES
from raytrain.errors import ConfigError
from raytrain.tasks.base import Task

TextRule = Callable[[Any], tuple[Any, str]]
"""A text -> (the text afterwards, the rule that it breaks or an empty string)."""
LENGTHS = ("min_characters", "max_characters", "min_words", "max_words")
NEEDS_TEXT = tuple(rule for rule in RULES if rule != "custom")
BREAKS_ALIGNMENT = ("html", "white_space", "preset")
"""Rules that join, split or remove words, so that tags would lose theirs."""


@dataclass(frozen=True)
class Step:
    """One rule, as it is applied to a text or to a list of words."""

    name: str
    apply: TextRule
    drops_only: bool
    """True: it is applied to training rows alone."""


@dataclass
class Cleaned:
    """What became of the rows of a chunk."""

    table: pa.Table
    """The rows that are left."""
    counts: RowCounts
    """Of the rules; `read` and `quarantined` are the caller's."""
    removed: list[tuple[int, str]] = field(default_factory=list)
    """(row in its file, what it broke) of each dropped row, in the order of the rows."""
    failed: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    """(row in its file, why the custom function failed on it, the row)."""
    touched: "list[Touched]" = field(default_factory=list)
    """The first rows that each rule has changed or dropped."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By rule."""


@dataclass(frozen=True)
class Touched:
    """A row that a rule has changed or dropped."""

    rule: str
    row: int
    """In its file."""
    before: str
    after: str | None = None
    """None: it was dropped."""
    reason: str = ""
    """What a dropped row broke."""


class Cleaner:
    """The rules of a config, for the rows of its task."""

    def __init__(self, clean: CleanConfig, task: Task):
        """Raises ConfigError: the task has no text for a rule, a package or language is missing, a function can't be
        imported."""
        self.config = clean
        texts, words = task.text_columns(), task.word_columns()
        _check_columns(clean, texts, words)
        self._columns = {**dict.fromkeys(texts, False), **dict.fromkeys(words, True)}  # whether it has words
        self._steps = [*_changing_steps(clean), *_dropping_steps(clean)]
        self._custom = custom_rule(clean)

    def clean(self, rows: pa.Table, split: str) -> Cleaned:
        """Apply the rules to rows of a split."""
        is_training = split == "train"
        columns = {name: rows[name].to_pylist() for name in self._columns}
        broken = [""] * len(rows)
        counts, numbers = RowCounts(), rows[ROW]
        examples: list[Touched] = []
        seconds: dict[str, float] = {}
        touched: set[str] = set()
        for step in self._steps:
            if step.drops_only and not is_training:
                continue
            started_at_s = time.perf_counter()
            places = [place for place, reason in enumerate(broken) if not reason]
            changed: set[int] = set()
            for name, has_words in self._columns.items():
                found = self._apply(step, columns[name], places, broken, has_words, is_training)
                for place, before in list(found.items())[:MOST_EXAMPLES]:
                    after = _as_text(columns[name][place])
                    examples.append(Touched(step.name, numbers[place].as_py(), _as_text(before), after))
                changed |= found.keys()
                touched |= {name} if found else set()
            lost = [place for place in places if broken[place]]
            dropped = len(lost)
            for place in lost[:MOST_EXAMPLES]:
                text = " / ".join(_as_text(values[place]) for values in columns.values())
                examples.append(Touched(step.name, numbers[place].as_py(), text, reason=broken[place]))
            seconds[step.name] = time.perf_counter() - started_at_s
            one = counts.rule(step.name)
            one.rows_in, one.dropped = len(places), dropped
            one.changed = sum(not broken[place] for place in changed)
        for name in touched:
            rows = rows.set_column(rows.column_names.index(name), name, as_column(columns[name]))
        cleaned = _without(rows, broken, counts)
        cleaned.touched, cleaned.seconds = examples, seconds
        return self._customized(cleaned, is_training) if self._custom is not None else cleaned

    def _apply(
        self, step: Step, values: list[Any], places: list[int], broken: list[str], has_words: bool, is_training: bool
    ) -> dict[int, Any]:
        """Apply a rule to the rows at `places` of a column, in place. Returns the place of each row that it changed,
        and what it was before."""
        changed = {}
        for place in places:
            value = values[place]
            if broken[place] or not (isinstance(value, list) if has_words else isinstance(value, str)):
                continue
            found, reason = step.apply(value)
            if not reason and isinstance(found, str) and not found.strip() and value.strip():
                found, reason = value, f"{step.name}.empty"  # nothing would be left
            if reason and is_training:
                broken[place] = reason
            elif found != value:
                values[place] = found
                changed[place] = value
        return changed

    def _customized(self, cleaned: Cleaned, is_training: bool) -> Cleaned:
        """Apply the custom function. A held-out row that it would drop stays as it was."""
        assert self._custom is not None
        rows = cleaned.table.to_pylist()
        numbers = [row.pop(ROW) for row in rows]
        one = cleaned.counts.rule("custom")
        one.rows_in = len(rows)
        kept: list[dict[str, Any]] = []
        broken = [""] * len(rows)
        started_at_s = time.perf_counter()
        for place, row in enumerate(rows):
            try:
                found = self._custom(row)
            except CustomRowError as error:
                broken[place] = "failed"
                cleaned.failed.append((numbers[place], str(error), row))
                one.failed += 1
                continue
            if found is None and is_training:
                broken[place] = "custom"
                cleaned.removed.append((numbers[place], "custom"))
                if one.dropped < MOST_EXAMPLES:
                    cleaned.touched.append(Touched("custom", numbers[place], _as_text(row), reason="custom"))
                one.dropped += 1
                continue
            if found is not None and found != row:
                if one.changed < MOST_EXAMPLES:
                    cleaned.touched.append(Touched("custom", numbers[place], _as_text(row), _as_text(found)))
                one.changed += 1
            kept.append(row if found is None else found)
        cleaned.seconds["custom"] = time.perf_counter() - started_at_s
        if one.dropped:
            cleaned.counts.reasons["custom"] += one.dropped
            cleaned.removed.sort(key=lambda item: item[0])
        if one.changed or any(broken):
            left = pa.array([number for number, why in zip(numbers, broken, strict=True) if not why], pa.int64())
            names = [name for name in cleaned.table.column_names if name != ROW]
            columns = {name: as_column([row[name] for row in kept]) for name in names}
            cleaned.table = pa.table({**columns, ROW: left})
        return cleaned


def make_cleaner(clean: CleanConfig | None, task: Task) -> Cleaner | None:
    """The cleaner of a config; None: rows are taken as they are. Raises ConfigError."""
    return None if clean is None else Cleaner(clean, task)


def clean_text(text: str, clean: CleanConfig) -> str:
    """A text as PREPARE gave it to the model, for a text that a trained model is asked about. The custom function,
    which works on rows, is not called. Raises ConfigError when a package is missing."""
    for step in _changing_steps(clean):
        changed = step.apply(text)[0]
        text = changed if changed.strip() or not text.strip() else text
    return text


def _as_text(value: Any) -> str:
    """A cell or a row, for people."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return (
        json.dumps(row_itself(value), ensure_ascii=False, default=str) if isinstance(value, dict) else str(value or "")
    )


def _without(rows: pa.Table, broken: list[str], counts: RowCounts) -> Cleaned:
    """The rows that broke no rule."""
    if not any(broken):
        return Cleaned(rows, counts)
    numbers = rows[ROW].to_pylist()
    removed = [(number, reason) for number, reason in zip(numbers, broken, strict=True) if reason]
    counts.reasons.update(reason for _, reason in removed)
    return Cleaned(rows.filter(pa.array([not reason for reason in broken])), counts, removed)


def _check_columns(clean: CleanConfig, texts: list[str], words: list[str]) -> None:
    """Raises ConfigError for a rule that has no text to work on, or would separate words from their tags."""
    given = [rule for rule in NEEDS_TEXT if clean.is_given(rule)]
    if given and not texts and not words:
        raise ConfigError(
            f"data.clean.{given[0]} needs texts, and the task names no column of texts: return their names in the "
            "task's method text_columns, or use data.clean.custom, which is given whole rows"
        )
    if unfit := [rule for rule in given if rule in BREAKS_ALIGNMENT and words]:
        allowed = [rule for rule in RULES if rule not in BREAKS_ALIGNMENT]
        raise ConfigError(
            f"data.clean.{unfit[0]} can't be used for words with tags ({words[0]}), since it joins, splits or removes "
            f"words, and each tag belongs to one; allowed: {', '.join(allowed)}"
        )


def _changing_steps(clean: CleanConfig) -> Iterator[Step]:
    """The given rules that change a text, in their order."""
    changing: dict[str, text_rules.TextRule] = {
        "nfc": text_rules.nfc,
        "mojibake": text_rules.mojibake,
        "html": text_rules.html,
        "placeholders": text_rules.placeholders(clean.placeholders),
        "control_characters": text_rules.control_characters,
        "white_space": text_rules.white_space,
    }
    for name, rule in changing.items():
        if clean.is_given(name):
            text_rules.check_packages(name)
            yield Step(name, _changing(rule), drops_only=False)


def _dropping_steps(clean: CleanConfig) -> Iterator[Step]:
    """The given rules that drop training rows but for the custom one, in their order. Raises ConfigError."""
    if any(clean.is_given(name) for name in LENGTHS):
        yield Step("length", _judging(filters.length(clean)), drops_only=True)
    if clean.languages is not None:
        yield Step("languages", _judging(filters.language(clean.languages)), drops_only=True)
    if clean.preset is not None:
        presets = {CleanPreset.GOPHER: _judging(filters.gopher)}
        presets |= {CleanPreset.C4: filters.c4, CleanPreset.FINEWEB: filters.fineweb}
        yield Step(clean.preset.value, presets[clean.preset], drops_only=True)


def _changing(rule: text_rules.TextRule) -> TextRule:
    in_words = text_rules.word_by_word(rule)
    return lambda value: (in_words(value) if isinstance(value, list) else rule(value), "")


def _judging(broken: filters.Filter) -> TextRule:
    """Words are judged as the text that they make."""

    def apply(value: Any) -> tuple[Any, str]:
        text = " ".join(word for word in value if isinstance(word, str)) if isinstance(value, list) else value
        return value, broken(text)

    return apply
