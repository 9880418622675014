"""The report is drawn from whatever a run has left so far, and shows user data as text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain.report.curves import read_run, smooth, thin
from raytrain.report.html import build_report
from raytrain.storage import Storage

EVIL = "<script>alert(1)</script>"


def step(number: int, attempt: int = 0, **changes: Any) -> dict[str, Any]:
    row = {"step": number, "epoch": 0, "loss": 1.0 / number, "lr": 1e-4, "grad_norm": 1.0, "loss_scale": None}
    row |= {"skipped_steps": 0, "samples_seen": 8 * number, "tokens_seen": 99 * number, "tokens_per_s": 100.0}
    return row | {"padding": 0.1, "data_wait_s": 0.0, "step_s": 0.1, "world_size": 2, "attempt": attempt} | changes


def write_run(folder: Path, steps: list[dict[str, Any]], **files: str) -> Storage:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return Storage(str(folder))


def evaluation(split: str, number: int) -> str:
    tables = {
        "per_class": {"columns": ["label", "f1"], "rows": [[EVIL, 0.5]]},
        "confusion": {"labels": [EVIL, "b"], "counts": [[3, 1], [0, 4]]},
    }
    row = {"step": number, "epoch": 0, "split": split, "time": 0.0, "loss": 0.4, "accuracy": 0.8125, "tables": tables}
    return json.dumps(row) + "\n"


def test_a_whole_run(tmp_path: Path) -> None:
    summary = {
        "status": "finished",
        "best_value": 0.8125,
        "best_metric": "accuracy",
        "final_metrics": {},
        "message": "",
    }
    run = write_run(
        tmp_path / "run",
        [step(i) for i in range(1, 50)],
        evals_jsonl=evaluation("validation", 20) + evaluation("validation", 40) + evaluation("test", 40),
        events_jsonl=json.dumps({"time": 0.0, "kind": "start", "attempt": 0, "world_size": 2}) + "\n",
        config_yaml=f"name: {EVIL}\n",
        summary_json=json.dumps(summary),
    )
    page = Path(build_report(run)).read_text()
    assert EVIL not in page  # labels and the config are escaped
    assert "0.8125" in page
    assert "http://" not in page
    assert "https://" not in page  # self-contained
    names = {path.stem for path in (tmp_path / "run" / "plots").iterdir()}
    assert {"loss", "learning_rate", "throughput", "padding", "time", "validation", "confusion"} == names


@pytest.mark.parametrize("steps", [[], [step(1)], [step(1, skipped_steps=1, loss_scale=2.0, loss=None)]])
def test_an_unfinished_run(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    assert "running or interrupted" in Path(build_report(write_run(tmp_path / "run", steps))).read_text()


def test_a_redone_step_counts_once_and_a_torn_line_is_skipped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [step(1), step(2, loss=9.0), step(2, attempt=1, loss=0.5), step(3, attempt=1)])
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    record = read_run(run)
    assert record.column("step").tolist() == [1, 2, 3]
    assert record.column("loss")[1] == 0.5


def test_smoothing_and_thinning() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0])
    assert smooth(values, 2).tolist() == [1.0, 2.0, 3.0, 5.0]
    x, y = thin(np.arange(10_000), np.arange(10_000) * 2)
    assert len(x) <= 2000
    assert x[-1] == 9999
    assert (y == 2 * x).all()
