"""Several runs on one page: what they reached, what their configs differ in, curves over an axis that is fair."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raytrain.cli.main import app
from raytrain.errors import ConfigError
from raytrain.reports.compare import build_comparison, config_differences
from raytrain.reports.compare_plots import Overlay
from raytrain.reports.curves import read_run
from raytrain.storage import Storage

EVIL = "<script>alert(1)</script>"
CONFIG = "name: {name}\nstorage_path: {place}\ntraining:\n  global_batch_size: {batch}\n  precision: bf16\n"


def write_run(folder: Path, accuracy: float = 0.5, batch: int = 8, num_steps: int = 20) -> Storage:
    """A run that has finished, with an evaluation in the middle, which was its best."""
    folder.mkdir(parents=True)
    steps = [
        {"step": i, "epoch": 1, "loss": 1.0 / i, "lr": 1e-4, "grad_norm": 1.0, "samples_seen": batch * i}
        | {"tokens_per_s": 100.0, "step_s": 0.1, "world_size": 1, "attempt": 0}
        for i in range(1, num_steps + 1)
    ]
    best = {"metric": "accuracy", "value": accuracy, "step": 10, "is_saved": True}
    evaluation = {"step": 10, "epoch": 1, "split": "validation", "loss": 0.4, "accuracy": accuracy, "best": best}
    lines: dict[str, list[dict[str, Any]]] = {"metrics.jsonl": steps, "evals.jsonl": [evaluation]}
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(CONFIG.format(name=folder.name, place=folder.parent, batch=batch))
    return Storage(str(folder))


def table(page: str) -> dict[str, list[str]]:
    """First cell -> the others, of all rows of the page's tables."""
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    return {cells[0]: cells[1:] for cells in rows if cells}


def test_two_runs_on_one_page(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.75, batch=16)]
    page = Path(build_comparison(runs, str(tmp_path / "out" / "page.html"))).read_text()
    assert table(page)["best validation accuracy"] == ["0.5000", "0.7500"]
    assert table(page)["training.global_batch_size"] == ["8", "16"]
    assert "training.precision" not in page, "what is equal does not differ"
    assert "http://" not in page and "https://" not in page
    assert page.count('alt="loss"') == page.count('alt="validation accuracy"') == page.count('alt="Gradient norm"') == 1


def test_the_axis_counts_samples_where_batches_differ(tmp_path: Path) -> None:
    records = {name: read_run(write_run(tmp_path / name, batch=8 * len(name))) for name in ("a", "bb")}
    colors = dict.fromkeys(records, "#000000")
    overlay = Overlay(records, colors)
    assert overlay._positions(records["bb"], records["bb"].column("step"))[9] == 160
    alone = Overlay({"a": records["a"]}, colors)
    assert alone._positions(records["a"], records["a"].column("step"))[9] == 10


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / place / EVIL.replace("/", "") / "run") for place in ("a", "b")]
    page = Path(build_comparison(runs, str(tmp_path / "page.html"))).read_text()
    assert "<script>" not in page
    assert "</span>a/&lt;script&gt;alert(1)&lt;script&gt;/run</th>" in page
    assert table(page)["steps"] == ["20", "20"]


def test_a_run_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="given twice"):
        build_comparison([run, Storage(f"{tmp_path}/a/")], str(tmp_path / "page.html"))


def test_runs_that_have_not_begun_are_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    runs = [write_run(tmp_path / "a"), Storage(str(tmp_path / "new"))]
    page = Path(build_comparison(runs, str(tmp_path / "page.html"))).read_text()
    assert table(page)["steps"] == ["20", "0"]


def test_a_field_that_one_config_lacks_differs() -> None:
    """Of the four configs one is torn and one is not written yet."""
    texts = {"a": "x: {y: 1, z: [1]}", "b": "x: {y: true, z: [1]}\nw: null", "c": "{", "d": ""}
    found = dict(config_differences(texts))
    assert config_differences({"a": "x: 1", "b": "x: true"}) == [("x", ["1", "true"])]
    assert found == {"x.y": ["1", "true", "", ""], "x.z": ["[1]", "[1]", "", ""], "w": ["", "null", "", ""]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["SWEEP", "RUN"], "is a sweep, which has a page of its own"),
        (["RUN", "--output", "page.html"], "--output names the page that compares several runs"),
        (["MISSING", "RUN"], "MISSING is not a run's folder"),
    ],
)
def test_what_can_not_be_compared_is_refused(tmp_path: Path, words: list[str], expected: str) -> None:
    write_run(tmp_path / "RUN")
    (tmp_path / "SWEEP").mkdir()
    (tmp_path / "SWEEP" / "sweep.yaml").write_text("config: {}")
    named = [str(tmp_path / word) if word.isupper() else word for word in words]
    error = CliRunner().invoke(app, ["report", *named]).exception
    assert isinstance(error, ConfigError)
    assert expected in str(error)
