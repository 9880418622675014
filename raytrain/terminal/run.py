"""Terminal output of a run: a live display on a terminal, plain lines elsewhere."""

import os
import shlex
import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from raytrain.errors import counted
from raytrain.launch import job_events
from raytrain.launch.job_events import JobEvent, JobEventKind
from raytrain.runs.observer import Observer
from raytrain.runs.result import RunResult
from raytrain.storage import Storage
from raytrain.terminal.display import LiveDisplay, Rate, progress_bar
from raytrain.terminal.events import event_text
from raytrain.terminal.output import lasting_console
from raytrain.training.outcome import RunStatus
from raytrain.training.records import BEST_SO_FAR, NOTES, SAMPLES, scores_of

PROGRESS_VARIABLE = "RAYTRAIN_PROGRESS_EVERY_S"
# Seconds between two plain lines of progress. `raytrain submit` asks for more of them when it shows a bar.
PLAIN_EVERY_S = float(os.environ.get(PROGRESS_VARIABLE) or 10.0)
NUMBERS_OF_STEP = ("loss", "lr", "grad_norm")
MOST_SAMPLES, SAMPLE_CHARS = 3, 72
"""Of the samples of an evaluation that are printed, and the characters of each text. The report has all of them."""


def checking(num_files: int, total: int) -> str:
    """How far the check of the source files is."""
    return f"checking {num_files:,} of {total:,} source files"


def print_event(console: Console, event: JobEvent) -> None:
    """Print an event: as JSON if a program follows this job, else as its text."""
    console.out(job_events.line_of(event) if job_events.are_wanted() else event.text, highlight=False)


class RunDisplay(LiveDisplay, Observer):
    """Shows a run: phase, steps, loss, rates, evaluations, the best evaluation, and the remaining time."""

    def __init__(self, console: Console | None = None):
        super().__init__(console or lasting_console(), refresh_per_second=4)
        self._rate, self._step_rate = Rate(), Rate()
        self._last_line_s = 0.0
        self._total = 0
        self._row: dict[str, Any] = {}
        self._best: dict[str, Any] = {}
        self._bar = progress_bar(self.console)
        self._task = self._bar.add_task("checking", total=None)

    def phase(self, text: str) -> None:
        """Show that a new phase has begun."""
        self._bar.update(self._task, description=text, remaining_s=None)
        self._say(text)

    def checked(self, num_files: int, total: int, files_per_s: float) -> None:
        """Show the number of source files checked so far, and the time left."""
        remaining_s = (total - num_files) / files_per_s if files_per_s else None
        text = checking(num_files, total)
        self._bar.update(self._task, description=text, remaining_s=remaining_s)
        if remaining_s is not None and self._is_line_due():
            self._say(f"  {text}, {files_per_s:,.0f} files/s, about {remaining_s:,.0f} s left")

    def prepared(self, rows: int, total: int | None, rows_per_s: float) -> None:
        """Show the number of rows done so far, and the time left."""
        remaining_s = (total - rows) / rows_per_s if total is not None and rows_per_s else None
        self._bar.update(self._task, completed=rows, total=total, remaining_s=remaining_s)
        if rows_per_s and self._is_line_due():
            of = counted(rows, "row") if total is None else f"{rows:,} of about {total:,} rows"
            left = "" if remaining_s is None else f", about {remaining_s:,.0f} s left"
            self._say(f"  {of}, {rows_per_s:,.0f} rows/s{left}")

    def begin(self, total_steps: int) -> None:
        """Prepare the bar for training, which is about to start."""
        self._total = total_steps
        self._bar.reset(self._task, total=total_steps)

    def note(self, text: str) -> None:
        """Print a line about something that the user should know."""
        self.console.print(f"  {text}", soft_wrap=True)

    def stopping(self) -> None:
        """Acknowledge that a stop was requested, also above a live display."""
        self.console.print("stopping: saving a checkpoint; press Ctrl-C again to end at once", soft_wrap=True)

    def rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Show new lines of the run's files."""
        for row in rows:
            {"metrics.jsonl": self._step, "evals.jsonl": self._evaluation, "events.jsonl": self._event}[name](row)

    def _step(self, row: dict[str, Any]) -> None:
        self._row = row
        self._rate.add(row["samples_seen"])
        self._step_rate.add(row["step"])
        steps_per_s = self._step_rate.per_s()
        remaining_s = (self._total - row["step"]) / steps_per_s if steps_per_s else None
        self._bar.update(self._task, completed=row["step"], description="training", remaining_s=remaining_s)
        if row["step"] == self._total or self._is_line_due():
            text = f"  {self._step_text()}{self._best_text()}"
            self._say_event(JobEvent(JobEventKind.STEP, text, row["step"], self._total))

    def _evaluation(self, row: dict[str, Any]) -> None:
        if self._total:  # else not a training: `raytrain eval`, which prints a table at its end
            self._scores(row)
        for note in row.get(NOTES, ()):
            self.console.print(f"    {note}", soft_wrap=True)
        for one in row.get(SAMPLES, [])[:MOST_SAMPLES]:
            prompt, text = (_shortened(one[name]) for name in ("prompt", "text"))
            self.console.print(f"    {prompt} > {text}", soft_wrap=True)

    def _scores(self, row: dict[str, Any]) -> None:
        shown = "  ".join(f"{key} {value:.4f}" for key, value in list(scores_of(row).items())[:6])
        self._best = row.get(BEST_SO_FAR) or self._best
        if self._best.get("step") == row["step"] and row["split"] == "validation":
            where = ": saving the model to best/" if self._best["is_saved"] else ""
            shown += f"  new best {self._best['metric']}{where}"
        self.console.print(f"  step {row['step']}  {row['split']}: {shown}", soft_wrap=True)

    def _event(self, row: dict[str, Any]) -> None:
        if row["kind"] == "start":  # else the rate would include the time between the two groups
            self._rate, self._step_rate = Rate(), Rate()
        text = event_text(row)
        if text is not None:
            words = {name: escape(str(value)) for name, value in row.items()}
            self.console.print(f"  {text.format(**words)}", soft_wrap=True, markup=True)

    def _step_text(self) -> str:
        row = self._row
        parts = [f"step {row['step']}/{self._total}", f"epoch {row['epoch']}"]
        parts += [f"{name} {row[name]:.4g}" for name in NUMBERS_OF_STEP if row.get(name) is not None]
        per_s = self._rate.per_s()
        parts += [f"{per_s:.1f} samples/s"] if per_s is not None else []
        parts.append(f"{row['world_size']} worker{'s' * (row['world_size'] > 1)}")
        return "  ".join(parts)

    def _best_text(self) -> str:
        best = self._best
        return f"  best {best['metric']} {best['value']:.4f} at step {best['step']}" if best.get("step") else ""

    def _render(self) -> RenderableType:
        lines = [f"  {self._step_text()}" if self._row else "", self._best_text()]
        return Group(self._bar, *(Text(line) for line in lines if line))

    def _say(self, text: str) -> None:
        """Print a plain line if there is no live display."""
        if not self.is_live:
            self.console.print(text, soft_wrap=True)

    def _say_event(self, event: JobEvent) -> None:
        """Print an event if there is no live display."""
        if not self.is_live:
            print_event(self.console, event)

    def _is_line_due(self) -> bool:
        if time.monotonic() - self._last_line_s < PLAIN_EVERY_S:
            return False
        self._last_line_s = time.monotonic()
        return True


def _shortened(text: str) -> str:
    """On one line, of at most SAMPLE_CHARS characters."""
    line = " ".join(text.split())
    return line if len(line) <= SAMPLE_CHARS else f"{line[: SAMPLE_CHARS - 3]}..."


def print_result(console: Console, result: RunResult, *, generates: bool = False) -> None:
    """Print the result of a run and the paths of its files. `generates`: its model continues texts, and the command for
    that is shown once there is a model."""
    if result.final_metrics:
        print_metrics(console, result.final_metrics, title="test of the best model")
    color = "green" if result.is_done else "red" if result.status is RunStatus.FAILED else "yellow"
    console.print(f"[{color}]{result.status}[/] at step {result.step} in {in_minutes(result.duration_s)}", markup=True)
    if result.best_value is not None:
        best = f"best validation {result.best_metric} {result.best_value:.4f} at step {result.best_step}"
        console.print(best, soft_wrap=True)
    if result.goodput is not None:
        counts = {"resize": result.resizes, "failure": result.failures}
        changes = "".join(f", {n} {what}{'s' * (n > 1)}" for what, n in counts.items() if n)
        console.print(f"goodput {result.goodput:.1%} of the workers' time{changes}", soft_wrap=True)
    if result.message:
        print_event(console, JobEvent(JobEventKind.END, result.message, result.step, status=result.status))
    console.print(f"run     {result.run_path}", soft_wrap=True)
    run = Storage(result.run_path)
    files = [("model ", "best"), ("report", "report.html")]
    files += [("errors", "errors")] if result.failures else []  # not those of an earlier command
    for what, name in files:
        if run.exists(name):  # a run that was stopped soon has none
            console.print(f"{what}  {result.run_path}/{name}", soft_wrap=True)
    if generates and run.exists("best"):
        console.print(f"try it  raytrain chat {shlex.quote(result.run_path)}", soft_wrap=True)


def in_minutes(seconds: float) -> str:
    """Such as 4m07s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s"


def print_metrics(console: Console, metrics: dict[str, float], title: str) -> None:
    """Print a table of metrics. The title is a separate line, since rich wraps a table's own title to its width."""
    console.print(title, style="italic", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
