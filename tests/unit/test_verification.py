"""`raytrain verify` finds each kind of difference between a run and its repetition. No Ray."""

import math
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run

from raytrain.config.io import dump_config
from raytrain.errors import ConfigError
from raytrain.runs.verification import compare, repetition, steps_of, verify_run
from raytrain.storage import Storage
from raytrain.training.records import JsonlWriter

STEPS = 5


def write_run(folder: Path, world_size: int = 1, **changed: Any) -> Storage:
    """A run's files of five steps. `changed`: fields with another value in step 3; `ids` are its samples."""
    run = Storage(str(folder))
    rows, samples = JsonlWriter(run, "metrics.jsonl"), JsonlWriter(run, "samples/rank_0.jsonl")
    for step in range(1, STEPS + 1):
        of_step = changed if step == 3 else {}
        row = {"step": step, "attempt": 0, "world_size": world_size, "loss": 1 / step, "lr": 1e-3 * step}
        row |= {"loss_scale": None, "skipped_steps": 0, "samples_seen": 2 * step, "tokens_seen": 90 * step}
        rows.write(row | {key: value for key, value in of_step.items() if key != "ids"})
        samples.write({"step": step, "epoch": 1, "attempt": 0, "ids": of_step.get("ids", [step, step + 1])})
    rows.close()
    samples.close()
    return run


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({}, {}),
        ({"loss": 1 / 3 + 9e-5}, {}),
        ({"loss": 1 / 3 + 2e-4}, {"worst_step": 3}),
        ({"loss": None}, {"worst_step": 3}),
        ({"step": 9}, {}),
        ({"ids": [3, 5]}, {"other_samples": 3}),
        ({"ids": [4, 3]}, {}),
        ({"tokens_seen": 271}, {"other_samples": 3}),
        ({"lr": 1e-3}, {"other_updates": 3}),
        ({"loss_scale": 1024.0}, {"other_updates": 3}),
        ({"skipped_steps": 1}, {"other_updates": 3}),
    ],
    ids=str,
)
def test_a_difference_is_found(tmp_path: Path, changed: dict[str, Any], finding: dict[str, int]) -> None:
    config = tiny_run(tmp_path, "a")
    found = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", **changed), config, STEPS, 2)
    assert found.agrees is (not finding)
    assert all(getattr(found, name) == value for name, value in finding.items())
    assert (found.world_sizes, found.workers, found.num_steps) == ((1,), 2, STEPS)
    if changed.get("loss", 0.0) is None:
        assert math.isnan(found.worst_loss)


@pytest.mark.parametrize(
    ("changed", "agrees"), [({}, True), ({"weights": "b"}, False), ({"loss": 1 / 3 + 1e-9}, False)], ids=str
)
def test_a_bitwise_run_agrees_to_the_last_bit(tmp_path: Path, changed: dict[str, Any], agrees: bool) -> None:
    config = tiny_run(tmp_path, "a", "training.exactness=bitwise")
    one, two = write_run(tmp_path / "a", weights="a"), write_run(tmp_path / "b", **{"weights": "a", **changed})
    found = compare(one, two, config, STEPS, 2)
    assert found.agrees is agrees
    assert found.other_weights == (3 if "weights" in changed else None)


def test_what_is_no_difference(tmp_path: Path) -> None:
    """Large losses a rounding apart, steps that fp16 has skipped, and the samples of a redo without an end."""
    config = tiny_run(tmp_path, "a")
    large = compare(write_run(tmp_path / "a", loss=5000.0), write_run(tmp_path / "b", loss=5000.0005), config, STEPS, 2)
    assert large.agrees
    skipped = write_run(tmp_path / "c", loss=None), write_run(tmp_path / "d", loss=None)
    assert compare(*skipped, config, STEPS, 2).agrees
    redone, other = write_run(tmp_path / "e"), write_run(tmp_path / "f")
    samples = JsonlWriter(redone, "samples/rank_1.jsonl")
    samples.write({"step": 4, "epoch": 1, "attempt": 1, "ids": [5]})
    samples.close()
    assert compare(redone, other, config, STEPS, 2).agrees


def test_a_line_that_is_lost_is_counted(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path / "a", step=9), write_run(tmp_path / "b"), tiny_run(tmp_path, "c"), STEPS, 2)
    assert (found.num_missing, found.agrees) == (1, True)


def test_a_step_that_was_redone_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    rows = JsonlWriter(run, "metrics.jsonl")
    rows.write({"step": 4, "attempt": 1, "world_size": 3, "loss": 9.0})
    rows.close()
    assert [(step, row["loss"]) for step, row in steps_of(run, 4).items()][-2:] == [(3, 1 / 3), (4, 9.0)]
    assert list(steps_of(run, 2)) == [1, 2]


@pytest.mark.parametrize(("had", "expected"), [(1, 2), (3, 1)])
def test_the_repetition_has_another_number_of_workers(tmp_path: Path, had: int, expected: int) -> None:
    config = tiny_run(tmp_path, "a", "tracking.wandb={}", "workers.max=3")
    run = write_run(tmp_path / "runs" / "a", had)
    repeated, num_steps, workers = repetition(run, config, 20, None)
    assert (num_steps, workers) == (STEPS, expected)
    assert (repeated.workers.min, repeated.workers.max) == (expected, expected)
    assert repeated.tracking.wandb is None
    assert repeated.training == config.training
    assert repeated.data.prepared_path == str(tmp_path / "runs" / "_prepared")
    assert "verify" in dump_config(repeated)


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    with pytest.raises(ConfigError, match="has no steps yet"):
        repetition(Storage(str(tmp_path / "empty")), config, 20, None)
    with pytest.raises(ConfigError, match="--workers 5: a step of this run has 4 micro-batches"):
        repetition(write_run(tmp_path / "b"), config, 20, 5)
    with pytest.raises(ConfigError, match="--workers 1: the run had as many"):
        repetition(write_run(tmp_path / "b"), config, 20, 1)
    with pytest.raises(ConfigError, match=r"workers.max can't be changed .* there is --workers"):
        verify_run(str(tmp_path / "b"), overrides=["workers.max=4"])


def test_a_bitwise_run_is_repeated_with_as_many_threads(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", weights="a")
    run.write_bytes("config.yaml", dump_config(tiny_run(tmp_path, "a", "training.exactness=bitwise")).encode())
    with pytest.raises(ConfigError, match=r"workers\.cpus can't be changed.*threads"):
        verify_run(run.path_of(), overrides=["workers.cpus=2"])
