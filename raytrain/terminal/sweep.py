"""Terminal output of a sweep: a live table of its trials on a terminal, plain lines elsewhere."""

import time

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from raytrain.errors import counted
from raytrain.launch.job_events import JobEvent, JobEventKind
from raytrain.terminal.display import LiveDisplay
from raytrain.terminal.output import lasting_console
from raytrain.terminal.run import PLAIN_EVERY_S, checking, in_minutes, print_event
from raytrain.training.outcome import RunStatus
from raytrain.tuning.observer import SweepObserver
from raytrain.tuning.space.space import in_words
from raytrain.tuning.state import SweepResult
from raytrain.tuning.trials import TRIALS, TrialRow, TrialTable

MOST_ROWS = 24
COLORS = {"failed": "red", "running": "bold", "pruned": "dim", "finished": "green", "stopped_early": "green"}


class SweepDisplay(LiveDisplay, SweepObserver):
    """Shows a sweep."""

    def __init__(self, console: Console | None = None):
        super().__init__(console or lasting_console(), refresh_per_second=2)
        self._trial_table: TrialTable | None = None
        self._metric, self._num_trials = "", 0
        self._began_s = time.monotonic()
        self._rows_text, self._next_line_s = "", 0.0

    def phase(self, text: str) -> None:
        """Print that a new phase has begun."""
        self.console.print(text)

    def checked(self, num_files: int, total: int, files_per_s: float) -> None:
        """Show the number of source files checked so far."""
        self._rows_text = f"  {checking(num_files, total)}, {files_per_s:,.0f} files/s"
        self._print_rows_text(files_per_s)

    def prepared(self, rows: int, total: int | None, rows_per_s: float) -> None:
        """Show the number of rows prepared so far."""
        self._rows_text = f"  {rows:,}{f' of {total:,}' if total else ''} rows, {rows_per_s:,.0f} rows/s"
        self._print_rows_text(rows_per_s)

    def _print_rows_text(self, per_s: float) -> None:
        if not self.is_live and per_s and time.monotonic() > self._next_line_s:
            self._next_line_s = time.monotonic() + PLAIN_EVERY_S
            self.console.print(self._rows_text, soft_wrap=True)

    def begin(self, trial_table: TrialTable, num_trials: int, metric: str) -> None:
        """Prepare the table for the trials, which are about to start."""
        self._trial_table, self._num_trials, self._metric = trial_table, num_trials, metric
        if trial_table.rows:
            started, over = len(trial_table.rows), trial_table.num_over
            self.console.print(f"  resuming: trials started before: {started}; ended: {over}")

    def trial(self, row: TrialRow, event: str) -> None:
        """Print a line about a trial if there is no live table. A failure is printed in any case."""
        if self.is_live and row.status != "failed":
            return
        text = f"  {row.name} "
        if event == "started":
            text += f"started: {in_words(row.values)}"
        elif event == "evaluated":
            text += f"step {row.step}  {self._metric} {row.value:.4f}"
        elif event != "over":
            text += f"{event} {in_words(row.values)}"
        else:
            best = f", best {self._metric} {row.best_value:.4f}" if row.best_value is not None else ""
            text += f"{row.status} at step {row.step}{best}{f': {row.failure}' if row.failure else ''}"
            text += f"  {self._totals()}"
            assert self._trial_table is not None
            print_event(self.console, JobEvent(JobEventKind.TRIAL, text, self._trial_table.num_over, self._num_trials))
            return
        self.console.print(text, soft_wrap=True)

    def waiting(self, seconds: float) -> None:
        """Print that no trial can start yet."""
        self.console.print(f"  waiting for nodes ({seconds:.0f} s so far): there is no room for a trial's workers")

    def stopping(self) -> None:
        """Acknowledge that a stop was requested."""
        self.console.print("stopping: the trials save checkpoints; press Ctrl-C again to end at once", soft_wrap=True)

    def _totals(self) -> str:
        trial_table = self._trial_table
        assert trial_table is not None
        best = trial_table.best
        text = f"[{trial_table.num_over} of {self._num_trials} trials over"
        if best is not None:
            text += f"; best {self._metric} {best.best_value:.4f}, {best.name}"
        return text + "]"

    def _render(self) -> RenderableType:
        if self._trial_table is None:
            return Text(self._rows_text)
        caption = f"{self._totals()}  elapsed {in_minutes(time.monotonic() - self._began_s)}"
        return table_of_trials(self._trial_table, self._metric, caption=caption)


def table_of_trials(trial_table: TrialTable, metric: str, caption: str = "", most: int = MOST_ROWS) -> Table:
    """A table of the trials: running ones first, then by their best value. Each further objective has a column."""
    others = list(dict.fromkeys(name for row in trial_table.rows.values() for name in row.best_others))
    table = Table(caption=caption, caption_justify="left", box=None, pad_edge=False)
    for name in ("trial", "state", "rung", "step", metric, "best", *others, "workers", "goodput", "values"):
        is_text = name in ("trial", "state", "values")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis")
    rows = sorted(trial_table.best_first(), key=lambda row: row.status != "running")
    for row in rows[:most]:
        table.add_row(
            row.name,
            row.status,
            str(row.rung),
            str(row.step),
            _number(row.value),
            _number(row.best_value),
            *(_number(row.best_others.get(name)) for name in others),
            str(row.workers or ""),
            "" if row.goodput is None else f"{row.goodput:.0%}",
            in_words(row.values),
            style=COLORS.get(row.status),
        )
    if len(rows) > most:
        table.add_row("...", f"{len(rows) - most} more")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value.is_integer() and value >= 1000 else f"{value:.4f}"


def print_sweep(console: Console, result: SweepResult) -> None:
    """Print the result of a sweep and the paths of its files."""
    color = {RunStatus.FINISHED: "green", RunStatus.STOPPED: "yellow"}.get(result.status, "red")
    console.print(
        f"[{color}]{result.status}[/]: {counted(result.num_trials, 'trial')}, {result.num_failed} failed, "
        f"{counted(result.steps, 'step')} in all; this command took {in_minutes(result.duration_s)}",
        soft_wrap=True,
        markup=True,
    )
    if result.best_trial is not None:
        console.print(f"best {result.metric} {result.best_value:.4f}: {result.best_trial}", soft_wrap=True)
        for key, value in result.best_values.items():
            console.print(f"  {key}: {value}", soft_wrap=True)
    if result.front:
        console.print("no other trial is as good in everything and better in something than these:")
        for name, reached in result.front.items():
            words = ", ".join(f"{metric} {_number(value)}" for metric, value in reached.items())
            console.print(f"  {name}  {words}", soft_wrap=True)
    if result.message:
        console.print(result.message, soft_wrap=True)
    if result.status is RunStatus.STOPPED:
        console.print("the same command resumes the sweep")
    if result.best_trial is not None:
        console.print(f"model   {result.path}/{TRIALS}/{result.best_trial}/best", soft_wrap=True)
    console.print(f"sweep   {result.path}", soft_wrap=True)
