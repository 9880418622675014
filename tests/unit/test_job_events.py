"""A job that was submitted tells who follows it of its steps and its end by events, which people never see as such."""

import io

import pytest
from rich.console import Console

from raytrain.launch import job_events
from raytrain.launch.job_events import JobEvent, JobEventKind, event_of, events_of, for_people, line_of
from raytrain.runs.result import RunResult
from raytrain.terminal.jobs import JobDisplay
from raytrain.terminal.run import RunDisplay, print_result
from raytrain.training.outcome import RunStatus, StopReason

ROW = {"step": 7, "epoch": 0, "loss": 0.25, "samples_seen": 56, "world_size": 2}


def printed(*, is_followed: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run of ten steps prints that was stopped at the seventh."""
    monkeypatch.delenv(job_events.VARIABLE, raising=False)
    if is_followed:
        monkeypatch.setenv(job_events.VARIABLE, "1")
    out = io.StringIO()
    display = RunDisplay(Console(file=out, width=60, highlight=False, markup=False))
    display.begin(10)
    display.rows("metrics.jsonl", [ROW])
    message = "stopped on request; to resume it: raytrain resume /runs/[a]"
    result = RunResult(RunStatus.STOPPED, "/runs/[a]", 7, stop_reason=StopReason.REQUESTED, message=message)
    print_result(display.console, result)
    return out.getvalue()


def test_who_follows_reads_steps_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    step, end = events_of(printed(is_followed=True, monkeypatch=monkeypatch).splitlines())
    assert (step.kind, step.done, step.total) == (JobEventKind.STEP, 7, 10)
    assert (end.kind, end.done, end.status) == (JobEventKind.END, 7, "stopped")


def test_people_read_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = printed(is_followed=False, monkeypatch=monkeypatch)
    assert job_events.PREFIX not in plain and "step 7/10" in plain and "raytrain resume /runs/[a]" in plain
    assert for_people(printed(is_followed=True, monkeypatch=monkeypatch)) == plain


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_followed_job_is_shown_as_if_it_ran_here(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    display = JobDisplay(Console(file=out, force_terminal=is_terminal, width=100, markup=False))
    text = printed(is_followed=True, monkeypatch=monkeypatch)
    for start in range(0, len(text), 5):  # the server passes it on in pieces of any size
        display.say(text[start : start + 5])
    display.close()
    shown = out.getvalue()
    assert "to resume it: raytrain resume /runs/[a]" in shown and job_events.PREFIX not in shown
    assert ("step 7/10" in shown) == (not is_terminal), "on a terminal the steps are a bar"


@pytest.mark.parametrize(
    "line",
    [
        "  step 7/10  loss 1",
        "raytrain-event: ",
        "raytrain-event: [1]",
        'raytrain-event: {"kind": "other", "text": ""}',
        "{}",
    ],
)
def test_what_a_program_prints_by_chance_is_no_event(line: str) -> None:
    assert event_of(line) is None
    assert for_people(line) == line


def test_a_line_that_looks_like_an_end_is_no_end() -> None:
    """`jobs stop` once searched the log for the sentence."""
    assert not list(events_of(["stopped on request; to resume it: raytrain resume /runs/a"]))
    end = JobEvent(JobEventKind.END, "two\nlines", 3, status="stopped")
    assert event_of(line_of(end)) == end
