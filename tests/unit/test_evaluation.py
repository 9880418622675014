"""What an evaluation of other data may change, and what it is called. No Ray."""

import json
from pathlib import Path

import pytest
from running import tiny_run

from raytrain.config.io import dump_config
from raytrain.data.fingerprint import fingerprint
from raytrain.data.prepared import Manifest, PreparedStore, SplitInfo
from raytrain.errors import ConfigError, DataError
from raytrain.runs.evaluation import allowed_overrides, for_other_data, read_evaluated_config, reads_other_data
from raytrain.runs.preflight import check
from raytrain.steps.batches import BatchPlan
from raytrain.storage import Storage
from raytrain.training.measured import measured_name


@pytest.mark.parametrize(
    "override",
    [
        "data.test.path=a.parquet",
        "data.test={path: a.parquet}",
        "data.test.format=csv",
        "task.text_column=body",
        "data.on_error=quarantine",
        "workers.max=2",
        "ray.address=null",
        "training.micro_batch_size=64",
    ],
)
def test_what_concerns_an_evaluation_is_taken(override: str) -> None:
    assert allowed_overrides("test", [override]) == [override]


@pytest.mark.parametrize(
    "override", ["training.epochs=3", "model.path=x", "task.labels=[a]", "data.train.path=x", "name=b"]
)
def test_what_an_evaluation_would_not_heed_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"{override.partition('=')[0]} can't be changed in an evaluation.*allowed:"):
        allowed_overrides("test", [override])


@pytest.mark.parametrize("micro_batch_size", [2, "auto"])
@pytest.mark.parametrize("workers", [1, 4, 5, 64])
def test_more_workers_than_a_step_has_micro_batches(tmp_path: Path, workers: int, micro_batch_size: int | str) -> None:
    """An evaluation has no steps, so any number of workers can take part."""
    trained = tiny_run(tmp_path, "a", f"training.micro_batch_size={micro_batch_size}", "workers.max=1")
    run = Storage(str(tmp_path / "runs" / "a"))
    run.write_bytes("config.yaml", dump_config(trained).encode())
    config = read_evaluated_config(run, "test", [f"workers.max={workers}"])
    plan = BatchPlan.of(config, workers)
    assert plan.world_size == workers and config.workers.max == workers
    assert fingerprint(config, {}, "", 16) == fingerprint(trained, {}, "", 16), "the prepared data is the run's"
    if workers == 1:
        assert config == trained
    with pytest.raises(ConfigError, match=r"workers.cpus") as refused:
        read_evaluated_config(run, "test", [f"workers.max={workers}", "workers.cpus=-1"])
    assert "global_batch" not in str(refused.value)


def test_files_of_the_split_that_is_not_measured_are_refused() -> None:
    with pytest.raises(ConfigError, match="to measure those files, add --split validation"):
        allowed_overrides("test", ["data.validation.path=a.parquet"])
    with pytest.raises(ConfigError, match="'train' can't be evaluated; allowed: validation, test"):
        allowed_overrides("train", [])


def test_files_replace_a_fraction_that_was_held_out(tmp_path: Path) -> None:
    words = allowed_overrides("validation", ["data.validation.path=a.parquet"])
    config = tiny_run(tmp_path, "a", "data.validation={fraction: 0.1, stratify: true}", *words)
    assert config.data.validation is not None
    assert (config.data.validation.path, config.data.validation.fraction) == ("a.parquet", None)


def test_only_what_changes_the_samples_is_other_data() -> None:
    assert reads_other_data(["workers.max=2", "data.test.path=x"])
    assert reads_other_data(["task.text_column=body"])
    assert not reads_other_data(
        ["workers.max=2", "ray.num_cpus=4", "data.prepared_path=p", "training.micro_batch_size=1"]
    )
    assert not reads_other_data([])


def test_neither_training_data_nor_base_model_has_to_be_there(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a", "workers.gpu=false")
    best = tmp_path / "runs" / "a" / "best"
    best.mkdir(parents=True)
    (best / "raytrain.json").write_text(json.dumps({"state": {"labels": ["positive", "negative"]}, "step": 3}))
    (best / "config.json").write_text("{}")
    for file in (tmp_path / "tokenizer").iterdir():
        file.rename(best / file.name)
    (tmp_path / "data" / "train.parquet").unlink()
    found = check(for_other_data(config, Storage(str(best.parent))), only="test")
    assert found.config.task.labels == ["positive", "negative"]  # the order that the model knows
    with pytest.raises(DataError, match=r"data\.train\.path"):
        check(config)


def store_of(folder: Path, *splits: str) -> PreparedStore:
    infos = {split: SplitInfo(1, 1, 0, 0, [], "") for split in splits}
    (folder / "manifest.json").write_bytes(Manifest("f", {"labels": ["a"]}, 0, infos, "c").to_json())
    return PreparedStore(str(folder))


def test_only_the_own_data_of_a_run_has_the_name_of_its_split(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    assert measured_name(config, store_of(tmp_path, "train", "validation", "test"), "test") == "test"
    assert measured_name(config, store_of(tmp_path, "test"), "test") == f"{tmp_path}/data/test.parquet"
    both = tiny_run(tmp_path, "a", "data.test.path=[x.csv, y.csv]")
    assert measured_name(both, store_of(tmp_path, "test"), "test") == "x.csv, y.csv"
