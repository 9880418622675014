"""What the terminal shows: whole lines, nothing that is not known, no path that is not there. No Ray."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import raytrain
from raytrain.runs.result import RunResult
from raytrain.storage import Storage
from raytrain.terminal.doctor import DoctorConsole
from raytrain.terminal.output import make_console
from raytrain.terminal.run import RunDisplay, print_metrics, print_result
from raytrain.terminal.sweep import table_of_trials
from raytrain.training.outcome import RunStatus
from raytrain.tuning.trials import TrialRow, TrialTable

STEP = {"step": 1, "epoch": 1, "loss": 0.5, "lr": 1e-4, "grad_norm": 2.0, "samples_seen": 8, "world_size": 2}
EVALUATION = {
    "step": 1,
    "epoch": 1,
    "epochs_done": 0.5,
    "split": "validation",
    "time": 1.0,
    **{f"score_{i}": 0.5 for i in range(6)},
}


def plain() -> tuple[RunDisplay, io.StringIO]:
    """A display that is no terminal, 40 columns wide."""
    out = io.StringIO()
    console = make_console(out)
    console.width = 40
    return RunDisplay(console), out


def printed(total_steps: int, **rows: dict[str, Any]) -> list[str]:
    """The lines that a display makes of a row of each file."""
    display, out = plain()
    if total_steps:
        display.begin(total_steps)
    for name, row in rows.items():
        display.rows(f"{name}.jsonl", [row])
    return out.getvalue().splitlines()


def test_plain_lines_are_not_wrapped() -> None:
    (line,) = printed(9, evals=EVALUATION)
    assert line.startswith("  step 1  validation: score_0 0.5000")
    damaged = {"kind": "damaged_checkpoint", "step": 5, "reason": "zero-00.safetensors [part 2] differs from its hash"}
    (line,) = printed(9, events=damaged)
    assert "[part 2] differs from its hash" in line


def test_what_a_task_says_of_its_metrics_follows_them() -> None:
    lines = printed(9, evals={**EVALUATION, "notes": ["nothing but O is predicted, and [brackets] stay"]})
    assert lines[1:] == ["    nothing but O is predicted, and [brackets] stay"]


def test_a_rate_is_shown_once_it_is_known() -> None:
    display, out = plain()
    display.begin(2)
    display.rows("metrics.jsonl", [STEP])
    assert "step 1/2" in out.getvalue() and "samples/s" not in out.getvalue()
    display.rows("metrics.jsonl", [{**STEP, "step": 2, "samples_seen": 16}])
    assert "samples/s" in out.getvalue()


def test_an_evaluation_outside_training_leaves_its_numbers_to_the_table() -> None:
    assert printed(0, evals=EVALUATION) == []


def test_only_paths_that_are_there(tmp_path: Path) -> None:
    def shown() -> str:
        out = io.StringIO()
        result = RunResult(status=RunStatus.STOPPED, run_path=str(tmp_path), final_metrics={"accuracy": 0.5})
        print_result(Console(file=out, width=200), result)
        return out.getvalue()

    assert f"run     {tmp_path}" in shown() and "test of the best model" in shown()
    assert "/best" not in shown() and "report.html" not in shown()
    (tmp_path / "best").mkdir()
    (tmp_path / "report.html").write_text("")
    assert f"model   {tmp_path}/best" in shown() and f"report  {tmp_path}/report.html" in shown()


def test_a_model_that_generates_can_be_talked_to_once_it_is_there(tmp_path: Path) -> None:
    run = tmp_path / "a [b]"

    def shown(*, generates: bool) -> str:
        out = io.StringIO()
        result = RunResult(status=RunStatus.FINISHED, run_path=str(run))
        print_result(make_console(out), result, generates=generates)
        return out.getvalue()

    assert "raytrain chat" not in shown(generates=True)
    (run / "best").mkdir(parents=True)
    assert f"try it  raytrain chat '{run}'\n" in shown(generates=True)
    assert "raytrain chat" not in shown(generates=False)


def test_what_a_failure_has_cost() -> None:
    phases = dict.fromkeys(("detect_s", "save_s", "wait_s", "regroup_s", "load_s", "first_step_s"), 0.5)
    moved = {"world_size_before": 2, "world_size": 1, "steps_redone": 8, "seconds": 3.0, **phases}
    display, out = plain()
    display.rows("events.jsonl", [{"kind": "failure", "cause": "a worker's process died", "attempt": 1, **moved}])
    display.rows("events.jsonl", [{"kind": "failure", "cause": "the run diverged", "attempt": 1}])
    display.rows("events.jsonl", [{"kind": "begin", "attempt": 0, **moved, "steps_redone": 0}])
    display.rows("events.jsonl", [{"kind": "begin", "attempt": 2, **moved, "steps_redone": 24}])
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("  a worker's process died: 2 -> 1 worker(s), 8 steps redone, 3.0 s (0.5 s to notice,")
    assert lines[1:] == ["  redoing 24 step(s) that the last command did after that checkpoint"]


def test_what_an_adalora_adapter_has_kept() -> None:
    lines = printed(9, events={"kind": "ranks", "step": 9, "kept": 32, "first": 48})
    assert lines == ["  AdaLoRA has kept 32 of 48 ranks"]


def on_a_terminal() -> tuple[RunDisplay, Callable[[], str]]:
    """A display on a terminal, and what its live part shows now."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False, color_system=None)
    display = RunDisplay(console)

    def shown() -> str:
        out = io.StringIO()
        Console(file=out, width=120, color_system=None).print(display._render())
        return out.getvalue()

    return display, shown


def test_times_have_names_and_what_has_a_rate_has_a_remaining_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display, shown = on_a_terminal()
    display.phase("preparing data")
    now += 31
    assert "elapsed 0:00:31" in shown() and "remaining" not in shown()
    display.prepared(1200, 8454, 40.0)
    assert "1,200/8,454" in shown() and "remaining 0:03:01" in shown()
    display.phase("loading the model")
    assert "remaining" not in shown() and "-:--" not in shown()
    display.begin(70)
    display.rows("metrics.jsonl", [STEP])
    assert "1/70" in shown() and "remaining" not in shown(), "one moment makes no rate"
    now += 2
    display.rows("metrics.jsonl", [{**STEP, "step": 2}])
    assert "elapsed 0:00:33" in shown() and "remaining 0:02:16" in shown()


def test_a_resumed_run_does_not_take_its_old_steps_for_quick_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display, shown = on_a_terminal()
    display.begin(1000)
    for step in (901, 902):
        now += 3
        display.rows("metrics.jsonl", [{**STEP, "step": step}])
    assert "remaining 0:04:54" in shown()


def best(value: float, step: int, *, is_saved: bool = True) -> dict[str, Any]:
    return {"best": {"metric": "accuracy", "value": value, "step": step, "is_saved": is_saved}}


def test_the_best_metric_is_shown_and_a_new_best_is_told() -> None:
    display, out = plain()
    display.begin(9)
    for step, reached in ((1, best(0.5, 1)), (2, best(0.5, 1)), (3, best(0.75, 3, is_saved=False))):
        display.rows("evals.jsonl", [{**EVALUATION, "step": step, **reached}])
    told = out.getvalue().splitlines()
    assert told[0].endswith("new best accuracy: saving the model to best/")
    assert "best" not in told[1]
    assert told[2].endswith("new best accuracy")
    display.rows("metrics.jsonl", [{**STEP, "step": 9}])
    assert out.getvalue().splitlines()[-1].endswith("best accuracy 0.7500 at step 3")


def test_epochs_are_counted_as_in_the_file() -> None:
    (line,) = printed(9, metrics={**STEP, "step": 9, "epoch": 3})
    assert "epoch 3 " in line


def test_a_notebook_has_one_output_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    shown: list[str] = []

    class Handle:
        def update(self, html: Any) -> None:
            shown.append(html.data)

    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: Handle())
    display = RunDisplay(Console(file=io.StringIO(), force_jupyter=True, width=80))
    display._refresh_per_second = 100
    with display:
        display.phase("checking <files>")
        deadline_s = time.monotonic() + 10
        while not shown and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert "checking &lt;files&gt;" in shown[0] and shown[-1] == ""
    assert display.console.file.getvalue() == "", "what the display shows is not printed as well"  # type: ignore[attr-defined]


BRACKETS = "my [bold]run[/] [1] [/nothing]"


def of_a_result(folder: Path, console: Console) -> None:
    (folder / BRACKETS / "best").mkdir(parents=True)
    print_result(console, RunResult(status=RunStatus.FINISHED, run_path=str(folder / BRACKETS)))


def of_an_event(folder: Path, console: Console) -> None:
    RunDisplay(console).rows("events.jsonl", [{"kind": "tracker", "tracker": "wandb", "reason": BRACKETS}])


def of_a_phase(folder: Path, console: Console) -> None:
    RunDisplay(console).phase(BRACKETS)


def of_a_table_of_trials(folder: Path, console: Console) -> None:
    trials = TrialTable(Storage(str(folder)), "max")
    trials.rows["a"] = TrialRow("a", {"model.path": BRACKETS})
    console.print(table_of_trials(trials, "accuracy"))


def of_scores(folder: Path, console: Console) -> None:
    print_metrics(console, {f"f1_{BRACKETS}": 0.5}, title="test")


def of_a_doctor(folder: Path, console: Console) -> None:
    DoctorConsole(console=console).say(BRACKETS)


@pytest.mark.parametrize("show", [of_a_result, of_an_event, of_a_phase, of_a_table_of_trials, of_scores, of_a_doctor])
def test_brackets_in_what_users_name_are_printed(
    tmp_path: Path, show: Callable[[Path, Console], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich would take them for its markup, and leave them out or raise an error."""
    monkeypatch.setenv("COLUMNS", "400")
    out = io.StringIO()
    show(tmp_path, make_console(out))
    assert BRACKETS in out.getvalue()


def test_each_console_is_one_that_prints_brackets() -> None:
    package = Path(raytrain.__file__).parent
    made = {path.name for path in package.rglob("*.py") if " Console(" in path.read_text()}
    assert made == {"output.py", "notebook.py"}
