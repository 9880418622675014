"""data.balance and data.epoch_samples: what an epoch has, and what is refused. No Ray."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from running import tiny_run

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.data.copies import copies_per_epoch, describe_epoch
from raytrain.data.prepared import Manifest, SourceInfo, SplitInfo
from raytrain.errors import ConfigError
from raytrain.runs.plan import make_plan
from raytrain.steps.timetable import make_timetable

LABELS = ["a", "b", "c", "rare"]
COUNTS = {"a": 800, "b": 160, "rare": 40}  # none of "c"
SOURCES = "data.train.sources=[{path: a.csv, weight: 3}, {path: b.jsonl, weight: 1}]"
NO_WEIGHTS = "data.train.sources=[{path: a.csv}, {path: b.jsonl}]"


def run(*overrides: str) -> RunConfig:
    raw = {
        "name": "a",
        "task": {"kind": "sequence_classification"},
        "model": {"path": "m"},
        "data": {"train": {"path": "a.csv"}},
    }
    return parse_config(raw, list(overrides))


def manifest_of(counts: dict[str, int], labels: list[str], sources: Sequence[dict[str, int]] = ()) -> Manifest:
    infos = [SourceInfo(sum(of_source.values()), of_source) for of_source in sources]
    split = SplitInfo(sum(counts.values()), 0, 0, 0, [], "", counts, sources=infos)
    return Manifest("f", {"labels": labels}, 0, {"train": split}, "c")


MANIFEST = manifest_of(COUNTS, LABELS)
# Twice as many samples in the second source, and no "rare" in the first.
TWO = manifest_of(COUNTS, LABELS, [{"a": 300, "b": 33}, {"a": 500, "b": 127, "rare": 40}])


def epoch(*overrides: str) -> dict[str, int]:
    (found,) = copies_per_epoch(run(*overrides), MANIFEST)
    return found


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
        (["data.balance.by=''"], "data.balance.by"),
        (["data.epoch_samples=0"], "data.epoch_samples: must be at least 1"),
        (["data.train.path=null"], "data.train.path and data.train.sources: none is given"),
        (["data.train.sources=[{path: b.csv}]"], "data.train.path and data.train.sources: both are given"),
        (["data.train.path=null", "data.train.sources=[]"], "data.train.sources is empty"),
        (["data.train.path=null", "data.train.sources=[{weight: 1}]"], r"data.train.sources.0.path: required"),
        (["data.train.path=null", "data.train.sources=[{path: b, weight: 0}]"], r"sources.0.weight: must be above 0"),
        (["data.train.path=null", "data.train.sources=[{path: b, wieght: 1}]"], r"did you mean .*weight"),
        (
            ["data.train.path=null", "data.train.sources=[{path: b, weight: 1}, {path: c}]"],
            "data.train.sources.1 has no weight, and others have one",
        ),
        (
            ["data.train.path=null", "data.train.format=csv", "data.train.sources=[{path: b}]"],
            "data.train.format is for data.train.path: give it in each of data.train.sources",
        ),
        (
            ["data.train.path=null", "data.train.sources=[{path: b, weight: 1}]", "data.balance.to={a: 1}"],
            "the weights of data.train.sources and the counts of data.balance.to both set",
        ),
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


def test_steps_are_known_before_the_data_is_counted_where_the_config_says_them() -> None:
    known = make_plan(run("data.epoch_samples=320"), num_cpus=8, num_gpus=0, num_samples=None)
    assert (known.steps_per_epoch, known.total_steps) == (10, 30)
    unknown = make_plan(run("data.balance={}"), num_cpus=8, num_gpus=0, num_samples=None)
    assert (unknown.steps_per_epoch, unknown.total_steps) == (None, None)


def test_the_plan_names_an_epoch_that_is_too_small() -> None:
    small = make_plan(run("data.epoch_samples=5"), num_cpus=8, num_gpus=0, num_samples=1000)
    assert any("fewer samples (5) than training.global_batch_size 32" in note for note in small.notes)
    with pytest.raises(ConfigError, match="an epoch of 5 samples has no step"):
        make_plan(run("data.epoch_samples=5", "data.drop_last=true"), num_cpus=8, num_gpus=0, num_samples=1000)


def test_what_people_are_told() -> None:
    assert describe_epoch(run(), MANIFEST) == []
    assert describe_epoch(run("data.epoch_samples=300"), MANIFEST) == [
        "an epoch has 300 samples of the 1,000 of the training data"
    ]
    assert describe_epoch(run("data.balance={}"), MANIFEST) == [
        "an epoch has 1,000 samples of the 1,000 of the training data",
        "data.balance: 'a' 334 (each of 800 comes 0.417 times), 'b' 333 (each of 160 comes 2.08 times), 'c' 0, 'rare' "
        "333 (each of 40 comes 8.32 times)",
    ]
    many = {f"l{i:02}": 10 for i in range(30)}
    told = describe_epoch(run("data.balance={}"), manifest_of(many, list(many)))
    assert told[1].endswith("'l07' 10 (each of 10 comes once), and 22 more labels")
    assert describe_epoch(run(SOURCES, "data.train.path=null"), TWO) == [
        "an epoch has 1,000 samples of the 1,000 of the training data",
        "data.train.sources.0 750 (each of 333 comes 2.25 times)",
        "data.train.sources.1 250 (each of 667 comes 0.375 times)",
    ]
    assert describe_epoch(run(SOURCES, "data.train.path=null", "data.balance={}"), TWO)[1] == (
        "data.train.sources.0 750 (each of 333 comes 2.25 times), of which 'a' 375 (each of 300 comes 1.25 times), 'b' "
        "375 (each of 33 comes 11.4 times), 'c' 0, 'rare' 0"
    )


def test_weights_become_whole_counts_and_labels_are_balanced_in_each_source() -> None:
    assert copies_per_epoch(run("data.train.path=null", SOURCES, "data.epoch_samples=90"), TWO) == [{"": 68}, {"": 22}]
    balanced = run("data.train.path=null", SOURCES, "data.epoch_samples=90", "data.balance={}")
    assert [list(of_source.values()) for of_source in copies_per_epoch(balanced, TWO)] == [[34, 34, 0, 0], [8, 7, 0, 7]]
    without = run("data.train.path=null", NO_WEIGHTS)
    assert not without.data.has_copies, "several sources without weights are one, with files that are read differently"
    together = run("data.train.path=null", NO_WEIGHTS, "data.balance={}")
    assert copies_per_epoch(together, TWO) == copies_per_epoch(run("data.balance={}"), MANIFEST)


def test_a_source_without_a_usable_row_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data.train.sources.1 has weight 1 and no usable row: .*: b.jsonl"):
        copies_per_epoch(run("data.train.path=null", SOURCES), manifest_of(COUNTS, LABELS, [COUNTS, {}]))


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
