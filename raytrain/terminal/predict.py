"""Terminal output of a prediction: the rows so far, their rate, and the time left."""

from rich.console import Console

from raytrain.errors import counted
from raytrain.inference.batch import Predictions
from raytrain.terminal.run import RunDisplay, in_minutes

ROWS_OF_A_RATE = 1000  # with fewer, the rate is that of the first batch


class PredictDisplay(RunDisplay):
    """Shows a prediction."""

    def prepared(self, rows: int, total: int | None, rows_per_s: float) -> None:
        """Show the number of rows predicted so far, and the time left."""
        remaining_s = (total - rows) / rows_per_s if total is not None and rows_per_s else None
        self._bar.update(self._task, completed=rows, total=total, remaining_s=remaining_s)
        if remaining_s is not None and self._is_line_due():
            of = f"{rows:,} of about {total:,} rows"
            self._say(f"  {of}, {rows_per_s:,.0f} rows/s, about {remaining_s:,.0f} s left")


def print_predictions(console: Console, found: Predictions) -> None:
    """Print the counts and the paths."""
    is_telling = found.num_rows >= ROWS_OF_A_RATE and found.rows_per_s
    rate = f", {found.rows_per_s:,.0f} rows/s with the model in memory" if is_telling else ""
    console.print(f"{counted(found.num_rows, 'row')} predicted in {in_minutes(found.duration_s)}{rate}", soft_wrap=True)
    if found.num_truncated:
        cut = counted(found.num_truncated, "row")
        console.print(f"{cut} longer than what the model reads: a part of each was left out", soft_wrap=True)
    if found.refused_path is not None:
        console.print(f"[yellow]{counted(found.num_refused, 'row')} can't be used, and have no prediction:[/]")
        for line in found.reasons:
            console.print(f"  {line}", soft_wrap=True, markup=False)
        console.print(f"quarantined  {found.refused_path}", soft_wrap=True, markup=False)
    console.print(f"predictions  {found.path}", soft_wrap=True, markup=False)
