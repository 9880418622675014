"""A config field says once what it is: the lists that resume, calibration, sweeps and paths go by follow from it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from running import tiny_run

from raytrain.config import Affects, Mark, RunConfig
from raytrain.config.fields import affecting, all_fields, declared, is_section, marked
from raytrain.config.io import dump_config
from raytrain.errors import ConfigError
from raytrain.planning.calibration import different_fields
from raytrain.runs.preflight import check_elsewhere, local_paths, resolve
from raytrain.runs.resume import begin_or_resume
from raytrain.storage import Storage
from raytrain.tuning.space.space import Space


def holders(root: type[BaseModel] = RunConfig) -> list[str]:
    """Keys of the fields that have a value themselves: all but the sections that are always there."""
    return [key for key in all_fields(root) if not is_section(key, root)]


def beginning_with(*beginnings: str) -> set[str]:
    return {key for key in holders() if key.startswith(beginnings)}


@pytest.mark.parametrize("key", holders())
def test_every_field_says_what_it_affects(key: str) -> None:
    assert declared(key).affects is not None


def test_no_field_that_the_prepared_data_follow_is_free_at_a_resume() -> None:
    assert all(declared(key).decides_weights for key in affecting(Affects.DATA))


def test_what_may_change_when_a_run_is_resumed() -> None:
    expected = beginning_with("workers.", "checkpoint.", "tracking.", "ray.", "storage_path", "name")
    expected |= beginning_with("training.early_stopping", "training.best_metric", "training.eval_every_")
    expected |= beginning_with("training.gradient_checkpointing", "training.zero_stage", "training.compile")
    expected |= beginning_with("training.communication.bucket_elements", "training.communication.overlap")
    expected |= beginning_with("training.communication.network", "training.communication.environment")
    expected |= beginning_with("data.record_samples", "data.prepared_path")
    expected |= beginning_with("data.max_quarantined", "data.clean.max_dropped")
    expected |= beginning_with("task.sample_")
    assert {key for key in holders() if not declared(key).decides_weights} == expected


def test_what_decides_how_long_a_step_takes() -> None:
    expected = beginning_with("model.", "task.kind", "data.max_length", "data.group_by_length", "workers.cpus")
    expected |= beginning_with("training.global_batch_size", "training.micro_batch_size", "training.precision")
    expected |= beginning_with("training.gradient_checkpointing", "training.zero_stage", "training.deepspeed")
    expected |= beginning_with(
        "training.exactness", "training.ema_decay", "training.packing", "training.compile", "task.cut"
    )
    expected |= {"task.target", "task.args", "task.source"}
    expected |= {f"training.optimizer.{name}" for name in ("target", "args", "source")}
    # How gradients travel, whether samples are joined, and how fast batches come decide it as well.
    expected |= beginning_with("training.communication.", "task.document_context", "workers.data_cpus")
    expected -= {"model.adapter.alpha", "model.adapter.rslora"}  # a factor
    assert {key for key in holders() if declared(key).decides_step_time} == expected


def test_what_all_trials_of_a_sweep_share() -> None:
    expected = beginning_with("name", "storage_path", "workers.", "ray.", "tracking.", "checkpoint.")
    expected |= {"training.exactness"}
    assert {*marked(Mark.SHARED)} == expected | beginning_with("data.prepared_path", "training.communication.")


def test_what_a_population_may_change() -> None:
    expected = beginning_with("training.optimizer.", "training.schedule.", "training.gradient_clipping")
    expected -= {f"training.optimizer.{name}" for name in ("target", "args", "source")}
    expected -= {"training.schedule.target", "training.schedule.source"}
    assert {*marked(Mark.MID_RUN)} == expected | {"training.dropout"}


def test_what_a_sweep_may_be_given_more_of() -> None:
    assert marked(Mark.MID_RUN, Space) == ["budget.trials", "budget.steps", "budget.hours", "max_failed"]


def test_what_the_fingerprint_of_prepared_data_takes() -> None:
    # When samples are read, or of the loss.
    drawn = {"task.mask_fraction", "task.whole_words", "task.random_flip", "task.random_crop", "task.beta"}
    expected = beginning_with("task.") - drawn - {"task.loss", "task.metrics", "task.sources"}
    expected -= beginning_with("task.sample_")
    expected |= {"data.max_length", "data.on_error", "data.validation.fraction"}
    expected |= {"data.validation.group_column", "data.validation.stratify", *beginning_with("data.dedup.")}
    expected |= beginning_with("data.clean") - {"data.clean.max_dropped"}
    expected |= {"data.balance.by"}
    assert {*affecting(Affects.DATA)} == expected


def test_what_needs_a_validation_split() -> None:
    expected = beginning_with("training.early_stopping", "training.eval_every_", "training.best_metric")
    assert {*affecting(Affects.EVALUATION)} == expected


def test_what_names_a_path() -> None:
    splits = {f"data.{split}.path" for split in ("train", "validation", "test")}
    assert {*marked(Mark.PATH)} == splits | {
        *("data.train.sources", "storage_path", "data.prepared_path", "task.image_folder")
    }
    assert marked(Mark.PATH_OR_HUB_ID) == ["model.path", "model.tokenizer"]
    assert marked(Mark.DATABASE) == ["tracking.mlflow.tracking_uri"]


def test_a_key_below_a_mapping_is_that_fields() -> None:
    assert declared("training.deepspeed.zero_optimization.stage") == declared("training.deepspeed")
    assert declared("model.config.hidden_size").decides_weights
    assert declared("training.communication.environment.NCCL_DEBUG").marks == {Mark.SHARED}
    assert declared("gone.since").decides_weights, "what nobody knows any more is taken to matter"


def test_paths_of_all_kinds_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    given = ["storage_path=out", "data.train.path=[a.csv, 's3://b/c.csv']", "data.prepared_path=~/cache"]
    given += ["model.tokenizer=encoder", "tracking.mlflow.tracking_uri=sqlite:///runs.db"]
    config = resolve(tiny_run(tmp_path, "a", *given))
    assert config.storage_path == f"{tmp_path}/out"
    assert config.data.train.path == [f"{tmp_path}/a.csv", "s3://b/c.csv"]
    assert config.data.prepared_path == str(Path("~/cache").expanduser())
    assert config.model.tokenizer == f"{tmp_path}/encoder"
    assert config.tracking.mlflow is not None
    assert config.tracking.mlflow.tracking_uri == f"sqlite:///{tmp_path}/runs.db"
    assert resolve(tiny_run(tmp_path, "a", "model.tokenizer=org/name")).model.tokenizer == "org/name"
    assert ("data.train.path", f"{tmp_path}/a.csv") in local_paths(config)


def test_paths_of_sources_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = "[{path: a.csv, weight: 2}, {path: [b.jsonl, 's3://b/c.csv'], weight: 1, encoding: cp1252}]"
    given = tiny_run(tmp_path, "a", "data.train.path=null", f"data.train.sources={written}")
    resolved = resolve(given).data.train
    assert resolved.sources is not None
    assert [source.path for source in resolved.sources] == [
        f"{tmp_path}/a.csv",
        [f"{tmp_path}/b.jsonl", "s3://b/c.csv"],
    ]
    assert (resolved.weights, resolved.sources[1].encoding) == ([2, 1], "cp1252")
    assert [path for key, path in local_paths(given) if key == "data.train.sources"] == ["a.csv", "b.jsonl"]
    with pytest.raises(ConfigError) as caught:
        check_elsewhere(given)
    assert "  data.train.sources: b.jsonl\n" in str(caught.value)
    suggested = str(caught.value).rpartition("if the nodes do share this folder: ")[2]
    again = resolve(tiny_run(tmp_path, "a", "data.train.path=null", suggested)).data.train
    assert again.sources == resolved.sources, "what is suggested can be typed"


def test_a_relative_database_is_no_place_for_a_submitted_run(tmp_path: Path) -> None:
    """It would be made in the job's own folder, which goes with the job."""
    config = resolve(tiny_run(tmp_path, "a"))
    check_elsewhere(config)
    raw = {
        **config.model_dump(mode="json", exclude_unset=True),
        "tracking": {"mlflow": {"tracking_uri": "sqlite:///r"}},
    }
    with pytest.raises(ConfigError, match=r"tracking\.mlflow\.tracking_uri: sqlite:///r\n"):
        check_elsewhere(RunConfig.model_validate(raw))


def with_checkpoint(config: RunConfig) -> Storage:
    """The folder of a run that has saved something."""
    run = Storage(config.storage_path).at(config.name)
    run.write_bytes("config.yaml", dump_config(config).encode())
    run.write_bytes("checkpoints/step_00000005-0001/manifest.json", b"{}")
    return run


@pytest.mark.parametrize(
    ("override", "is_refused"),
    [
        ("training.optimizer.learning_rate=1", True),
        ("data.max_length=16", True),
        ("data.train.format=csv", True),
        ("training.communication.dtype=bf16", True),
        ("training.micro_batch_size=1", True),
        ("workers.max=2", False),
        ("tracking.wandb={}", False),
        ("training.best_metric=accuracy", False),
    ],
)
def test_a_resume_goes_by_what_fields_affect(tmp_path: Path, override: str, is_refused: bool) -> None:
    run = with_checkpoint(tiny_run(tmp_path, "a"))
    changed = tiny_run(tmp_path, "a", override)
    if not is_refused:
        begin_or_resume(run, changed, overwrite=False)
        return
    with pytest.raises(ConfigError, match="so it can't be resumed") as caught:
        begin_or_resume(run, changed, overwrite=False)
    assert f"  {override.partition('=')[0]}: was " in str(caught.value)
    allowed: Any = (override.partition("=")[0],)
    begin_or_resume(run, changed, overwrite=False, may_change=allowed)


def test_a_calibration_goes_by_what_fields_affect(tmp_path: Path) -> None:
    one = tiny_run(tmp_path, "a")
    other = tiny_run(tmp_path, "b", "training.communication.overlap=true", "training.optimizer.beta1=0.5", "seed=3")
    assert different_fields(one, other) == ["training.communication.overlap"]
