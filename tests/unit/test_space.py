"""The grammar of a search space, its check against the config, and what it draws."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raytrain.config.help import fields_of
from raytrain.config.io import parse_config
from raytrain.config.shipped import space_names
from raytrain.errors import ConfigError
from raytrain.tuning.space.space import Space, check_space, draw_values, load_space, overrides_of
from raytrain.tuning.sweep import metric_of

LR = "training.optimizer.learning_rate"
RAW: dict[str, Any] = {
    "name": "a",
    "task": {"kind": "sequence_classification"},
    "model": {"path": "some/model"},
    "data": {"train": {"path": "a.parquet"}, "validation": {"fraction": 0.1}},
    "training": {"epochs": 1, "global_batch_size": 32, "micro_batch_size": 16},
}


def space(parameters: dict[str, Any], **more: Any) -> Space:
    return Space.model_validate({"parameters": parameters, **more})


@pytest.mark.parametrize("name", space_names())
def test_a_shipped_space_fits_a_usual_config(name: str) -> None:
    found = load_space(name)
    check_space(found, RAW, [])
    for index in range(found.num_configurations):
        parse_config(RAW, overrides_of(draw_values(found, index)))


def test_every_kind_stays_in_its_range() -> None:
    found = space(
        {
            LR: {"kind": "loguniform", "low": 1e-5, "high": 1e-3},
            "training.optimizer.weight_decay": {"kind": "uniform", "low": 0.0, "high": 0.5},
            "training.schedule.warmup_ratio": {"kind": "quniform", "low": 0.0, "high": 0.25, "step": 0.1},
            "training.epochs": {"kind": "randint", "low": 1, "high": 3},
            "training.optimizer.beta2": {"kind": "normal", "mean": 0.99, "deviation": 0.1, "low": 0.9, "high": 0.999},
            "training.global_batch_size": {"kind": "choice", "values": [16, 32]},
        }
    )
    check_space(found, RAW, [])
    drawn = [draw_values(found, index) for index in range(200)]
    columns = {key: [values[key] for values in drawn] for key in drawn[0]}
    assert all(1e-5 <= value <= 1e-3 for value in columns[LR])
    assert sum(value < 1e-4 for value in columns[LR]) in range(70, 130)  # each order of magnitude as likely
    assert {round(value, 6) for value in columns["training.schedule.warmup_ratio"]} == {0.0, 0.1, 0.2}
    assert set(columns["training.epochs"]) == {1, 2, 3}
    assert all(0.9 <= value <= 0.999 for value in columns["training.optimizer.beta2"])
    assert set(columns["training.global_batch_size"]) == {16, 32}


@given(seed=st.integers(0, 1000), index=st.integers(0, 1000))
def test_a_draw_is_a_function_of_space_seed_and_ordinal(seed: int, index: int) -> None:
    """And adding draws before or after changes nothing."""
    parameters = {LR: {"kind": "loguniform", "low": 1e-5, "high": 1e-3}}
    assert draw_values(space(parameters, seed=seed), index) == draw_values(space(parameters, seed=seed), index)
    assert draw_values(space(parameters, seed=seed), index) != draw_values(space(parameters, seed=seed), index + 1)


def test_grids_are_all_combinations_with_draws_for_each() -> None:
    found = space(
        {
            "training.epochs": {"kind": "grid", "values": [1, 2]},
            "training.global_batch_size": {"kind": "grid", "values": [16, 32, 64]},
            LR: {"kind": "loguniform", "low": 1e-5, "high": 1e-3},
        },
        budget={"trials": 7},
    )
    assert found.num_configurations == 12
    drawn = [draw_values(found, index) for index in range(12)]
    pairs = [(values["training.epochs"], values["training.global_batch_size"]) for values in drawn]
    assert pairs[:6] == [(1, 16), (1, 32), (1, 64), (2, 16), (2, 32), (2, 64)] == pairs[6:]
    assert len({values[LR] for values in drawn}) == 12


def test_a_condition_leaves_a_key_alone() -> None:
    found = space(
        {
            "training.schedule.kind": {"kind": "choice", "values": ["linear", "constant"]},
            "training.schedule.min_ratio": {
                "kind": "uniform",
                "low": 0.1,
                "high": 0.5,
                "when": {"training.schedule.kind": ["linear"]},
            },
        }
    )
    for index in range(30):
        values = draw_values(found, index)
        assert ("training.schedule.min_ratio" in values) == (values["training.schedule.kind"] == "linear")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"training.learning_rate": {"kind": "uniform", "low": 0.1, "high": 1}}, "training.learning_rate"),
        ({LR: {"kind": "uniform", "low": 0.0, "high": 1}}, "0.0 is not possible"),
        ({"training.zero_stage": {"kind": "choice", "values": [2, 4]}}, "4 is not possible"),
        ({"training.epochs": {"kind": "randint", "low": 0, "high": 2}}, "0 is not possible"),
        ({"model.path": {"kind": "choice", "values": [None]}}, "None is not possible"),
    ],
)
def test_a_range_whose_end_is_no_config_is_refused(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_space(space(parameters), RAW, [])
    assert words in str(caught.value)
    assert "parameters." in str(caught.value)


def test_what_trials_share_is_no_parameter() -> None:
    with pytest.raises(ConfigError, match="parameters.workers.cpus: it must be the same for all trials"):
        check_space(space({"workers.cpus": {"kind": "choice", "values": [1, 2]}}), RAW, [])


def test_a_key_of_the_space_on_the_command_line_is_refused() -> None:
    found = space({LR: {"kind": "uniform", "low": 0.1, "high": 1}})
    with pytest.raises(ConfigError, match="given on the command line too"):
        check_space(found, RAW, [f"{LR}=0.5"])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"parameters": {}}, "parameters"),
        ({"parameters": {LR: {"kind": "loguniform", "low": 1e-3, "high": 1e-5}}}, "low 0.001 is above high 1e-05"),
        ({"parameters": {LR: {"kind": "loguniform", "low": 0, "high": 1}}}, "low"),
        ({"parameters": {LR: {"kind": "log", "low": 1, "high": 2}}}, "kind"),
        (
            {"parameters": {LR: {"kind": "uniform", "low": 1, "high": 2, "when": {"a.b": [1]}}}},
            "does not precede it",
        ),
        ({"parameters": {LR: {"kind": "grid", "values": [1]}}, "searcher": {"kind": "tpe"}}, "use kind choice"),
        ({"parameters": {LR: {"kind": "grid", "values": [1]}}, "schedule": {"kind": "asha"}}, "schedule"),
        (
            {
                "parameters": {LR: {"kind": "grid", "values": [1]}},
                "also": [{"metric": "num_parameters"}],
                "scheduler": {"kind": "asha", "grace_steps": 5},
            },
            "scheduler.kind asha compares by one metric",
        ),
        (
            {"parameters": {LR: {"kind": "grid", "values": [1]}}, "scheduler": {"kind": "asha"}},
            "scheduler.grace_steps or scheduler.grace_epochs is required",
        ),
        (
            {
                "parameters": {LR: {"kind": "grid", "values": [1]}},
                "scheduler": {"kind": "asha", "grace_steps": 5, "grace_epochs": 0.5},
            },
            "scheduler.grace_steps 5 and scheduler.grace_epochs 0.5 are both given: remove one of them. Epochs",
        ),
        (
            {"parameters": {LR: {"kind": "grid", "values": [1]}}, "metric": "loss", "also": [{"metric": "loss"}]},
            "also repeats a metric",
        ),
    ],
)
def test_a_mistake_in_a_space_is_named(raw: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError) as caught:
        load_space(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_rungs_in_epochs_want_evaluations_in_epochs() -> None:
    parameters = {"training.global_batch_size": {"kind": "choice", "values": [16, 32]}}
    found = space(parameters, scheduler={"kind": "asha", "grace_epochs": 0.5})
    assert check_space(found, RAW, []).training.eval_every_epochs == 0.5
    assert check_space(found, RAW, ["training.eval_every_epochs=0.25"]).training.eval_every_epochs == 0.25
    with pytest.raises(ConfigError, match="training.eval_every_steps 10: trials are compared after the same share"):
        check_space(found, RAW, ["training.eval_every_steps=10"])


def test_the_metric_follows_the_tags_that_were_found() -> None:
    """A single run decides it by the state of its task; its trials were once compared by another metric."""
    raw = {**RAW, "task": {"kind": "token_classification"}}
    config, parameters = parse_config(raw), {LR: {"kind": "grid", "values": [1e-3]}}
    found, parts_of_speech = {"labels": ["O", "B-PER", "I-PER"]}, {"labels": ["NOUN", "VERB"]}
    assert metric_of(space(parameters), config, found) == ("entity_f1", "max")
    assert metric_of(space(parameters), config, parts_of_speech) == ("token_macro_f1", "max")
    chosen = parse_config(raw, ["training.best_metric=token_weighted_f1"])
    assert metric_of(space(parameters), chosen, found) == ("token_weighted_f1", "max")
    assert metric_of(space(parameters, metric="loss"), config, found) == ("loss", "min")
    also = space(parameters, also=[{"metric": "entity_f1", "mode": "max"}])
    with pytest.raises(ConfigError, match="also names entity_f1, which is the metric of this sweep anyway"):
        metric_of(also, config, found)


def test_an_unknown_space_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean lr_asha"):
        load_space("lr_ash")


@pytest.mark.parametrize(
    "value", [1e-5, 1e300, 0.1, 3, True, None, "a b", ["x", 1], {"kind": "constant"}, "1e5", "null"]
)
def test_an_override_means_what_it_was(value: Any) -> None:
    (word,) = overrides_of({"a.b": value})
    assert yaml.safe_load(word.partition("=")[2]) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parameter: {}", "parameter: unknown key; did you mean parameters?"),
        (f"parameters: {{{LR}: {{kind: loguniform, low: 0.01, high: 0.001}}}}", f"parameters.{LR}: low 0.01 is above"),
        (f"parameters: {{{LR}: {{kind: loguniform, lo: 0.001, high: 0.1}}}}", f"did you mean parameters.{LR}.low?"),
        (f"parameters: {{{LR}: {{kind: choise, values: [1]}}}}", f"parameters.{LR}.kind: 'choise' is not known"),
        (f"parameters: {{{LR}: {{low: 1, high: 2}}}}", f"parameters.{LR}.kind: required, but not given; allowed: unif"),
        ("scheduler: {kind: ahsa}", "did you mean asha?"),
        ("scheduler: {kind: pbt, every_step: 5}", "every_step: unknown key; did you mean scheduler.every_steps?"),
        ("budget: {trial: 5}", "budget.trial: unknown key; did you mean budget.trials?"),
    ],
)
def test_a_mistake_in_a_space_is_named_by_its_path(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_space(str(path))
    assert words in str(caught.value)


def test_every_field_of_a_space_is_described() -> None:
    rows = {(row.path, row.condition): row for row in fields_of(Space)}
    assert all(row.sentence or row.choices for row in rows.values())
    assert rows["scheduler.kind", ""].default == "none"
    assert rows["scheduler.kind", ""].choices["pbt"].startswith("Population-based training")  # not another's
    low = rows["parameters.KEY.low", "parameters.KEY.kind loguniform"]
    assert low.lines()[0] == "parameters.KEY.low: number above 0; required; for parameters.KEY.kind loguniform"
    assert rows["also", ""].kind == "list of sections"
    assert rows["also.metric", ""].is_required
    assert rows["parameters.KEY.values", "parameters.KEY.kind choice"].kind == "list of anything"
