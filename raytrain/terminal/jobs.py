"""Terminal output of `raytrain submit` and `raytrain jobs`: a job that is followed, and the list of jobs."""

import sys
import time
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from raytrain.launch.job_events import JobEventKind, event_of
from raytrain.launch.server import Job
from raytrain.terminal.display import LiveDisplay, progress_bar
from raytrain.terminal.run import in_minutes

COLORS = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}


class JobDisplay(LiveDisplay):
    """Shows the output of a job. On a terminal, its steps are shown as a bar below the other lines."""

    def __init__(self, console: Console | None = None):
        super().__init__(console, refresh_per_second=4)
        self._rest = ""  # the beginning of a line whose end has not arrived yet
        self._status = ""
        self._bar = progress_bar(self.console)
        self._task = self._bar.add_task("job", total=None)

    def say(self, text: str) -> None:
        """Show the next piece of the job's output, of any size."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Show what is left: the job prints nothing more."""
        if self._rest:
            self._line(self._rest)
        self._rest = self._status = ""

    def _line(self, line: str) -> None:
        event = event_of(line)
        if event is not None and event.total is not None:
            self._bar.update(self._task, completed=event.done, total=event.total, description="training")
        text = line if event is None else event.text
        if event is not None and event.kind is JobEventKind.STEP and self.console.is_terminal:
            self._status = text
        else:
            self.console.print(text, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        return Group(self._bar, Text(self._status))


def ask_on_interrupt(console: Console) -> Literal["stop", "detach", "wait"]:
    """Ask what to do after Ctrl-C. Without a terminal, and on a second Ctrl-C, the answer is detach."""
    if not (console.is_terminal and sys.stdin.isatty()):
        return "detach"
    try:
        answer = console.input("stop the job after a checkpoint (s), leave it running (d), or keep watching (w)? ")
    except (KeyboardInterrupt, EOFError):
        console.print()
        return "detach"
    return {"s": "stop", "w": "wait"}.get(answer.strip().lower()[:1], "detach")  # type: ignore[return-value]


def print_jobs(console: Console, jobs: list[Job]) -> None:
    """Print one line per job. On a narrow terminal a long path of a run is cut, so that the id stays whole."""
    table = Table(box=None, pad_edge=False)
    names = ("job", "status", "exit", "began", "took", "run")
    rows = [_in_words(job) for job in jobs]
    for i, name in enumerate(names):
        widest = max([len(name), *(len(row[i]) for row in rows)])
        is_cut = name == "run" and console.is_terminal
        table.add_column(name, no_wrap=True, min_width=None if is_cut else widest)
    for job, row in zip(jobs, rows, strict=True):
        table.add_row(*(Text(word) for word in row), style=COLORS.get(job.status))
    if not console.is_terminal:  # nothing is cut for a program
        console.width = 10_000
    console.print(table)


def _in_words(job: Job) -> tuple[str, ...]:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_at_s))
    took = in_minutes((job.ended_at_s or time.time()) - job.started_at_s)
    return (job.id, job.status, str(job.exit_code) if job.is_over else "", began, took, job.run or job.entrypoint)


def print_end(console: Console, job: Job) -> None:
    """Print how a job ended."""
    console.print(job.end_in_words(), style=COLORS.get(job.status), highlight=False, soft_wrap=True)
