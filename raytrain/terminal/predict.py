"""Terminal output of a prediction."""

from rich.console import Console

from raytrain.errors import counted
from raytrain.inference.batch import Predictions
from raytrain.terminal.run import in_minutes

ROWS_OF_A_RATE = 1000  # with fewer, the rate is that of the first batch


def print_predictions(console: Console, found: Predictions) -> None:
    """Print the counts and the paths."""
    is_telling = found.num_rows >= ROWS_OF_A_RATE and found.rows_per_s
    rate = f", {found.rows_per_s:,.0f} rows/s with the model in memory" if is_telling else ""
    console.print(f"{counted(found.num_rows, 'row')} predicted in {in_minutes(found.duration_s)}{rate}", soft_wrap=True)
    if found.num_truncated:
        cut = counted(found.num_truncated, "row")
        console.print(f"{cut} longer than what the model reads: a part of each was left out", soft_wrap=True)
    if found.refused_path is not None:
        console.print(f"{counted(found.num_refused, 'row')} can't be used, and have no prediction:", style="yellow")
        for line in found.reasons:
            console.print(f"  {line}", soft_wrap=True)
        console.print(f"quarantined  {found.refused_path}", soft_wrap=True)
    console.print(f"predictions  {found.path}", soft_wrap=True)
