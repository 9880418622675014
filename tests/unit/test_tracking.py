"""Trackers: the real ones, through a crash and a change of the worker group, and without a network."""

import importlib
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb_files
from running import tiny_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError
from raytrain.runs.preflight import check
from raytrain.steps.batches import World
from raytrain.storage import Storage
from raytrain.tasks.base import Metrics
from raytrain.tracking import sender, trackers
from raytrain.tracking.base import RefusedError, Row, TrackedRun
from raytrain.tracking.sender import Sender
from raytrain.tracking.trackers import Trackers, check_trackers, conclude
from raytrain.training.records import read_jsonl
from raytrain.training.run_log import EVALS, EVENTS, METRICS, RunLog

ALL = (
    "tracking.wandb={mode: offline, project: p, group: g, tags: [t]}",
    "tracking.mlflow={tracking_uri: 'sqlite:///FOLDER/mlflow.db', experiment: e, group: g}",
)


def config_of(folder: Path, *overrides: str) -> RunConfig:
    raw = {
        "name": "tracked",
        "storage_path": str(folder),
        "task": {"kind": "sequence_classification"},
        "model": {"config": {"model_type": "bert"}, "tokenizer": "t"},
        "data": {"train": {"path": "x.parquet"}},
    }
    config = parse_config(raw, [override.replace("FOLDER", str(folder)) for override in overrides])
    # A config with a credential is refused; should one come in by another way, it goes no further.
    model = config.model.model_copy(update={"config": {"model_type": "bert", "api_key": "hush"}})
    return config.model_copy(update={"model": model})


def write_group(config: RunConfig, attempt: int, steps: range, evaluated: int, status: str) -> Storage:
    """What rank 0 of a worker group writes: a row a step, and an evaluation after one of them."""
    run = Storage(config.storage_path).at(config.name)
    log = RunLog(run, World(0, 1), attempt, trackers=Trackers(TrackedRun(run, config)), record_samples=False)
    for step in steps:
        log.step({"step": step, "loss": 10.0 * attempt + step, "loss_scale": None, "lr": 0.1})
        if step == evaluated:
            log.evaluation(step, 0, "validation", Metrics({"accuracy": 0.5 + attempt}, {}))
    if status == "finished":
        log.evaluation(2, 0, "test", Metrics({"accuracy": 0.7}, {}))  # of the best model, which was that of step 2
    log.close(status)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of steps 1 to 8 by three groups: the first one's steps 4 and 5 are done again by the second."""
    folder = tmp_path_factory.mktemp("tracked")
    config = config_of(folder, *ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers, "LEAVE_WAIT_S", 120.0)  # what takes long here is the import
        patch.setattr(trackers, "END_WAIT_S", 120.0)
        return write_run(folder, config)


def write_run(folder: Path, config: RunConfig) -> Path:
    write_group(config, 0, range(1, 6), 4, "stopped")
    write_group(config, 1, range(4, 7), 4, "stopped")
    more_workers = config_of(folder, *ALL, "workers.max=2")  # as a resume may have them
    run = write_group(more_workers, 2, range(7, 9), 8, "finished")
    assert [row for row in read_jsonl(run, EVENTS) if row["kind"] == "tracker"] == []
    assert len(read_jsonl(run, METRICS)) == 10
    return folder


def test_tensorboard_shows_the_last_attempt_of_a_step(folder: Path) -> None:
    events = EventAccumulator(str(folder / "tracked" / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 1), (2, 2), (3, 3), (4, 14), (5, 15), (6, 16), (7, 27), (8, 28)]
    assert [(event.step, event.value) for event in events.Scalars("validation/accuracy")] == [(4, 1.5), (8, 2.5)]
    assert [event.step for event in events.Scalars("test/accuracy")] == [2]


def test_wandb_is_one_run_with_each_step_once(folder: Path) -> None:
    parts = wandb_files.parts_of(folder / "tracked")
    runs = [wandb_files.run_of(part) for part in parts]
    assert len({run.run_id for run in runs}) == 1 and len(runs) == 3
    assert (runs[0].project, runs[0].run_group, list(runs[0].tags), runs[0].display_name) == (
        "p",
        "g",
        ["t"],
        "tracked",
    )
    rows = [row for part in parts for row in wandb_files.rows_of(part)]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [4, 8]
    assert [row["step"] for row in rows if "test/accuracy" in row] == [2], "a step that goes back is taken"


def mlflow_run(folder: Path, experiment: str = "e") -> tuple[Any, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def test_mlflow_is_one_run_with_each_step_once(folder: Path) -> None:
    client, run = mlflow_run(folder)
    assert (run.info.run_name, run.info.status, run.data.tags["raytrain.group"]) == ("tracked", "FINISHED", "g")
    losses = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss"))
    assert losses == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 16), (7, 27), (8, 28)]
    accuracies = client.get_metric_history(run.info.run_id, "validation/accuracy")
    assert sorted(metric.step for metric in accuracies) == [4, 8]


def test_a_run_whose_workers_are_gone_is_not_left_running(folder: Path) -> None:
    database = f"tracking.mlflow={{tracking_uri: 'sqlite:///{folder}/mlflow.db', experiment: gone}}"
    config = config_of(folder, "name=gone", database, "tracking.wandb.mode=offline", "tracking.tensorboard=false")
    run = TrackedRun(Storage(str(folder)).at("gone"), config)
    conclude(run, "failed")
    assert not run.folder.exists(), "no tracker has been told of it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers, "LEAVE_WAIT_S", 120.0)
        write_group(config, 0, range(1, 3), 0, "stopped")
    assert mlflow_run(folder, "gone")[1].info.status == "RUNNING"
    conclude(run, "killed")
    assert mlflow_run(folder, "gone")[1].info.status == "KILLED"
    assert len(wandb_files.parts_of(folder / "gone")) == 1, "its files have nobody to be told"


def test_the_config_goes_along_without_secrets(folder: Path) -> None:
    _, run = mlflow_run(folder)
    assert run.data.params["training.global_batch_size"] == "32"
    assert run.data.params["model.tokenizer"] == "t"
    part = wandb_files.parts_of(folder / "tracked")[0]
    settings = {item.key: item.value_json for item in wandb_files.run_of(part).config.update}
    assert settings["training.global_batch_size"] == "32"
    everything = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert everything and not any(b"hush" in content for content in everything)


def test_another_run_is_another_run(tmp_path: Path) -> None:
    """Begun anew, a run is none that a tracker knows."""
    run = TrackedRun(Storage(str(tmp_path / "run")), config_of(tmp_path))
    first = run.read_id()
    assert run.read_id() == first
    run.folder.delete("tracking.json")
    assert run.read_id() != first


def test_a_server_that_is_down_neither_fails_nor_stalls_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = config_of(tmp_path, "tracking.mlflow.tracking_uri=http://127.0.0.1:9")
    log_of = [write_group(config, attempt, range(1 + 3 * attempt, 4 + 3 * attempt), 2, "stopped") for attempt in (0, 1)]
    run = log_of[0]
    assert len(read_jsonl(run, METRICS)) == 6 and len(read_jsonl(run, EVALS)) == 1
    events = [row for row in read_jsonl(run, EVENTS) if row["kind"] == "tracker"]
    assert [(row["tracker"], row["attempt"]) for row in events] == [("mlflow", 0), ("mlflow", 1)], "said once a group"
    assert "127.0.0.1" in events[0]["reason"]


class Refusing(BaseHTTPRequestHandler):
    """A server that wants credentials."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_missing_credentials_are_told_with_the_variable(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where W&B looks for .netrc
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        section = "{}" if tracker == "wandb" else f"{{tracking_uri: 'http://127.0.0.1:{server.server_port}'}}"
        config = config_of(tmp_path, f"tracking.{tracker}={section}")
        with pytest.raises(RefusedError) as caught:
            trackers.openers(TrackedRun(Storage(str(tmp_path)), config))[tracker](Row(1, 0.0, {}, False))
        server.shutdown()
    reason = sender.reason_of(caught.value)
    assert {"wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_TOKEN"}[tracker] in reason
    assert "on every node before Ray is started there" in reason


class Stuck:
    """A tracker that takes nothing until it is let."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.steps: list[int] = []
        self.status = ""

    def log(self, rows: list[Row]) -> None:
        self.may_go_on.wait()
        self.steps += [row.step for row in rows]

    def close(self, status: str) -> None:
        self.status = status


def test_a_stuck_tracker_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "MOST_ROWS", 5)
    stuck, behind = Stuck(), Sender("stuck", "run", lambda first: stuck)
    for step in range(1, 50):
        behind.log(Row(step, 0.0, {}, False))
    behind.close("stopped")
    assert not behind.wait(0.01)
    assert "takes values too slowly" in (behind.take_complaint() or "")
    assert behind.take_complaint() is None, "said once"
    follower = Stuck()
    follower.may_go_on.set()
    after = Sender("stuck", "run", lambda first: follower)  # the next group's, in the same process
    after.log(Row(50, 0.0, {}, False))
    after.close("finished")
    assert not follower.steps, "the one before is still sending, and two writers would be in each other's way"
    stuck.may_go_on.set()
    assert after.wait(60)
    assert (follower.steps, follower.status, stuck.status) == ([50], "finished", "stopped")
    assert stuck.steps == sorted(stuck.steps) and stuck.steps[0] == 1


def test_one_that_opens_late_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "RETRY_S", 0.01)
    late, tries = Stuck(), iter((True, True, False))
    late.may_go_on.set()

    def open_late(first: Row) -> Stuck:
        if next(tries):
            raise OSError("no network")
        return late

    tried = Sender("late", "run", open_late)
    tried.log(Row(1, 0.0, {}, False))
    tried.log(Row(2, 0.0, {}, False))
    deadline_s = time.monotonic() + 60
    while late.steps != [1, 2] and time.monotonic() < deadline_s:
        time.sleep(0.01)
    tried.close("finished")
    assert tried.wait(60)
    assert late.steps == [1, 2]
    assert tried.take_complaint() == "OSError: no network"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = "tracking.wandb={}" if name == "wandb" else "tracking.mlflow.tracking_uri=http://host:5000"
    config = tiny_run(tmp_path, "tracked", section)
    check(config)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"tracking\.{name}: .* pip install 'raytrain\[{name}\]'"):
        check(config)
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / name).mkdir()  # as W&B leaves one in the folder in which it is used
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="not installed"):
        check_trackers(config)


def test_offline_files_need_a_folder(tmp_path: Path) -> None:
    config = config_of(tmp_path, "tracking.wandb.mode=offline").model_copy(update={"storage_path": "gs://bucket/runs"})
    with pytest.raises(ConfigError, match="tracking.wandb.mode offline"):
        check_trackers(config)


def test_workers_find_a_database_that_is_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = check(tiny_run(tmp_path, "tracked", "tracking.mlflow.tracking_uri=sqlite:///mlflow.db")).config
    assert config.tracking.mlflow is not None
    assert config.tracking.mlflow.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("uri", ["https://me:hush@host/", "postgresql+psycopg2://me:hush@host/mlflow"])
def test_a_password_is_no_part_of_a_config(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        config_of(tmp_path, f"tracking.mlflow.tracking_uri={uri}")
    assert "hush" not in str(caught.value)
