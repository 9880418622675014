"""data.balance and data.epoch_samples: what an epoch has, and what is refused. No Ray."""

from pathlib import Path
from typing import Any

import pytest
from running import tiny_run

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.data.copies import copies_per_epoch, describe_epoch
from raytrain.data.prepared import SplitInfo
from raytrain.errors import ConfigError
from raytrain.runs.plan import make_plan
from raytrain.steps.timetable import make_timetable

LABELS = ["a", "b", "c", "rare"]
COUNTS = {"a": 800, "b": 160, "rare": 40}  # none of "c"


def run(*overrides: str) -> RunConfig:
    raw = {
        "name": "a",
        "task": {"kind": "sequence_classification"},
        "model": {"path": "m"},
        "data": {"train": {"path": "a.csv"}},
    }
    return parse_config(raw, list(overrides))


def train_split(counts: dict[str, int] | None = None) -> SplitInfo:
    counts = COUNTS if counts is None else counts
    return SplitInfo(sum(counts.values()), 0, 0, 0, [], "", counts)


def epoch(*overrides: str) -> dict[str, int]:
    return copies_per_epoch(run(*overrides), train_split(), {"labels": LABELS})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.balance={}"], [334, 333, 0, 333]),
        (["data.balance.to=uniform", "data.epoch_samples=90"], [30, 30, 0, 30]),
        (["data.balance.to=1"], [800, 160, 0, 40]),
        (["data.balance.to=2"], [598, 268, 0, 134]),
        (["data.balance.to=1e9"], [334, 333, 0, 333]),
        (["data.balance.to=1e-9"], [1000, 0, 0, 0]),
        (["data.balance.to={a: 10, b: 0, c: 0, rare: 500}"], [10, 0, 0, 500]),
    ],
)
def test_samples_of_each_label(overrides: list[str], expected: list[int]) -> None:
    found = epoch(*overrides)
    assert list(found) == LABELS
    assert sum(found.values()) == run(*overrides).data.samples_per_epoch(1000)
    assert list(found.values()) == expected


def test_epoch_samples_alone_takes_them_all_in_turn() -> None:
    assert epoch("data.epoch_samples=300") == {"": 300}
    assert epoch() == {"": 1000}


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("{a: 1, b: 1, rare: 1}", "data.balance.to has no count for 'c'; give one for each of: a, b, c, rare"),
        ("{a: 1, b: 1, c: 0, rare: 1, z: 2}", "data.balance.to names 'z', which is not a label"),
        ("{a: 1, b: 1, c: 3, rare: 1}", "asks for 3 samples of 'c' in an epoch, and the training data has none"),
        ("{a: 1, b: 1, c: 0, rare: 999999999999}", "a sample of 'rare' would come more than 8,388,607 times"),
    ],
)
def test_counts_that_the_data_does_not_have(to: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        epoch(f"data.balance.to={to}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.balance={}", "task.multi_label=true"], "task.multi_label=true does not"),
        (["data.balance={}", "task.kind=token_classification"], "token_classification does not"),
        (["data.balance={}", "task={kind: python, target: 'a.b:C'}"], "python does not"),
        (["data.balance.to={a: 1}", "task.labels=[a, b]"], "data.balance.to has no count for 'b'"),
        (["data.balance.to={a: 0}"], "data.balance.to has no sample of any label"),
        (["data.balance.to={a: 1}", "data.epoch_samples=4"], "both set the samples in an epoch"),
        (["data.balance.to=even"], "data.balance.to: must be 'uniform', or a number, or a mapping"),
        (["data.balance.by=source"], "data.balance.by: must be 'label'"),
        (["data.epoch_samples=0"], "data.epoch_samples: must be at least 1"),
    ],
)
def test_what_the_config_refuses(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*overrides)


@pytest.mark.parametrize(
    ("override", "samples"),
    [
        ("data.balance={}", 1000),
        ("data.epoch_samples=2500", 2500),
        ("data.balance.to={a: 30, b: 3, c: 0, rare: 500}", 533),
    ],
)
def test_steps_and_the_plan_count_the_samples_of_an_epoch(override: str, samples: int) -> None:
    config = run(override, "training.epochs=2")
    assert make_timetable(config, 1000, has_validation=False).steps_per_epoch == -(-samples // 32)
    plan = make_plan(config, num_cpus=8, num_gpus=0, num_samples=1000)
    assert (plan.steps_per_epoch, plan.total_steps) == (-(-samples // 32), 2 * -(-samples // 32))


def test_the_plan_names_an_epoch_that_is_too_small() -> None:
    small = make_plan(run("data.epoch_samples=5"), num_cpus=8, num_gpus=0, num_samples=1000)
    assert any("fewer samples (5) than training.global_batch_size 32" in note for note in small.notes)
    with pytest.raises(ConfigError, match="an epoch of 5 samples has no step"):
        make_plan(run("data.epoch_samples=5", "data.drop_last=true"), num_cpus=8, num_gpus=0, num_samples=1000)


def test_what_people_are_told() -> None:
    state: dict[str, Any] = {"labels": LABELS}
    assert describe_epoch(run(), train_split(), state) == []
    assert describe_epoch(run("data.epoch_samples=300"), train_split(), state) == [
        "an epoch has 300 samples of the 1,000 of the training data (data.epoch_samples)"
    ]
    assert describe_epoch(run("data.balance={}"), train_split(), state) == [
        "an epoch has 1,000 samples of the 1,000 of the training data (data.balance): 'a' 334 (each of 800 comes 0.417 "
        "times), 'b' 333 (each of 160 comes 2.08 times), 'c' 0 (there are none), 'rare' 333 (each of 40 comes 8.32 "
        "times)"
    ]
    many = {f"l{i:02}": 10 for i in range(30)}
    told = describe_epoch(run("data.balance={}"), train_split(many), {"labels": list(many)})
    assert told[0].endswith("'l07' 10 (each of 10 comes once), and 22 more labels")


def test_all_that_differ_in_to_share_one_store(tmp_path: Path) -> None:
    """A sweep over balance prepares once; the layout of the store goes by `by` alone."""
    from raytrain.data.prepare import _place_of

    options = [
        ["data.balance={}"],
        ["data.balance.to=3"],
        ["data.balance.to={negative: 3, positive: 4}"],
        ["data.balance={}", "data.epoch_samples=7"],
        [],
        ["data.epoch_samples=7"],
    ]
    names = [_place_of(tiny_run(tmp_path, "a", *overrides))[3] for overrides in options]
    assert names[0] == names[1] == names[2] == names[3] != names[4] == names[5]
