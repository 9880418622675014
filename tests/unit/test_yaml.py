"""YAML as people mean it (1.2), from a file, an override and Python alike, and back from what we write."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from running import tiny_run

import raytrain.config.mistakes
from raytrain.config import RunConfig
from raytrain.config.fields import all_fields
from raytrain.config.io import dump_config, load_config, parse_config
from raytrain.config.yaml import parse_yaml, to_word, to_yaml
from raytrain.errors import ConfigError
from raytrain.launch.arguments import Argument, Sent
from raytrain.launch.request import make_request
from raytrain.runs.folder import read_run_config
from raytrain.runs.resume import begin_or_resume
from raytrain.storage import Storage
from raytrain.tuning.best_trial import read_sweep
from raytrain.tuning.resume import begin_or_resume as begin_or_resume_sweep
from raytrain.tuning.space.space import Space
from raytrain.tuning.state import trial_config

WORDS = ["off", "no", "on", "yes", "y", "010", "007", "12:30", "2024-11-29", "1_000", "1,5", "a=b"]
NAMES = ["2024-11-29", "1e5", "007", "on", "off", "null", "true", "12.5", "0x1F", "1234567", "NaN"]
MINIMAL: dict[str, Any] = {
    "name": "a",
    "task": {"kind": "sequence_classification"},
    "model": {"path": "m"},
    "data": {"train": {"path": "x.parquet"}},
}
FILE = """\
name: {name}
task: {{kind: sequence_classification, labels: [{label}, other]}}
model: {{path: m, revision: {revision}}}
data: {{train: {{path: x.parquet}}}}
"""


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_text(word: str) -> None:
    assert parse_yaml(word) == word
    assert parse_yaml(f"a: [{word}]" if "," not in word else f"a:\n- {word}") == {"a": [word]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("0x10", 16),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
    ],
)
def test_a_word_is_a_value(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


def test_anchors_and_merged_mappings() -> None:
    text = "base: &base {a: 1, b: 2}\nx: {<<: *base, b: 3}\ny: {<<: [{a: 9}, *base]}\nz: *base\n"
    found = parse_yaml(text)
    assert (found["x"], found["y"], found["z"]) == ({"a": 1, "b": 3}, {"a": 9, "b": 2}, {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nseed: 1\nname: b\n", "run.yaml is not valid YAML: line 3: 'name' is given twice"),
        ("data:\n  train: {path: a, path: b}\n", "run.yaml is not valid YAML: line 2: 'path' is given twice"),
        ("name: a\ndata: [x\n", "run.yaml is not valid YAML: line 3: expected ',' or ']'"),
        ("name: a\n\tseed: 1\n", "run.yaml is not valid YAML: line 2: "),
        ("name: a\nmodel: !torch x\n", "run.yaml is not valid YAML: line 2: the tag !torch is not supported"),
        ("name: a\n---\nname: b\n", "run.yaml is not valid YAML: line 2: but found another document"),
        ("name: &a [*a]\n", "run.yaml is not valid YAML: an anchor holds itself"),
        ("name: '\x00'\n", "run.yaml is not valid YAML: unacceptable character"),
    ],
)
def test_a_mistake_is_named_by_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "run.yaml"))
    assert str(caught.value).startswith(f"{tmp_path}/{expected}")


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("name: é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.yaml is not valid YAML: it is not UTF-8 text"):
        load_config(str(tmp_path / "run.yaml"))


def test_a_broken_override_is_named() -> None:
    with pytest.raises(ConfigError, match=r"override training: '\{epochs: 1' is not valid YAML: line 1"):
        parse_config(MINIMAL, ["training={epochs: 1"])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_have_any_name(name: str, tmp_path: Path) -> None:
    """From a file, an override and Python; through its config.yaml, a resume, a job and a sweep's trials."""
    (tmp_path / "run.yaml").write_text(FILE.format(name=name, label=name, revision="main"))
    from_file = load_config(str(tmp_path / "run.yaml"))
    assert (from_file.name, from_file.task.labels) == (name, [name, "other"])
    from_words = parse_config(MINIMAL, [f"name={name}", f"task.labels=[{name}, other]"])
    assert (from_words.name, from_words.task.labels) == (name, [name, "other"])
    from_python = parse_config({**MINIMAL, "name": name})
    assert from_python.name == name

    run = Storage(str(tmp_path / "moved")).at(name)
    run.write_bytes("config.yaml", dump_config(from_file).encode())
    found = read_run_config(run, ["seed=3"])
    assert (found.name, found.storage_path, found.seed) == (name, str(tmp_path / "moved"), 3)
    assert found.task.labels == [name, "other"]
    assert begin_or_resume(run, from_file, overwrite=False) is None

    overrides = [f"storage_path={tmp_path}", "model.path=org/m", f"data.train.path={tmp_path}/x.parquet"]
    given = [("config", Sent.CONFIG, [str(tmp_path / "run.yaml")]), ("overrides", Sent.OVERRIDES, overrides)]
    arguments = [Argument(name, words[0], sent, words) for name, sent, words in given]
    sent = make_request("train", arguments, needs_folder_alone=True)
    (content,) = sent.files.values()
    assert parse_config(parse_yaml(content)).name == name

    root = Storage(str(tmp_path)).at(f"{name}-rates")
    space = Space.model_validate({"parameters": {"seed": {"kind": "choice", "values": [1, 2]}}})
    begin_or_resume_sweep(root, from_file, space, "accuracy", "max")
    _, config, _ = read_sweep(root)
    assert config == from_file
    trial = trial_config(config, root, name, {"task.text_column": name})
    assert (trial.name, trial.task.labels, trial.seed) == (name, [name, "other"], 0)
    assert getattr(trial.task, "text_column") == name  # noqa: B009


@pytest.mark.parametrize("folder", ["results #2", "a: b", "[x]", "~", "{y}"])
def test_a_folder_is_no_yaml(folder: str, tmp_path: Path) -> None:
    run = Storage(str(tmp_path / folder)).at("a")
    run.write_bytes("config.yaml", dump_config(parse_config(MINIMAL)).encode())
    assert read_run_config(run).storage_path == f"{tmp_path}/{folder}"


@pytest.mark.parametrize("label", ["no", "off", "1", "01", "1.0", "true", "null", "2024-11-29"])
def test_a_label_is_what_is_written(label: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(FILE.format(name="a", label=label, revision="main"))
    assert load_config(str(tmp_path / "run.yaml")).task.labels == [label, "other"]


def test_text_that_may_be_null(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(FILE.format(name="a", label="x", revision="12345678"))
    assert load_config(str(tmp_path / "run.yaml")).model.revision == "12345678", "a commit"
    assert parse_config(MINIMAL, ["model.revision=1e5"]).model.revision == "1e5"
    for null in ("null", "~", ""):
        assert parse_config(MINIMAL, [f"model.revision={null}"]).model.revision is None
    assert parse_config(MINIMAL, ["data.train.path=[1, 2.0]"]).data.train.path == ["1", "2.0"]
    for nothing in ("name=", "name=~"):
        with pytest.raises(ConfigError, match="name: must be text, got null"):
            parse_config(MINIMAL, [nothing])


@pytest.mark.parametrize("word", ["off", "auto"])
def test_reclaim_watch_off(word: str, tmp_path: Path) -> None:
    text = FILE.format(name="a", label="x", revision="main") + f"workers: {{reclaim_watch: {word}}}\n"
    (tmp_path / "run.yaml").write_text(text)
    assert load_config(str(tmp_path / "run.yaml")).workers.reclaim_watch == word
    assert parse_config(MINIMAL, [f"workers.reclaim_watch={word}"]).workers.reclaim_watch == word
    assert parse_config({**MINIMAL, "workers": {"reclaim_watch": word}}).workers.reclaim_watch == word


def test_variables_are_text_as_written() -> None:
    own = "training.communication.environment={NCCL_DEBUG: off, NCCL_IB_TC: 010, NCCL_IB_DISABLE: 1}"
    environment = {"NCCL_DEBUG": "off", "NCCL_IB_TC": "010", "NCCL_IB_DISABLE": "1"}
    assert parse_config(MINIMAL, [own]).training.communication.environment == environment
    given = copy.deepcopy(MINIMAL)
    given["training"] = {"communication": {"environment": {"NCCL_IB_DISABLE": 1}}}
    assert parse_config(given).training.communication.environment == {"NCCL_IB_DISABLE": "1"}


def test_switches_may_still_be_off_and_on() -> None:
    config = parse_config(MINIMAL, ["checkpoint.keep_best=off", "workers.gpu=no", "model.trust_remote_code=on"])
    assert (config.checkpoint.keep_best, config.workers.gpu, config.model.trust_remote_code) == (False, False, True)


def test_what_a_run_writes_is_its_config(tmp_path: Path) -> None:
    strange = {"off": "off", "n": [1e-5, 1e22, "1e-5", None, True, "yes", "é", " x", "a: b", "#"], "d": "2024-11-29"}
    raw = {**MINIMAL, "name": "1e5", "training": {"deepspeed": strange}}
    config = parse_config(raw)
    text = dump_config(config)
    for read in (parse_yaml(text), parse_yaml(text, RunConfig), yaml.safe_load(text)):  # readers of YAML 1.1 too
        assert parse_config(read) == parse_config(parse_yaml(dump_config(config)))
        assert read["training"]["deepspeed"] == strange
    assert parse_config(tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)).name == "a"


WORDS_AND_NAMES = st.sampled_from([*WORDS, *NAMES])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([*WORDS, *NAMES]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)


@given(values)
@example(["?0", {"?a": "-b"}, [":c", "- d", "?"], {":0": None}])
def test_what_is_written_is_read(value: Any) -> None:
    assert parse_yaml(to_yaml(value)) == value
    word = to_word(value)
    assert "\n" not in word and parse_yaml(word) == value


def test_words_of_other_trainers_lead_to_fields_that_are_there() -> None:
    assert {*raytrain.config.mistakes.OTHER_WORDS.values()} <= {*all_fields()}
    assert not {*raytrain.config.mistakes.OTHER_WORDS} & {*RunConfig.model_fields}


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [("preference", "null", None), ("reward", "~", None), ("chat", "null", "null"), ("preference", "007", "007")],
)
def test_a_field_that_kinds_declare_otherwise_is_that_of_the_kind(kind: str, word: str, value: str | None) -> None:
    """Kinds of tasks share names of fields, and one may be null where another is always text."""
    for text in (f"task: {{kind: {kind}, prompt_column: {word}}}", f"task: {{prompt_column: {word}, kind: {kind}}}"):
        assert parse_yaml(text, RunConfig)["task"]["prompt_column"] == value
