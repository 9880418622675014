"""The report is drawn from whatever a run has left so far, and shows user data as text."""

import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from raytrain.reports import plots
from raytrain.reports.curves import read_run, smooth, thin
from raytrain.reports.html import build_report
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
    assert record.num_redone == 1
    assert record.restarts() == [2]
    page = Path(build_report(run)).read_text()
    assert "<b>1</b><span>steps redone after restarts" in page
    assert "A dotted line" in page


def test_of_an_evaluation_that_was_redone_the_last_is_shown(tmp_path: Path) -> None:
    first = evaluation("validation", 10)
    run = write_run(tmp_path / "run", [step(1)], evals_jsonl=first + first.replace("0.8125", "0.7375"))
    page = Path(build_report(run)).read_text()
    assert "0.7375" in page
    assert "0.8125" not in page
    assert "redone" not in page


def test_a_torn_last_line_of_any_file_is_skipped(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        [step(1)],
        evals_jsonl=evaluation("validation", 1).replace('"epoch": 0', '"epoch": null') + '{"step": 2, "spl',
        events_jsonl='{"kind": "start"}\n{"time": 1.0, "ki',
    )
    page = Path(build_report(run)).read_text()
    assert "Events (1)" in page
    assert "0.8125" in page


def test_an_fp16_run_on_changing_workers_has_their_figures(tmp_path: Path) -> None:
    build_report(write_run(tmp_path / "run", [step(i, loss_scale=2.0**i, world_size=1 + i // 3) for i in range(1, 6)]))
    assert {"loss_scale", "world_size"} <= {path.stem for path in (tmp_path / "run" / "plots").iterdir()}


def test_smoothing_and_thinning() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0])
    assert smooth(values, 2).tolist() == [1.0, 2.0, 3.0, 5.0]
    x, y = thin(np.arange(10_000), np.arange(10_000) * 2)
    assert len(x) <= 2000
    assert x[-1] == 9999
    assert (y == 2 * x).all()


def test_the_last_evaluation_of_a_step_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [step(1)], evals_jsonl=evaluation("validation", 20) * 2 + evaluation("test", 20))
    assert [(row["split"], row["step"]) for row in read_run(run).evaluations] == [("validation", 20), ("test", 20)]


NULLS = {"split": "validation", "loss": None, "f1": None, "tables": {}}
LABELS = [EVIL, "$\\frac{$", "\u5065\u5eb7", "a\nb\x00", "\ud800", "x" * 300]


@pytest.mark.parametrize("num_labels", [6, 40])
def test_any_label_can_be_drawn(tmp_path: Path, num_labels: int) -> None:
    """Labels are the user's: markup, formulas, other scripts, control characters, half a surrogate pair, a novel."""
    labels = (LABELS * 7)[:num_labels]
    counts = np.full((num_labels, num_labels), 2).tolist()
    table = {"columns": ["label", "f1"], "rows": [[label, 0.5] for label in labels]}
    tables = {"per_class": table, "confusion": {"labels": labels, "counts": counts}}
    row = {"step": 1, "epoch": 0, "split": "test", "time": 0.0, "accuracy": 0.5, "tables": tables}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Path(build_report(write_run(tmp_path / "run", [step(1)], evals_jsonl=json.dumps(row)))).read_text()
    assert EVIL not in page
    assert page.count("&lt;script&gt;") >= num_labels // 6
    assert ('class="heat' in page) == (num_labels <= 30)  # more classes than that are a picture
    assert ('alt="confusion matrix"' in page) == (num_labels > 30)


def test_the_heat_map_has_truth_in_rows(tmp_path: Path) -> None:
    page = Path(build_report(write_run(tmp_path / "run", [], evals_jsonl=evaluation("test", 1)))).read_text()
    heat = page[page.index('class="heat') :]
    cells = re.findall(r">([0-9]+)</td>", heat[: heat.index("</table>")])
    assert cells == ["3", "1", "0", "4"]


def test_events_and_a_message_are_text(tmp_path: Path) -> None:
    event = {"time": 0.0, "kind": EVIL, "attempt": 0, "detail": EVIL, EVIL: 1}
    summary = {"status": EVIL, "message": EVIL, "best_metric": EVIL, "best_value": 0.5}
    run = write_run(tmp_path / "run", [], events_jsonl=json.dumps(event), summary_json=json.dumps(summary))
    page = Path(build_report(run)).read_text()
    assert EVIL not in page
    assert page.count("&lt;script&gt;") == 6


@pytest.mark.parametrize(
    "files",
    [
        {"events_jsonl": '{"time": 1.0, "kind": "start"}\n{"kind": "odd"}\n'},
        {"evals_jsonl": '{"step": 1, "split": "test", "f1": 0.5}\n{"no": "step"}\n'},
        {"evals_jsonl": "".join(json.dumps(NULLS | {"step": i}) + "\n" for i in (1, 2))},
        {"summary_json": '{"status": '},
        {"config_yaml": ""},
    ],
)
def test_what_a_file_lacks_is_left_out(tmp_path: Path, files: dict[str, str]) -> None:
    run = write_run(tmp_path / "run", [{"step": 1, "loss": 1.0}, {"step": 2}], **files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Path(build_report(run)).read_text().rstrip().endswith("</html>")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "running or interrupted" in Path(build_report(Storage(str(tmp_path)))).read_text()
    assert not (tmp_path / "plots").exists()


def test_a_single_step_is_seen(tmp_path: Path) -> None:
    """A line through one point has no length."""
    folder = tmp_path / "run"
    pictures = []
    for loss in (1.0, None):
        build_report(write_run(folder, [step(1, loss=loss)]))
        pictures.append((folder / "plots" / "loss.png").read_bytes())
    ink = [np.count_nonzero(image.imread(io.BytesIO(png))[..., :3] < 0.5) for png in pictures]
    assert ink[0] > ink[1]


def test_committed_checkpoints_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [step(1)])
    for name in ("step_00000010", "step_00000020"):
        run.write_bytes(f"checkpoints/{name}/a.safetensors", bytes(3 * 2**20))
    run.write_bytes("checkpoints/step_00000010/manifest.json", b"{}")
    page = Path(build_report(run)).read_text()
    assert "<td>step_00000010</td><td>3.0 MiB</td>" in page
    assert "step_00000020" not in page  # without its manifest it is none


def test_the_tiles_show_the_metric_that_picked_the_best_model(tmp_path: Path) -> None:
    row = {"step": 9, "epoch": 0, "split": "test", "loss": 0.1, "entity_precision": 0.111, "entity_f1": 0.987}
    run = write_run(
        tmp_path / "run",
        [step(1, world_size=1), step(2, world_size=3)],
        evals_jsonl=json.dumps({**row, "token_micro_f1": 0.995, "tables": {}}),
        summary_json=json.dumps({"status": "finished", "best_metric": "entity_f1", "best_value": 0.9}),
    )
    page = Path(build_report(run)).read_text()
    tiles = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page)
    shown = {label: value for value, label in tiles}
    assert shown["best validation entity_f1"] == "0.9000"
    assert (shown["test entity_f1"], shown["test token_micro_f1"]) == ("0.9870", "0.9950")
    assert shown["workers"] == "1 to 3"
    assert "test entity_precision" not in shown


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run", [step(i) for i in range(1, 6001)]))
    assert len(record.steps) == 6000
    figure, axes = plots.new_axes("title", "unit")
    plots._faint_and_smooth(axes, record, record.column("loss"), "loss")
    assert [len(line.get_xdata()) for line in axes.lines] == [2000, 2000]
    assert plots.png_of(figure).startswith(b"\x89PNG")
