"""A command on its way to a cluster: checked here, its config sent as data, and nothing in it of this machine."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from running import run_cli, tiny_run, write_config

from raytrain.config.io import parse_config
from raytrain.errors import ConfigError
from raytrain.launch.request import Request, make_request
from raytrain.launch.server import Job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("request")


def request_of(command: str, **params: Any) -> Request:
    given = {"config": "", "overrides": None, "from_sweep": None, "overwrite": False, "trials": None, "run": ""}
    return make_request(
        command,
        {
            **given,
            "all_data": False,
            "trial": None,
            "max_concurrent": None,
            "space": "lr_asha",
            "split": "test",
            **params,
        },
    )


def test_the_config_is_sent_with_its_overrides(folder: Path) -> None:
    config = tiny_run(folder, "one", "ray.address=10.0.0.1:6379")
    request = request_of("train", config=write_config(config, folder), overrides=["seed=7"], overwrite=True)
    assert request.words == ["train", "raytrain_job/config.yaml", "--overwrite"]
    sent = yaml.safe_load(request.files["raytrain_job/config.yaml"])
    assert parse_config(sent) == tiny_run(folder, "one", "seed=7", "ray={}")
    assert request.run == str(folder / "runs" / "one")
    assert str(folder / "data" / "train.parquet") in request.data_paths


def test_a_space_is_sent_under_its_name(folder: Path) -> None:
    config = write_config(tiny_run(folder, "swept"), folder)
    request = request_of("tune", config=config, space="lr_asha", trials=3)
    assert request.words == [
        "tune",
        "raytrain_job/config.yaml",
        "--space",
        "raytrain_job/lr_asha.yaml",
        "--trials",
        "3",
    ]
    assert yaml.safe_load(request.files["raytrain_job/lr_asha.yaml"])["scheduler"]["kind"] == "asha"
    assert request.run == str(folder / "runs" / "swept-lr_asha")


def test_the_doctor_goes_where_the_run_would(folder: Path) -> None:
    given = {"address": None, "storage": "/mnt/runs", "json": True}
    assert request_of("doctor", **given).words == ["doctor", "--storage", "/mnt/runs", "--json"]
    config = write_config(tiny_run(folder, "ill"), folder)
    request = request_of("doctor", config=config, **given)
    assert request.words == ["doctor", "raytrain_job/config.yaml", "--storage", "/mnt/runs", "--json"]
    assert not request.writes  # it may look while the run trains
    with pytest.raises(ConfigError, match="omit its own --address"):
        request_of("doctor", **{**given, "address": "10.0.0.1:6379"})


def test_runs_and_sweeps_are_named_by_their_folder(folder: Path) -> None:
    assert request_of("resume", run="s3://b/runs/x/", overrides=["workers.max=2"]) == Request(
        ["resume", "s3://b/runs/x", "workers.max=2", "ray.address=null"], "s3://b/runs/x"
    )
    evaluation = request_of("eval", run="/mnt/runs/x", split="validation")
    assert evaluation.words == ["eval", "/mnt/runs/x", "--split", "validation"]
    assert not evaluation.writes
    words = request_of("train", from_sweep="/mnt/s", config="seed=1").words
    assert words == ["train", "--from-sweep", "/mnt/s", "seed=1", "ray.address=null"]
    other = request_of("train", from_sweep="/mnt/s", trial="trial_0003")
    assert (other.words[:5], other.run) == (
        ["train", "--from-sweep", "/mnt/s", "--trial", "trial_0003"],
        "/mnt/s-trial_0003",
    )
    winner = request_of("train", from_sweep="/mnt/s", all_data=True)
    assert winner.words == ["train", "--from-sweep", "/mnt/s", "--all-data", "ray.address=null"]
    assert winner.run == "/mnt/s-best-all-data"
    with pytest.raises(ConfigError, match="--all-data needs --from-sweep"):
        request_of("train", config="any.yaml", all_data=True)
    with pytest.raises(ConfigError, match="RUN runs/x: a path relative to"):
        request_of("resume", run="runs/x")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "CONFIG", "training.epoch=3"], "did you mean training.epochs"),
        (["train", "CONFIG", "training.best_metric=acuracy"], "did you mean accuracy"),
        (["train", "CONFIG", "training.deepspeed={train_batch_size: 4}"], "training.deepspeed.train_batch_size"),
        (["train", "CONFIG", "storage_path=runs"], "  storage_path: runs\nGive the absolute paths"),
        (["train", "CONFIG", "data.train.path=~/x.parquet"], "  data.train.path: ~/x.parquet\n"),
        (["train", "CONFIG", "--overwite"], "No such option: --overwite"),
        (["tune", "CONFIG", "--space", "lr_ash"], "did you mean lr_asha"),
        (["tune", "CONFIG", "data.validation=null"], "set data.validation"),
        (["plan", "CONFIG"], "allowed after --: train, tune, resume, eval, doctor"),
        (["trian", "CONFIG"], "allowed after --: train, tune, resume, eval, doctor"),
        (["train"], "train needs a CONFIG"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(folder: Path, words: list[str], expected: str) -> None:
    config = write_config(tiny_run(folder, "bad"), folder)
    code, output = run_cli("submit", "--", *(config if word == "CONFIG" else word for word in words))
    assert code == 2, output
    assert expected in output
    assert "Traceback" not in output


def test_a_run_inside_the_jobs_own_folder_is_refused(folder: Path) -> None:
    """A plain `ray job submit --working-dir .` with a relative storage_path: Ray deletes it after the job."""
    place = folder / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    place.mkdir(parents=True)
    code, output = run_cli("train", write_config(tiny_run(folder, "lost", "storage_path=runs"), folder), cwd=place)
    assert code == 2, output
    assert "is in the job's own folder, which Ray deletes" in output


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("head:8265", "--address head:8265: give the job server's URL"),
        ("http://127.0.0.1:9", "no job server answers at http://127.0.0.1:9 ("),
    ],
)
def test_an_address_where_nobody_is(address: str, expected: str) -> None:
    code, output = run_cli("jobs", "list", "--address", address)
    assert code == 2, output
    assert expected in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("status", "driver", "message", "code", "words"),
    [
        ("SUCCEEDED", 0, "", 0, "is done"),
        ("STOPPED", None, "", 1, "resumes from the run's newest checkpoint"),
        ("FAILED", 2, "error: ...", 2, "failed with exit code 2"),
        ("FAILED", 1, "python: No module named raytrain", 1, "the cluster's `python` has no raytrain"),
        ("FAILED", 127, "sh: 1: python: not found", 1, "the cluster's `python` has no raytrain"),
        ("FAILED", -9, "", 1, "killed by signal 9"),
        ("FAILED", 137, "", 1, "killed by signal 9"),
        ("FAILED", None, "Unexpected error occurred: The actor died", 1, "was lost: Unexpected error"),
    ],
)
def test_only_success_is_success(status: str, driver: int | None, message: str, code: int, words: str) -> None:
    job = Job("x", status, "", "", message, driver, 0.0, 1.0)
    assert job.exit_code == code
    assert words in job.end_in_words()
