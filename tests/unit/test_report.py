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
from raytrain.reports.curves import read_run, smooth
from raytrain.reports.html import build_report
from raytrain.reports.page import tiles_in_a_row
from raytrain.reports.steps import MOST_ROWS
from raytrain.storage import Storage

EVIL = "<script>alert(1)</script>"


def step(number: int, attempt: int = 0, **changes: Any) -> dict[str, Any]:
    row = {"step": number, "epoch": 1, "loss": 1.0 / number, "lr": 1e-4, "grad_norm": 1.0, "loss_scale": None}
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
    row = {"step": number, "epoch": 1, "split": split, "time": 0.0, "loss": 0.4, "accuracy": 0.8125, "tables": tables}
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
    curves = {"loss", "learning_rate", "gradient_norm", "throughput", "padding", "time", "validation"}
    assert curves | {"confusion"} == names


def test_label_counts_and_what_the_task_says_of_its_scores(tmp_path: Path) -> None:
    row = json.loads(evaluation("validation", 2)) | {"notes": ["nothing but O is predicted"]}
    command = {"command": "raytrain train x.yaml", "labels": {EVIL: {"train": 30, "test": 1}, "b": {"train": 10}}}
    run = write_run(
        tmp_path / "run",
        [step(1), step(2)],
        evals_jsonl=json.dumps(row) + "\n",
        commands_jsonl=json.dumps(command) + "\n",
        config_yaml="name: x\n",
    )
    page = Path(build_report(run)).read_text()
    assert "Labels (2)" in page and EVIL not in page
    assert "<td>30</td><td>75.0%</td><td>1</td><td>100.0%</td>" in page
    assert "<td>10</td><td>25.0%</td><td>0</td><td>0.0%</td>" in page
    assert "validation, last (step 2): nothing but O is predicted." in page


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
    assert record.restarts == [2]
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
        evals_jsonl=evaluation("validation", 1).replace('"epoch": 1', '"epoch": null') + '{"step": 2, "spl',
        events_jsonl='{"kind": "start"}\n{"time": 1.0, "ki',
    )
    page = Path(build_report(run)).read_text()
    assert "Events (1)" in page
    assert "0.8125" in page


def test_an_fp16_run_on_changing_workers_has_their_figures(tmp_path: Path) -> None:
    build_report(write_run(tmp_path / "run", [step(i, loss_scale=2.0**i, world_size=1 + i // 3) for i in range(1, 6)]))
    assert {"loss_scale", "world_size"} <= {path.stem for path in (tmp_path / "run" / "plots").iterdir()}


def test_smoothing() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0])
    assert smooth(values, 2).tolist() == [1.0, 2.0, 3.0, 5.0]


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
    row = {"step": 1, "epoch": 1, "split": "test", "time": 0.0, "accuracy": 0.5, "tables": tables}
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
    for name in ("step_00000010-0001", "step_00000020-0001"):
        run.write_bytes(f"checkpoints/{name}/a.safetensors", bytes(3 * 2**20))
    run.write_bytes("checkpoints/step_00000010-0001/manifest.json", b"{}")
    page = Path(build_report(run)).read_text()
    assert "<td>step_00000010-0001</td><td>3.0 MiB</td>" in page
    assert "step_00000020-0001" not in page  # without its manifest it is none


def test_the_tiles_show_the_metric_that_picked_the_best_model(tmp_path: Path) -> None:
    row = {"step": 9, "epoch": 1, "split": "test", "loss": 0.1, "entity_precision": 0.111, "entity_f1": 0.987}
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


def tiles_of(page: str) -> dict[str, str]:
    return {label: value for value, label in re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page)}


def tagged(split: str, number: int, entity_f1: float, best_step: int = 10) -> str:
    best = {"metric": "loss", "value": 0.25, "step": best_step, "is_saved": True}
    table = {"columns": ["entity", "f1"], "rows": [["PER", entity_f1]]}
    row = {"step": number, "epoch": 1, "split": split, "loss": 0.25, "entity_f1": entity_f1, "token_micro_f1": 0.99}
    row |= {"best": best} if split == "validation" else {}
    return json.dumps({**row, "tables": {"entities": table}}) + "\n"


def test_entities_are_a_headline_of_tagging_whatever_picked_the_model(tmp_path: Path) -> None:
    validation = tagged("validation", 10, 0.71) + tagged("validation", 20, 0.64)
    run = write_run(tmp_path / "run", [step(1)], evals_jsonl=validation)
    shown = tiles_of(Path(build_report(run)).read_text())
    assert shown["best validation loss"] == "0.2500"
    assert shown["best validation entity_f1"] == "0.7100", "of the best model, not of the last"
    run = write_run(tmp_path / "run", [step(1)], evals_jsonl=validation + tagged("test", 10, 0.68))
    shown = tiles_of(Path(build_report(run)).read_text())
    assert (shown["test loss"], shown["test entity_f1"]) == ("0.2500", "0.6800")


def test_the_best_evaluation_stands_beside_the_last(tmp_path: Path) -> None:
    lines = tagged("validation", 10, 0.71) + tagged("validation", 20, 0.64)
    page = Path(build_report(write_run(tmp_path / "run", [step(1)], evals_jsonl=lines))).read_text()
    assert page.index("validation, best (step 10)") < page.index("validation, last (step 20)")
    assert re.search(r"<td>entity_f1</td><td>0.7100</td><td>0.6400</td>", page)
    assert "entities: validation, best (step 10)" in page and "entities: validation, last (step 20)" in page
    lines = tagged("validation", 10, 0.71) + tagged("validation", 20, 0.75, best_step=20)
    page = Path(build_report(write_run(tmp_path / "run", [step(1)], evals_jsonl=lines))).read_text()
    assert "validation, best and last (step 20)" in page and "validation, last" not in page


def test_the_report_says_where_the_run_comes_from(tmp_path: Path) -> None:
    said = {
        "time": 0.0,
        "command": f"raytrain train {EVIL}",
        "versions": {"raytrain": "1.2.3", "torch": "2.13.0"},
        "machine": {"host": "node-7", "platform": "Linux", "cpus": 16, "memory_gib": 64.0, "gpus": ["H200", "H200"]},
        "git": {"commit": "c0ffee", "is_modified": True},
        "data": {"train": {"samples": 1234, "tokens": 56789, "truncated": 3, "quarantined": 1}},
    }
    older = {"time": 0.0, "command": None, "versions": {}, "machine": {}, "git": None, "data": {}}
    lines = json.dumps(older) + "\n" + json.dumps(said) + "\n"
    page = Path(build_report(write_run(tmp_path / "run", [step(1)], commands_jsonl=lines))).read_text()
    for words in (
        "raytrain 1.2.3, torch 2.13.0",
        "node-7, Linux, 16 CPUs, 64.0 GiB",
        "2 x H200",
        "c0ffee, with changes",
    ):
        assert words in page
    assert "<td>1,234</td><td>56,789</td><td>3</td><td>1</td>" in page
    assert EVIL not in page and "Commands (2)" in page


@pytest.mark.parametrize(("num_tiles", "in_a_row"), [(1, 1), (7, 7), (8, 4), (9, 5), (10, 5), (11, 6), (15, 5)])
def test_rows_of_tiles_are_even(num_tiles: int, in_a_row: int) -> None:
    assert tiles_in_a_row(num_tiles) == in_a_row


@pytest.mark.parametrize("num_evaluations", [0, 2])
def test_rows_of_figures_are_even(tmp_path: Path, num_evaluations: int) -> None:
    """Two in a row; an odd one has a row of its own, for which it is drawn."""
    lines = "".join(evaluation("validation", number) for number in range(num_evaluations))
    page = Path(build_report(write_run(tmp_path / "run", [step(1)], evals_jsonl=lines))).read_text()
    num_figures = page.count('<div class="card"><img') + page.count('<div class="card wide"><img')
    assert page.count("card wide") == num_figures % 2
    height, width = image.imread(tmp_path / "run" / "plots" / "loss.png").shape[:2]
    assert (width / height > 3) == (num_figures % 2 == 1)


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run", [step(i) for i in range(1, 6001)]))
    assert MOST_ROWS / 2 < len(record.steps) <= MOST_ROWS + 1 and record.steps[-1]["step"] == 6000
    assert record.steps_s == pytest.approx(600) and record.num_redone == 0
    figure, axes = plots.new_axes("title", "unit")
    plots._faint_and_smooth(axes, record, record.column("loss"), "loss")
    assert [len(line.get_xdata()) for line in axes.lines] == 2 * [len(record.steps)]
    assert plots.png_of(figure).startswith(b"\x89PNG")
