"""The winner of a sweep on all data: the validation split is trained on, the test split is not, the length is known."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from running import tiny_run

from raytrain.errors import ConfigError
from raytrain.runs.folder import SWEEP
from raytrain.runs.preflight import check
from raytrain.storage import Storage
from raytrain.tuning.best_trial import train_winner
from raytrain.tuning.trials import TrialTable

LR = "training.optimizer.learning_rate"
WATCHING = ("training.early_stopping.metric=accuracy", "training.eval_every_steps=5", "training.best_metric=accuracy")


def sweep_of(folder: Path, *overrides: str) -> Storage:
    """A sweep of two trials, of which the second was best, at step 15."""
    config = tiny_run(folder, "reviews", *overrides)
    root = Storage(config.storage_path).at("reviews-rates")
    written = {
        "config": config.model_dump(mode="json", exclude_unset=True),
        "space": {"parameters": {LR: {"kind": "grid", "values": [1e-3, 2e-3]}}},
        "compares": {"metric": "accuracy", "mode": "max"},
    }
    root.write_bytes(SWEEP, yaml.safe_dump(written).encode())
    trial_table = TrialTable(root, "max")
    for name, rate, values in (("trial_0000", 1e-3, (0.5, 0.6)), ("trial_0001", 2e-3, (0.8, 0.7))):
        trial_table.add(name, {LR: rate})
        for step, value in zip((15, 20), values, strict=True):
            trial_table.evaluated(name, step, value, 0)
        trial_table.update(name, status="finished")
    return root


def paths(config: Any) -> list[str]:
    given = config.data.train.path
    return [Path(path).name for path in ([given] if isinstance(given, str) else given)]


def test_all_data_are_the_files_of_both_splits(tmp_path: Path) -> None:
    root = sweep_of(tmp_path, *WATCHING)
    config = check(train_winner(root, [], all_data=True)).config
    assert paths(config) == ["train.parquet", "validation.parquet"]
    assert config.data.validation is None
    assert config.data.test is not None and Path(str(config.data.test.path)).name == "test.parquet"
    assert (config.training.max_steps, config.training.optimizer.learning_rate) == (15, 2e-3)
    assert (config.training.early_stopping, config.training.eval_every_steps) == (None, None)
    assert config.name == "reviews-rates-best-all-data", "beside the winner that was trained without"


def test_the_validation_files_become_another_source(tmp_path: Path) -> None:
    """They may be read in another way then; with weights it is not known what theirs would be."""
    train, validation = tmp_path / "data" / "train.parquet", tmp_path / "data" / "validation.parquet"
    sources = ["data.train.path=null", f"data.train.sources=[{{path: {train}, format: parquet}}]"]
    chosen = train_winner(sweep_of(tmp_path, *sources), [], all_data=True)
    assert [source.path for source in chosen.data.train.sources or []] == [str(train), str(validation)]
    assert [source.format for source in chosen.data.train.sources or []] == ["parquet", "auto"]
    weighted = ["data.train.path=null", f"data.train.sources=[{{path: {train}, weight: 1}}]"]
    with pytest.raises(ConfigError, match="--all-data: data.train.sources have weights"):
        train_winner(sweep_of(tmp_path, *weighted), [], all_data=True)


def test_a_fraction_is_given_back(tmp_path: Path) -> None:
    config = train_winner(sweep_of(tmp_path, "data.validation={fraction: 0.1}"), [], all_data=True)
    assert paths(config) == ["train.parquet"]
    assert config.data.validation is None


def test_without_it_the_winner_is_the_trial(tmp_path: Path) -> None:
    config = train_winner(sweep_of(tmp_path, *WATCHING), ["seed=3"], all_data=False)
    assert config.data.validation is not None and config.training.early_stopping is not None
    assert (config.name, config.training.epochs, config.seed) == ("reviews-rates-best", 3, 3)


def test_the_length_may_be_given(tmp_path: Path) -> None:
    training = train_winner(sweep_of(tmp_path), ["training.epochs=2"], all_data=True).training
    assert (training.epochs, training.max_steps) == (2, None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.validation.fraction=0.1", "leave data.validation out"),
        ("training.early_stopping.metric=accuracy", "training.early_stopping needs data.validation"),
    ],
)
def test_what_needs_a_validation_split_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        train_winner(sweep_of(tmp_path), [override], all_data=True)


def test_splits_of_two_formats_are_refused(tmp_path: Path) -> None:
    root = sweep_of(tmp_path, "data.validation.format=parquet")
    with pytest.raises(ConfigError, match="data.train.format and data.validation.format differ"):
        train_winner(root, [], all_data=True)


def test_there_must_be_a_winner(tmp_path: Path) -> None:
    root = sweep_of(tmp_path)
    root.delete("trials")
    with pytest.raises(ConfigError, match="no trial of .* has been evaluated"):
        train_winner(root, [], all_data=True)
    with pytest.raises(ConfigError, match="not a sweep's folder"):
        train_winner(Storage(str(tmp_path)), [], all_data=True)


def test_another_trial_by_its_name(tmp_path: Path) -> None:
    root = sweep_of(tmp_path)
    config = train_winner(root, [], all_data=False, trial="trial_0000")
    assert (config.name, config.training.optimizer.learning_rate) == ("reviews-rates-trial_0000", 1e-3)
    with pytest.raises(ConfigError, match="--trial trial_0009: .* has no such trial"):
        train_winner(root, [], all_data=False, trial="trial_0009")
