"""A run that is resumed with other data is refused before Ray starts. No Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import tiny_run

from raytrain.config import RunConfig
from raytrain.errors import ConfigError
from raytrain.runs.preflight import check
from raytrain.runs.same_data import DATA, check_same_data, record_data
from raytrain.storage import Storage
from tests.chat_templates import chat_tokenizer
from tests.tiny import make_reviews, write_parquet, write_reviews


def store(content: str) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(content=content))


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "runs" / "a"))


@pytest.fixture
def config(tmp_path: Path, run: Storage) -> RunConfig:
    """The config of a run that has noted its data and committed a checkpoint of step 3."""
    config = check(tiny_run(tmp_path, "a")).config
    record_data(run, config, store("rows"))
    run.write_bytes("checkpoints/step_00000003-0001/manifest.json", b"{}")
    return config


def test_the_same_files(run: Storage, config: RunConfig) -> None:
    check_same_data(run, config)
    record_data(run, config, store("rows"))


def test_changed_files_are_named(tmp_path: Path, run: Storage, config: RunConfig) -> None:
    path = write_reviews(tmp_path / "data" / "train.parquet", 99, seed=7)
    with pytest.raises(ConfigError) as refusal:
        check_same_data(run, config)
    for words in ("have changed since this run's checkpoint of step 3", f"data.train: {path}", "raytrain data prepare"):
        assert words in str(refusal.value)


def test_a_changed_tokenizer_is_named(tmp_path: Path, run: Storage, config: RunConfig) -> None:
    folder = Path(config.model.tokenizer_path)
    with open(folder / "tokenizer_config.json", "a") as file:
        file.write(" ")
    with pytest.raises(ConfigError, match="the tokenizer"):
        check_same_data(run, config)


def test_files_that_were_only_moved(tmp_path: Path, run: Storage, config: RunConfig) -> None:
    (tmp_path / "data" / "train.parquet").rename(tmp_path / "data" / "moved.parquet")
    data = config.data.model_copy(
        update={"train": config.data.train.model_copy(update={"path": str(tmp_path / "data" / "moved.parquet")})}
    )
    check_same_data(run, config.model_copy(update={"data": data}))


def test_a_run_without_a_checkpoint_may_have_any_data(tmp_path: Path, run: Storage) -> None:
    config = check(tiny_run(tmp_path, "a")).config
    record_data(run, config, store("rows"))
    write_reviews(tmp_path / "data" / "train.parquet", 99, seed=7)
    check_same_data(run, config)
    record_data(run, config, store("others"))


def test_the_same_rows_in_another_file_are_found_when_prepared(
    tmp_path: Path, run: Storage, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "data" / "train.parquet", make_reviews(99, seed=7), row_group_size=10)
    monkeypatch.setattr("raytrain.data.prepare.find_prepared", lambda config: store("rows"))
    check_same_data(run, config)
    monkeypatch.setattr("raytrain.data.prepare.find_prepared", lambda config: store("others"))
    with pytest.raises(ConfigError, match="have changed"):
        check_same_data(run, config)


def test_other_rows_are_refused_before_workers_start(run: Storage, config: RunConfig) -> None:
    before = run.read_bytes(DATA)
    with pytest.raises(ConfigError, match="have changed since this run's checkpoint of step 3"):
        record_data(run, config, store("others"))
    assert run.read_bytes(DATA) == before


GARBAGE = (
    b"",
    b"[]",
    b"{",
    b"[" * 200_000,
    b'{"content": "rows"}',
    b'{"content": "rows", "paths": {}, "contents": {"train": 3}, "tokenizer": "t"}',
    b'{"content": "rows", "paths": {}, "contents": {"train": [[]]}, "tokenizer": "t"}',
)


@pytest.mark.parametrize("content", GARBAGE)
def test_a_note_that_is_damaged_is_left_to_the_workers(
    tmp_path: Path, run: Storage, config: RunConfig, content: bytes
) -> None:
    run.write_bytes(DATA, content)
    write_reviews(tmp_path / "data" / "train.parquet", 99, seed=7)
    check_same_data(run, config)


def test_other_weights_to_compare_with_are_refused_by_name(tmp_path: Path, run: Storage) -> None:
    """Their tokenizer and the rows are the same: Ray would start, and all log-probabilities be computed again."""
    folder = tmp_path / "model"
    chat_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    train = write_parquet(tmp_path / "pairs.parquet", [{"prompt": "a", "chosen": "b", "rejected": "c"}])

    def config(loss: str) -> RunConfig:
        raw: dict[str, Any] = {"name": "a", "storage_path": str(tmp_path / "runs"), "model": {"path": str(folder)}}
        task = {"kind": "preference", "loss": loss}
        return RunConfig.model_validate({**raw, "task": task, "data": {"train": {"path": train}}})

    record_data(run, config("dpo"), store("rows"))
    run.write_bytes("checkpoints/step_00000003-0001/manifest.json", b"{}")
    check_same_data(run, config("dpo"))
    (folder / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(ConfigError, match="model holds other weights than when this run's checkpoint of step 3"):
        check_same_data(run, config("dpo"))
    record_data(run, config("orpo"), store("rows"))
    (folder / "model.safetensors").write_bytes(b"no matter")
    check_same_data(run, config("orpo"))
