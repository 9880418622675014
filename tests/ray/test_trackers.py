"""Trackers of whole runs and sweeps, with the real packages: W&B offline, MLflow's SQLite store, TensorBoard."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb_files
import yaml
from hparams_tab import hparams_tab
from running import (
    kill_all,
    run_cli,
    samples_of_steps,
    start_cli,
    steps_done,
    summary,
    tiny_run,
    wait_until,
    write_config,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow  # tests/unit/test_tracking.py is the quick one

LR = "training.optimizer.learning_rate"
TRACKERS = (
    "tracking.wandb.mode=offline",
    "tracking.mlflow={tracking_uri: 'sqlite:///FOLDER/mlflow.db', experiment: e}",
)


def trackers_in(folder: Path) -> list[str]:
    return [word.replace("FOLDER", str(folder)) for word in TRACKERS]


def mlflow_runs(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The store, and its runs by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    return client, {run.info.run_name: run for run in runs}


def test_a_run_that_was_killed_is_one_run_with_each_step_once(tmp_path: Path) -> None:
    config = write_config(tiny_run(tmp_path, "tracked", *trackers_in(tmp_path), "training.epochs=8"), tmp_path)
    run = tmp_path / "runs" / "tracked"
    process = start_cli("train", config)
    wait_until(lambda: run.exists() and steps_done(run) >= 200, "200 steps")
    kill_all(process)
    code, output = run_cli("train", config)
    assert code == 0, output
    assert "training continues" not in output, "no tracker complains"
    steps = list(range(1, summary(run)["step"] + 1))

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps
    parts = wandb_files.parts_of(run)
    assert len(parts) == 2 and len({wandb_files.run_of(part).run_id for part in parts}) == 1
    rows = [row for part in parts for row in wandb_files.rows_of(part)]
    in_wandb = [row["step"] for row in rows if "train/loss" in row]
    client, runs = mlflow_runs(tmp_path)
    assert list(runs) == ["tracked"] and runs["tracked"].info.status == "FINISHED"
    history = client.get_metric_history(runs["tracked"].info.run_id, "train/loss")
    for found in (in_wandb, [metric.step for metric in history]):
        assert len(found) == len(set(found)), "no step twice"
        assert len(steps) - len(found) < 100, "what a killed process had not sent yet"
        assert set(steps[-100:]) <= set(found)
    assert [row["step"] for row in rows if "test/accuracy" in row] == [summary(run)["best_step"]]
    wait_until(lambda: not services_of(run), "W&B's process ends with the worker", 30)


def services_of(run: Path) -> list[int]:
    """Processes of W&B that still hold a file of the run."""
    found = []
    for process in psutil.process_iter(["name", "pid"]):
        with suppress(psutil.Error):  # that of another test ends meanwhile
            if "wandb" in (process.info["name"] or "") and any(str(run) in file.path for file in process.open_files()):
                found.append(process.info["pid"])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a sweep of three trials, two of which are stopped early, or fail."""
    folder = tmp_path_factory.mktemp("tracked_sweep")
    quick = ("training.epochs=2", "training.eval_every_steps=17", "ray.num_cpus=8")
    space = {
        "parameters": {LR: {"kind": "grid", "values": [4e-3, 1e-7, 1e30]}},
        "scheduler": {"kind": "asha", "grace_steps": 17, "reduction_factor": 2},
        "max_failed": 1.0,
    }
    (folder / "rates.yaml").write_text(yaml.safe_dump({**space, "budget": {"trials": 3}}))
    config = write_config(tiny_run(folder, "tracked", *quick, *trackers_in(folder)), folder)
    code, output = run_cli("tune", config, "--space", str(folder / "rates.yaml"), "--max-concurrent", "1")
    assert code == 0, output
    return folder


def test_the_trials_of_a_sweep_belong_together(folder: Path) -> None:
    sweep = folder / "runs" / "tracked-rates"
    _, runs = mlflow_runs(folder)
    assert set(runs) == {"trial_0000", "trial_0001", "trial_0002"}
    assert {run.data.tags["raytrain.group"] for run in runs.values()} == {"tracked-rates"}
    assert {name: run.info.status for name, run in runs.items()} == {
        "trial_0000": "FINISHED",
        "trial_0001": "KILLED",
        "trial_0002": "FAILED",
    }
    for name in ("trial_0000", "trial_0002"):  # the other one was killed, maybe before its file was written
        run = wandb_files.run_of(wandb_files.parts_of(sweep / "trials" / name)[0])
        assert (run.run_group, run.display_name) == ("tracked-rates", name)


def test_tensorboard_shows_a_row_a_trial(folder: Path) -> None:
    rows = hparams_tab(folder / "runs" / "tracked-rates")
    assert {name: row["values"][LR] for name, row in rows.items()} == {
        "trial_0000": 4e-3,
        "trial_0001": 1e-7,
        "trial_0002": 1e30,
    }
    assert rows["trial_0000"]["metrics"]["best/macro_f1"] > rows["trial_0001"]["metrics"]["best/macro_f1"]
    assert rows["trial_0002"]["status"] == "STATUS_FAILURE"


def test_the_winner_is_trained_on_all_data(folder: Path) -> None:
    """403 samples of train and 37 of validation, for as many steps as the winner took to its best."""
    sweep = folder / "runs" / "tracked-rates"
    code, output = run_cli("train", "--from-sweep", str(sweep), "--all-data", "training.max_steps=55")
    assert code == 0, output
    run = sweep.parent / "tracked-rates-best-all-data"
    first_epoch = [sample for step, ids in samples_of_steps(run).items() if step <= 55 for sample in ids]
    assert sorted(first_epoch) == list(range(440))
    assert "accuracy" in summary(run)["final_metrics"], "the test split is left for the test"
    assert summary(run)["best_metric"] is None
    code, output = run_cli("train", str(folder / "tracked.yaml"), "--all-data")
    assert code == 2 and "--all-data needs --from-sweep" in output
