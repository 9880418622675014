"""P16: every kind of mistake in a config or a search space is told in raytrain's words, not in pydantic's."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from raytrain.config import RunConfig
from raytrain.config.fields import all_fields, is_section
from raytrain.config.io import parse_config
from raytrain.config.mistakes import ALLOWED, describe_all
from raytrain.config.other_words import OTHER_NAMES, OTHER_VALUES, OTHER_WORDS, VALUE_OF_SECTION
from raytrain.config.shipped import find_cluster_file, find_config, find_space
from raytrain.errors import ConfigError, counted, did_you_mean, times
from raytrain.tasks.label_cells import described as described_cell
from raytrain.tuning.space.space import Space, parse_space

CONFIG: dict[str, Any] = {
    "name": "a",
    "task": {"kind": "sequence_classification"},
    "model": {"path": "m"},
    "data": {"train": {"path": "x.parquet"}, "validation": {"fraction": 0.1}},
}
LR = "training.optimizer.learning_rate"
SPACE: dict[str, Any] = {"parameters": {LR: {"kind": "loguniform", "low": 1e-5, "high": 1e-3}}}
PYDANTIC = re.compile(r"Input should|unable to|valid (integer|number|string|boolean|list|dictionary)|literal\[|\[str\]")

# Kind of schema -> the errors of pydantic that a value can meet there.
ERRORS = {
    "int": {"int_type", "int_parsing", "int_parsing_size", "int_from_float", "finite_number"},
    "float": {"float_type", "float_parsing", "finite_number"},
    "bool": {"bool_type", "bool_parsing"},
    "str": {"string_type", "string_unicode"},
    "list": {"list_type"},
    "dict": {"dict_type"},
    "literal": {"literal_error"},
    "enum": {"enum"},
    "gt": {"greater_than"},
    "ge": {"greater_than_equal"},
    "lt": {"less_than"},
    "le": {"less_than_equal"},
    "min_length": {"too_short"},
    "pattern": {"string_pattern_mismatch"},
    # told by sentences of their own
    "model": {"model_type"},
    "model-fields": {"model_attributes_type", "extra_forbidden", "missing", "invalid_key"},
    "tagged-union": {"union_tag_invalid", "union_tag_not_found", "model_attributes_type"},
    "function-after": {"value_error"},
    "function-before": {"value_error"},
}
# They accept what they hold, or hand on to it.
NO_ERRORS = {"model-field", "default", "nullable", "no-info", "with-info", "union", "any", "definitions"}
NO_ERRORS |= {"definition-ref"}
BOUNDS = ("gt", "ge", "lt", "le", "min_length", "pattern")
OWN_SENTENCES = {"model_type", "model_attributes_type", "extra_forbidden", "missing", "invalid_key", "value_error"}
OWN_SENTENCES |= {"union_tag_invalid", "union_tag_not_found"}


def kinds_of(schema: Any) -> set[str]:
    """The kinds of schema, and the bounds, in a core schema of pydantic."""
    if isinstance(schema, dict):
        own = {schema["type"]} if isinstance(schema.get("type"), str) else set()
        bounds = {bound for bound in BOUNDS if own & {"int", "float", "str", "list", "dict"} and bound in schema}
        return own | bounds | {kind for value in schema.values() for kind in kinds_of(value)}
    if isinstance(schema, list | tuple):
        return {kind for value in schema for kind in kinds_of(value)}
    return set()


def test_every_error_that_a_config_can_raise_has_its_words() -> None:
    kinds = {kind for root in (RunConfig, Space) for kind in kinds_of(root.__pydantic_core_schema__)}
    assert kinds - NO_ERRORS - set(ERRORS) == set(), "new kinds of fields: what does a mistake in them look like?"
    possible = {error for kind in kinds - NO_ERRORS for error in ERRORS[kind]}
    assert possible - OWN_SENTENCES == set(ALLOWED)


CASES = [
    ("training.epochs", [], "training.epochs: must be an integer, got []"),
    ("training.epochs", "two", "training.epochs: must be an integer, got 'two'"),
    ("training.epochs", "9" * 5000, f"training.epochs: must be an integer with fewer digits, got '{'9' * 99}..."),
    ("training.epochs", 1.5, "training.epochs: must be an integer, got 1.5"),
    ("training.epochs", math.inf, "training.epochs: must be a finite number, got inf"),
    (LR, None, f"{LR}: must be a number, got null"),
    (LR, "fast", f"{LR}: must be a number, got 'fast'"),
    (LR, math.inf, f"{LR}: must be a finite number, got inf"),
    (LR, 0, f"{LR}: must be above 0, got 0"),
    ("seed", -1, "seed: must be at least 0, got -1"),
    ("training.dropout", 1.0, "training.dropout: must be below 1, got 1.0"),
    ("training.schedule.min_ratio", 1.5, "training.schedule.min_ratio: must be at most 1, got 1.5"),
    ("data.drop_last", "perhaps", "data.drop_last: must be true or false, got 'perhaps'"),
    ("data.drop_last", [1], "data.drop_last: must be true or false, got [1]"),
    ("tracking.wandb", {"project": {"a": 1}}, "tracking.wandb.project: must be text, got {a: 1}"),
    ("name", "\ud800", "name: must be text without broken characters, got '\\ud800'"),
    ("task.labels", "yes", "task.labels: must be a list, got 'yes'"),
    ("model.config", "bert", "model.config: must be a mapping, key: value, got 'bert'"),
    ("training.zero_stage", 7, "training.zero_stage: must be 'auto', 0, 1, 2 or 3, got 7"),
    ("data.on_error", "fial", "data.on_error: must be 'fail' or 'quarantine', got 'fial'; did you mean fail?"),
    ("name", "a b", "name: must be letters, digits, dots, dashes and underscores, since it names a folder, got 'a b'"),
    ("task", {"kind": "python", "target": "x"}, "task.target: must be a class, as package.module:Class, got 'x'"),
    ("training.optimizer", True, "training.optimizer: expected a section with keys, got true"),
    ("training", {1: 2}, "training.1: a key must be text"),
    ("task", [], "task: expected a section with keys, got []"),
    # one of several types: one mistake
    ("workers.gpu", "maybe", "workers.gpu: must be 'auto', or true or false, got 'maybe'"),
    ("data.train.path", 3, "data.train.path: must be text, or a list, got 3"),
    ("data.train.path", ["a", 3], "data.train.path.1: must be text, got 3"),
    ("training.class_weights", "even", "training.class_weights: must be 'auto', or a mapping, key: value, got 'even'"),
    ("training.class_weights", {"a": 0}, "training.class_weights.a: must be above 0, got 0"),
    ("task.class_weights", "auto", "task.class_weights: unknown key; did you mean training.class_weights?"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), CASES, ids=[f"{key}-{line[-30:]}" for key, _, line in CASES])
def test_a_mistake_is_one_sentence(key: str, value: Any, sentence: str) -> None:
    raw = with_value(CONFIG, key, value)
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert str(caught.value).splitlines() == ["the config has 1 mistake:", f"  {sentence}"]


SPACE_CASES = [
    ({"parameters": {LR: {"kind": "choice", "values": []}}}, f"parameters.{LR}.values: must be a list of at least 1"),
    ({"parameters": {LR: {"kind": "uniform", "low": "x", "high": 1}}}, f"parameters.{LR}.low: must be a number"),
    ({"parameters": {LR: {"kind": "unifrom"}}}, f"parameters.{LR}.kind: 'unifrom' is not known; allowed: uniform"),
    ({**SPACE, "budget": {"trials": "many"}}, "budget.trials: must be an integer, got 'many'"),
]


@pytest.mark.parametrize(("raw", "sentence"), SPACE_CASES, ids=[sentence for _, sentence in SPACE_CASES])
def test_a_mistake_in_a_space(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(raw, "space.yaml")
    assert f"  {sentence}" in str(caught.value)
    assert not PYDANTIC.search(str(caught.value))


GARBAGE = ["", "x", "\ud800", -1, 0, 10**30, 1.5, -1e300, math.inf, math.nan, True, None, [], [3], [[]], {}]
GARBAGE += [{"a": 1}, {"kind": "x"}, {1: 2}, object()]


@pytest.mark.parametrize("root", [RunConfig, Space])
def test_whatever_is_given_anywhere(root: type[BaseModel]) -> None:
    """Each field with each kind of garbage: raytrain's words and the field's path, once each."""
    raw = CONFIG if root is RunConfig else SPACE
    count = 0
    for key in all_fields(root):
        for value in GARBAGE:
            try:
                root.model_validate(with_value(raw, key, value))
            except ValidationError as error:
                lines = [line for _, line in describe_all(error.errors(), root)]
                count += len(lines)
                assert not PYDANTIC.search("\n".join(lines)), (key, value, lines)
                assert all(re.match(r"  [a-z]", line) for line in lines)
                if not is_section(key, root) and all(one["type"] in ALLOWED for one in error.errors()):
                    # Of a mapping both the key and its value may be wrong.
                    assert len(lines) == 1 or value == {1: 2}, (key, value, lines)
    assert count > 300


def with_value(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a raw mapping with another value at a dotted key."""
    found = copy.deepcopy(raw)
    place = found
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(place.get(parent), dict):
            place[parent] = {}
        place = place[parent]
    place[last] = value
    return found


@pytest.mark.parametrize(
    ("raw", "found"),
    [(None, "nothing"), ([1], "a list [1]"), ("a", "the text 'a'"), (3, "the number 3"), (True, "the value true")],
)
@pytest.mark.parametrize("parse", [lambda raw: parse_config(raw, origin="x"), lambda raw: parse_space(raw, "x")])
def test_what_is_no_mapping_is_told_without_names_of_python(parse: Any, raw: Any, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    assert str(caught.value) == f"x: expected `key: value` lines, found {found}"


def test_one_is_not_many() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 1200)] == ["0 rows", "1 row", "2 rows", "1,200 rows"]
    assert (times(1), times(3)) == ("once", "3 times")
    assert described_cell(None) == "null"


MEANT = [
    ("task.kind=classification", "did you mean sequence_classification?"),
    ("task.kind=ner", "did you mean token_classification?"),
    ("task.kind=custom", "did you mean python?"),
    ("training.precision=float16", "did you mean fp16?"),
    ("training.precision=32", "did you mean fp32?"),
    ("training.schedule.kind=cosine_annealing", "did you mean cosine?"),
    ("data.on_error=skip", "did you mean quarantine?"),
    ("data.on_error=set_aside", "did you mean quarantine?"),
    ("data.bad_rows=set_aside", "data.bad_rows: unknown key; did you mean data.on_error?"),
    ("data.clean=fineweb", "did you mean data.clean.preset='fineweb'?"),
    ("data.clean.preset=massivetext", "did you mean gopher?"),
    ("data.train.format=pq", "did you mean parquet?"),
    ("tracking.wandb.mode=dryrun", "did you mean offline?"),
    ("data.dev.path=x", "did you mean data.validation?"),
    ("data.validation.file=x", "did you mean data.validation.path?"),
    ("model.name=x", "did you mean model.path?"),
    ("workers.num=2", "did you mean workers.max?"),
    ("output=x", "did you mean storage_path?"),
    ("trackers=x", "did you mean tracking?"),
    ("task=ner", "did you mean task.kind=token_classification?"),
    ("model=bert", "did you mean model.path='bert'?"),
    ("data.train=x.csv", "did you mean data.train.path='x.csv'?"),
    ("workers=3", "did you mean workers.max=3?"),
]


@pytest.mark.parametrize(("override", "hint"), MEANT)
def test_what_people_type_first_is_understood(override: str, hint: str) -> None:
    raw = {"name": "a", "task": {"kind": "sequence_classification"}, "model": {"path": "m"}}
    raw |= {"data": {"train": {"path": "x.csv"}, "validation": {"fraction": 0.1}}}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, [override])
    assert hint in str(caught.value)


def test_the_hints_name_what_is_there() -> None:
    """A field that is renamed must be renamed there too."""
    known = set(all_fields())
    assert {*OTHER_WORDS.values(), *VALUE_OF_SECTION.values()} <= known
    assert set(VALUE_OF_SECTION) <= known
    last = {key.rpartition(".")[2] for key in known}
    assert set(OTHER_NAMES.values()) <= last and set(OTHER_VALUES) <= last


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("acc", ["loss", "accuracy"], "; did you mean accuracy?"),
        ("f1", ["loss", "accuracy", "macro_f1"], "; did you mean macro_f1?"),
        ("x", ["xyzzy"], ""),
        ("rouge", ["loss", "accuracy"], ""),
    ],
)
def test_abbreviations(word: str, known: list[str], hint: str) -> None:
    assert did_you_mean(word, known) == hint


def test_what_needs_a_validation_split_is_turned_off_by_name() -> None:
    """`leave it out` could mean the split."""
    raw = {"name": "a", "task": {"kind": "sequence_classification"}, "model": {"path": "m"}}
    raw |= {"data": {"train": {"path": "x.csv"}}}
    words = ["training.early_stopping.metric=loss", "training.eval_every_steps=5"]
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, words)
    message = str(caught.value)
    assert "data.validation.path=FILE or data.validation.fraction=0.1" in message
    remedy = [word for word in message.split() if word.endswith("=null")]
    assert sorted(remedy) == ["training.early_stopping=null", "training.eval_every_steps=null"]
    parse_config(raw, [*words, *remedy])


@pytest.mark.parametrize("find", [find_config, find_space, find_cluster_file])
def test_where_a_file_was_looked_for(find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "reviews.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find("mine/review.yaml")
    assert f"(looked for {tmp_path}/mine/review.yaml)" in str(caught.value)
    assert "did you mean mine/reviews.yaml?" in str(caught.value)
