"""A task from a user's own folder, which is not installed: trained, evaluated, resumed, and refused when it changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from running import committed_steps, run_cli, summary

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_task"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with data of 300 rows, and a frozen layer."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(EXAMPLE / "regression.py", folder)
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=300) for name in "abc"}
    columns["y"] = 50 + 10 * (columns["a"] - 2 * columns["b"])
    (folder / "data").mkdir()
    pq.write_table(pa.table(columns), folder / "data" / "train.parquet")
    with open(folder / "frozen.py", "w") as file:
        file.write(
            "from regression import Regression\n\n\nclass Frozen(Regression):\n"
            "    def build_model(self, *given):\n        model = super().build_model(*given)\n"
            "        model[0].requires_grad_(False)\n        return model\n"
        )
    config: dict[str, Any] = yaml.safe_load((EXAMPLE / "regression.yaml").read_text())
    config["training"] |= {"epochs": 3, "precision": "fp32", "zero_stage": 2}
    config |= {"workers": {"min": 1, "max": 2}, "ray": {"num_cpus": 4}, "checkpoint": {"save_every_steps": 10}}
    config["task"]["target"] = "frozen:Frozen"
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_trained_evaluated_and_resumed(folder: Path) -> None:
    run = folder / "runs" / "regression"
    code, output = run_cli("train", "run.yaml", "training.max_steps=12", "training.epochs=null", cwd=folder)
    assert code == 0, output
    found = summary(run)
    assert found["best_metric"] == "mae" and 0 < found["best_value"] < 50
    names = {key for line in (run / "evals.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert {"loss", "mae", "r2"} <= names
    saved = sum(path.stat().st_size for path in (run / "checkpoints").glob("*/*.safetensors"))
    num_trained, num_all = 16 + 1, 3 * 16 + 16 + 16 + 1
    assert len(committed_steps(run)) * 12 * num_trained < saved < len(committed_steps(run)) * 12 * num_all + 2000
    code, output = run_cli("eval", "runs/regression", "--split", "validation", cwd=folder)
    assert code == 0 and "mae" in output, output


@pytest.mark.slow
def test_what_fails_at_the_same_step_again_is_given_up_on(folder: Path) -> None:
    """An error in a task's loss: the second failure ends the run, long before workers.max_failures. Both are counted
    though no step follows, and the traceback of each is kept."""
    source = "from regression import Regression\n\nclass Bad(Regression):\n    def loss_sum(self, *_):\n        1 / 0\n"
    (folder / "bad.py").write_text(source)
    words = ("name=bad", "task.target=bad:Bad", "workers.max_failures=50", "workers.max=1")
    code, output = run_cli("train", "run.yaml", *words, cwd=folder)
    assert code == 1, output
    assert "step 1 failed 2 times. The first time: worker 0: ZeroDivisionError" in output
    assert "The step's samples are" in output
    found = summary(folder / "runs" / "bad")
    assert (found["status"], found["failure_code"], found["failures"]) == ("failed", "worker_error", 2)
    kept = sorted((folder / "runs" / "bad" / "errors").iterdir())
    assert len(kept) == 2 and all('bad.py", line 5, in loss_sum' in file.read_text() for file in kept)


def test_a_changed_file_is_another_experiment(folder: Path) -> None:
    with open(folder / "frozen.py", "a") as file:
        file.write("\n# another one\n")
    code, output = run_cli("train", "run.yaml", "training.max_steps=12", "training.epochs=null", cwd=folder)
    assert code == 2 and "task.source" in output, output
