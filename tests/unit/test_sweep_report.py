"""The page of a sweep: what the winner changed comes first, and every trial keeps its time. No Ray."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain.config.io import parse_config
from raytrain.storage import Storage
from raytrain.tuning.plots import trial_colors
from raytrain.tuning.report import build_sweep_report, segments_of
from raytrain.tuning.trials import TrialTable

LR, DROPOUT = "training.optimizer.learning_rate", "training.dropout"
SPACE = {
    "parameters": {
        LR: {"kind": "loguniform", "low": 1e-5, "high": 1e-2},
        DROPOUT: {"kind": "uniform", "low": 0.0, "high": 0.5},
    },
    "scheduler": {"kind": "asha", "grace_steps": 10, "reduction_factor": 2},
    "budget": {"trials": 4},
}


def write_lines(folder: Path, **files: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def begin(began_s: float, attempt: int = 0, workers: int = 2, kind: str = "begin") -> dict[str, Any]:
    """The line of a group's first step, which is done two seconds after the group has its workers."""
    moments = {"time": began_s + 2.0, "started_at_s": began_s, "left_at_s": began_s}
    return {"kind": kind, "attempt": attempt, "world_size": workers, **moments}


def steps(count: int, attempt: int = 0, **seconds: float) -> list[dict[str, Any]]:
    parts = {"step_s": 1.0, "checkpoint_s": 0.0, "evaluation_s": 0.0, **seconds}
    return [{"step": i, "attempt": attempt, **parts} for i in range(1, count + 1)]


def finish(time_s: float, attempt: int = 0) -> dict[str, Any]:
    return {"kind": "finish", "attempt": attempt, "time": time_s}


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    """Four trials of which two were stopped by the scheduler; the third is the best."""
    folder = tmp_path / "swept"
    raw = {
        "name": "swept",
        "storage_path": str(tmp_path),
        "task": {"kind": "sequence_classification"},
        "model": {"path": "model"},
        "data": {"train": {"path": "train.parquet"}, "validation": {"fraction": 0.1}},
        "training": {"epochs": 1, "dropout": 0.1, "optimizer": {"learning_rate": 1e-4}},
    }
    config = parse_config(raw).model_dump(mode="json", exclude_unset=True)
    folder.mkdir()
    sweep = {"config": config, "space": SPACE, "compares": {"metric": "accuracy", "mode": "max"}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    table = TrialTable(Storage(str(folder)), "max")
    for index, (rate, best, status) in enumerate(
        [(1e-5, 0.5, "pruned"), (1e-3, 0.7, "finished"), (3e-3, 0.9, "finished"), (1e-2, 0.4, "pruned")]
    ):
        name = f"trial_{index:04d}"
        table.add(name, {LR: rate, DROPOUT: 0.1})
        for step in (10, 20, 40) if status == "finished" else (10,):
            table.evaluated(name, step, best - 1 / (step + 1), step // 10)
        table.update(name, status=status)
        end = [finish(100.0 * index + 45)] if status == "finished" else []
        write_lines(folder / "trials" / name, events=[begin(100.0 * index), *end], metrics=steps(31))
    return Storage(str(folder))


def test_a_stopped_trial_keeps_its_time(tmp_path: Path) -> None:
    """The scheduler ends it without a last event: it was drawn as if it had ended with its first step."""
    write_lines(tmp_path, events=[begin(1000.0)], metrics=steps(30))
    assert segments_of(Storage(str(tmp_path)), "a") == [("a", 1000.0, 1031.0, 2)]
    write_lines(tmp_path, metrics=steps(30, evaluation_s=0.5))
    assert segments_of(Storage(str(tmp_path)), "a") == [("a", 1000.0, 1045.5, 2)]
    write_lines(tmp_path, evals=[{"step": 30, "attempt": 0, "time": 1050.0}])
    assert segments_of(Storage(str(tmp_path)), "a") == [("a", 1000.0, 1050.0, 2)]


def test_groups_of_a_trial_follow_each_other(tmp_path: Path) -> None:
    """The second group's workers are there before the first one has said its last word."""
    events = [begin(1000.0), begin(1010.0, attempt=1, workers=4, kind="resize"), finish(1012.0), finish(1030.0, 1)]
    write_lines(tmp_path, events=events, metrics=[*steps(5), *steps(5, attempt=1)])
    segments = segments_of(Storage(str(tmp_path)), "a")
    assert segments == [("a", 1000.0, 1010.0, 2), ("a", 1010.0, 1030.0, 4)]


def test_worker_hours_are_those_of_all_trials(root: Storage) -> None:
    page = Path(build_sweep_report(root)).read_text()
    hours = 2 * (32 + 45 + 45 + 32) / 3600
    assert f"<b>{hours:.2f}</b><span>worker-hours" in page
    assert page.count("<td>64.0</td>") == 2 and page.count("<td>90.0</td>") == 2


def test_what_the_winner_changed_comes_first(root: Storage) -> None:
    page = Path(build_sweep_report(root)).read_text()
    assert f"<td>{LR}</td><td>0.0001</td><td><b>0.003</b></td>" in page
    first = page[: page.index("<h2>Trials</h2>")]
    assert LR in first
    assert DROPOUT not in first, "the winner has the config's own value"
    assert "<details><summary>The winner's config" in page, "folded"


def test_a_trial_has_a_color_and_the_winner_is_marked(root: Storage) -> None:
    page = Path(build_sweep_report(root)).read_text()
    swatches = re.findall(r'style="background: (#[0-9a-f]{6})"></span>(trial_\d+)', page)
    assert len({color for color, _ in swatches}) == len({name for _, name in swatches}) == 4
    (winner,) = re.findall(r'<tr class="best"><td>.*?(trial_\d+)', page)
    assert winner == "trial_0002"


@pytest.mark.parametrize("num_trials", [1, 20, 21, 300])
def test_no_two_trials_have_one_color(num_trials: int) -> None:
    colors = trial_colors([f"trial_{index:04d}" for index in range(num_trials)])
    assert len(set(colors.values())) >= min(num_trials, 200)


def test_a_sweep_without_an_evaluation_has_a_page(root: Storage) -> None:
    for trial in root.list_names("trials"):
        root.delete(f"trials/{trial}")
    page = Path(build_sweep_report(root)).read_text()
    assert "running or interrupted" in page and "What the winner changed" not in page


def test_a_sweep_of_few_trials_has_no_empty_figures(root: Storage) -> None:
    """One trial has nothing to be compared with; without an evaluation there is nothing to draw."""

    def figures(*kept: str) -> set[str]:
        table = TrialTable(root, "max")
        for name in table.rows:
            table.update(name, status="running")
            if name not in kept:
                table.update(name, history=[], best_value=None, best_step=None, status="failed")
        page = Path(build_sweep_report(root)).read_text()
        return set(re.findall(r'<img[^>]*alt="(\w+)"', page))

    assert figures("trial_0001", "trial_0002") >= {"trials", "values", "workers"}
    assert figures("trial_0001") & {"trials", "values"} == {"trials"}
    assert not figures() & {"trials", "values"}
