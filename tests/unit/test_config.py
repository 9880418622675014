"""P16: a mistake in the YAML is found at once and named by its dotted path."""

import copy
import subprocess
import sys
from typing import Any

import pytest

from raytrain.config import RunConfig
from raytrain.config.fields import all_fields
from raytrain.config.help import describe_fields
from raytrain.config.io import dump_config, load_config, parse_config
from raytrain.config.shipped import config_names
from raytrain.config.yaml import parse_yaml
from raytrain.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "name": "a",
    "task": {"kind": "sequence_classification"},
    "model": {"path": "m"},
    "data": {"train": {"path": "x.parquet"}},
}


def mistake(*overrides: str) -> str:
    raw = copy.deepcopy(MINIMAL)
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, list(overrides))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.seed=1", "did you mean seed?"),
        ("training.optimizer.name=adam", "allowed here: learning_rate, weight_decay, beta1, beta2, epsilon"),
        ("training.optimizer.names=adam", "training.optimizer.names: unknown key; allowed here: learning_rate"),
        ("training.schedule.name=linear", "allowed here: kind, warmup_ratio"),
        ("checkpoint.path=x", "allowed here: save_every_steps"),
        ("checkpoint.steps=5", "did you mean checkpoint.save_every_steps?"),
        ("training.optimizer.rate=1", "did you mean training.optimizer.learning_rate?"),
        ("data.length=1", "did you mean data.max_length?"),
        ("nam=x", "did you mean name?"),
        ("task.cut=stream", "task.cut: unknown key of this kind; those that have it: causal_lm"),
        ("task.random_flip=true", "unknown key of this kind; those that have it: image_classification"),
        ("data.max_lenght=1", "did you mean data.max_length?"),
        ("training.max_length=1", "did you mean data.max_length?"),
        ("training.lr=1", "did you mean training.optimizer.learning_rate?"),
        ("batch_size=1", "did you mean training.global_batch_size?"),
        ("training.lerning_rate=1", "did you mean training.optimizer.learning_rate"),
        ("learning_rate=1", "did you mean training.optimizer.learning_rate"),
        ("training.micro_batchsize=4", "did you mean training.micro_batch_size"),
        ("trainig.epochs=2", "did you mean training"),
        ("task.text_colum=t", "did you mean task.text_column"),
        ("task.kind=classify", "task.kind: 'classify' is not known"),
        ("training.precision=fp17", "training.precision: must be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("training.zero_stage=4", "training.zero_stage"),
        ("training.epochs=zero", "training.epochs: must be an integer, got 'zero'"),
        ("data.max_length=-1", "data.max_length: must be at least 1, got -1"),
        ("workers.min=4", "workers.min 4 is more than workers.max 1"),
        ("training.micro_batch_size=64", "training.micro_batch_size 64 is more than training.global_batch_size 32"),
        ("data.canonical_shards=5", "data.canonical_shards 5 does not divide training.global_batch_size 32"),
        ("workers.max=64", "workers.max 64 is more than the 2 micro-batches of a step"),
        ("training.early_stopping.metric=accuracy", "training.early_stopping needs data.validation"),
        ("training.eval_every_steps=5", "training.eval_every_steps needs data.validation"),
        ("training.optimizer=adam", "training.optimizer: expected a section"),
        ("name=a/b", "name: must be letters"),
        ("model.config.model_type=bert", "model.path=null to train a new model by model.config"),
        ("data.validation.fraction=1.5", "data.validation.fraction"),
        ("epochs", "not of the form dotted.key=value"),
        ("name.x=1", "override name.x: name is a value"),
    ],
)
def test_a_mistake_is_named(override: str, expected: str) -> None:
    assert expected in mistake(override)


def test_all_mistakes_are_named_at_once() -> None:
    text = mistake("training.epochs=0", "workers.cpus=none", "sed=1")
    assert all(key in text for key in ("training.epochs", "workers.cpus", "sed: unknown key; did you mean seed"))


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file() -> None:
    text = mistake("training.epoch=3")
    assert text.startswith("the command line has 1 mistake") and text.endswith("(override training.epoch=3)")
    assert "(override workers.min=4)" in mistake("workers.min=4")
    assert "(override model.config.model_type=bert)" in mistake("model.config.model_type=bert")
    assert "(override task.kind=classify)" in mistake("task.kind=classify")
    assert "(override trainig.epochs=2)" in mistake("trainig.epochs=2")
    raw = {**MINIMAL, "sed": 1}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, ["training.epochs=0", "seed=3"], origin="run.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == "run.yaml and the command line have 2 mistakes:"
    assert ["override" in line for line in sorted(lines)] == [False, True]


def test_overrides_leave_the_callers_mapping_alone() -> None:
    raw = copy.deepcopy(MINIMAL)
    assert parse_config(raw, ["training.epochs=9", "name=b"]).name == "b"
    assert raw == MINIMAL


@pytest.mark.parametrize(
    "override",
    [
        "storage_path=s3://AKIA:hush@bucket/runs",
        "storage_path=s3://AKIA:hu/sh@bucket/runs",
        "data.train.path='s3://bucket/a.parquet?access_key=AKIA&secret_key=hush'",
        "data.train.path=[a.parquet, 'abfs://:hush@account/a.parquet']",
        "data.prepared_path='abfs://c@a.dfs.core.windows.net/p?sv=1&sig=hush'",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(override: str) -> None:
    text = mistake(override, "training.epochs=0")
    assert text.startswith(f"{override.partition('=')[0]}: this URI holds credentials")
    assert "hush" not in text and "AKIA" not in text and "AWS_SECRET_ACCESS_KEY" in text


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a:b@c/runs",
        "abfs://container@account.dfs.core.windows.net/runs",
        "s3://bucket/a.parquet?endpoint_override=localhost:9000&design=1",
        "hdfs://user@host:8020/a@b",
        "hdfs://host:8020/a@b",
    ],
)
def test_uris_without_credentials_are_accepted(uri: str) -> None:
    assert parse_config(MINIMAL, [f"data.train.path='{uri}'"]).data.train.path == uri


def test_epochs_or_max_steps() -> None:
    assert "training.epochs and training.max_steps are both given" in mistake("training={epochs: 1, max_steps: 5}")
    both = mistake("training.epochs=1", "training.max_steps=5")
    assert both == "training.epochs=1 and training.max_steps=5 set the same thing in two ways: give one of them"
    assert load_config("movie_reviews", ["training.max_steps=5"]).training.max_steps == 5  # overrides the file's epochs


def test_precedence_is_defaults_then_file_then_overrides() -> None:
    config = load_config("movie_reviews", ["training.optimizer.learning_rate=1e-3"])
    assert config.training.optimizer.learning_rate == 1e-3  # the override; YAML alone would read a string
    assert config.training.optimizer.weight_decay == 0.01  # the file
    assert config.training.optimizer.beta2 == 0.999  # the default


@pytest.mark.parametrize(
    "overrides", [[], ["training.max_steps=7"], ["model={config: {model_type: bert}, tokenizer: t}"]]
)
def test_a_resolved_config_gives_itself_back(overrides: list[str]) -> None:
    config = parse_config(copy.deepcopy(MINIMAL), overrides)
    assert parse_config(parse_yaml(dump_config(config))).model_dump() == config.model_dump()


def test_broken_files_are_named(tmp_path) -> None:
    broken = tmp_path / "run.yaml"
    broken.write_text("name: [a\n")
    with pytest.raises(ConfigError, match=r"run\.yaml is not valid YAML"):
        load_config(str(broken))
    broken.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected `key: value` lines"):
        load_config(str(broken))
    with pytest.raises(ConfigError, match="did you mean movie_reviews"):
        load_config("movie_review")


def test_every_field_has_its_sentence() -> None:
    lines = describe_fields().splitlines()
    for field, below in zip(lines, [*lines[1:], ""], strict=True):
        assert field.startswith(" ") or below.startswith("    "), f"{field}: has no sentence"
    assert len(all_fields()) == len(set(all_fields()))
    shown = {line.partition(":")[0] for line in lines if not line.startswith(" ")}
    assert set(all_fields()) - shown == {"task"}, "whose fields depend on task.kind"


def test_fields_are_in_words_with_their_values_and_yaml_defaults() -> None:
    lines = describe_fields().splitlines()
    for line in (
        "task.kind: causal_lm | chat | image_classification | masked_lm | preference | python | regression | reward | "
        "sequence_classification | token_classification; required",
        "training.precision: auto | fp32 | bf16 | fp16; default auto",
        "training.optimizer.learning_rate: number above 0; default 5.0e-05",
        "training.max_steps: integer at least 1 | null; default null",
        "tracking.tensorboard: true or false; default true",
        "data.test.path: text | list of text; required",
        "    auto: bf16 on a GPU that has it, else fp16 on a GPU, else fp32",
    ):
        assert lines.count(line) == 1, line


def test_integers_are_labels_and_booleans_are_refused() -> None:
    raw = copy.deepcopy(MINIMAL)
    raw["task"]["labels"] = [0, 1]
    assert parse_config(raw).task.labels == ["0", "1"]
    raw["task"]["labels"] = [False, True]
    with pytest.raises(ConfigError, match="task.labels: a label is text, so give 'false' instead of False"):
        parse_config(raw)


@pytest.mark.parametrize("name", config_names())
def test_shipped_configs_are_valid(name: str) -> None:
    assert isinstance(load_config(name), RunConfig)


def test_config_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys, raytrain.config.io, raytrain.steps.order, raytrain.steps.batches, raytrain.runs.plan\n"
        "raytrain.config.io.load_config('movie_reviews')\n"
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_override_takes_the_place_of_the_other_way_of_saying_it() -> None:
    config = load_config("movie_reviews", ["training.eval_every_steps=50"])  # the file says eval_every_epochs
    assert (config.training.eval_every_steps, config.training.eval_every_epochs) == (50, None)
    assert "set the same thing in two ways" in mistake("training.eval_every_steps=5", "training.eval_every_epochs=1")
    config = load_config("movie_reviews", ["training.eval_every_steps=5", "training.eval_every_epochs=null"])
    assert config.training.eval_every_steps == 5
    for null in ("~", "null", "Null", ""):
        config = load_config("movie_reviews", ["training.max_steps=5", f"training.epochs={null}"])
        assert config.training.max_steps == 5
