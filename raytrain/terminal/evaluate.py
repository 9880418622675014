"""Terminal output of an evaluation on named data."""

from rich.console import Console
from rich.table import Table

from raytrain.errors import counted
from raytrain.inference.evaluation import DataEvaluation
from raytrain.inference.thresholds import Tuned
from raytrain.runs.evaluation import Evaluation
from raytrain.terminal.predict import print_predictions
from raytrain.terminal.run import print_metrics

SHOWN_WORST = 3
MOST_TEXT = 100  # characters of a text in a line
SHOWN_LABELS = 20


def print_evaluation(console: Console, found: DataEvaluation) -> None:
    """Print metrics, slices, the comparison, the worst rows, and the paths."""
    rows = counted(found.num_samples, "row")
    print_metrics(console, found.metrics, title=f"{rows} of {found.split}, by {found.run_path}")
    for note in found.notes:
        console.print(f"  {note}", soft_wrap=True)
    print_threshold(console, found)
    _print_comparison(console, found)
    _print_slices(console, found)
    if found.worst:
        console.print("largest losses", style="italic")
    for one in found.worst[:SHOWN_WORST]:
        text = " ".join(one.text.split())
        cut = text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."
        answers = ""
        if one.true is not None and one.predicted is not None:
            answers = f"true {one.true[:MOST_TEXT]}, predicted {one.predicted[:MOST_TEXT]}: "
        console.print(f"  {one.loss:.4f}  row {one.row:,}: {answers}{cut}", soft_wrap=True)
    if found.num_truncated and found.predictions is None:
        cut = counted(found.num_truncated, "row")
        console.print(f"{cut} longer than the model's max_length: their ends were not read", soft_wrap=True)
    if found.num_refused and found.predictions is None:
        console.print(f"{counted(found.num_refused, 'row')} can't be used, and are in no number:", style="yellow")
        for line in found.reasons:
            console.print(f"  {line}", soft_wrap=True)
    if found.predictions is not None:
        print_predictions(console, found.predictions)
    if found.page is not None:
        console.print(f"report  {found.page}", soft_wrap=True)


def _print_comparison(console: Console, found: DataEvaluation) -> None:
    if found.other is None:
        return
    console.print(f"compared with {found.other.run_path}, on the same rows", style="italic", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("metric", "first", "second", "difference", "95 % interval", "p"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for one in found.differences:
        numbers = f"{one.first:.4f}", f"{one.second:.4f}", f"{one.difference:+.4f}"
        table.add_row(one.metric, *numbers, f"{one.low:+.4f} to {one.high:+.4f}", f"{one.p_value:.4f}")
    console.print(table)


def _print_slices(console: Console, found: DataEvaluation) -> None:
    if not found.slices:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column(found.by or "")
    table.add_column("rows", justify="right")
    for name in found.metrics:
        table.add_column(name, justify="right")
    for one in found.slices:
        values = [f"{one.metrics[name]:.4f}" if name in one.metrics else "" for name in found.metrics]
        table.add_row(one.value[:MOST_TEXT], f"{one.num_rows:,}", *values)
    console.print(table)


def print_threshold(console: Console, found: Evaluation) -> None:
    """Print the threshold of an evaluation, if it has one."""
    if found.threshold is not None:
        told = f"{found.threshold:g}" if isinstance(found.threshold, float) else "one per label"
        console.print(f"threshold  {told}", soft_wrap=True)


def print_tuned(console: Console, tuned: Tuned, folder: str) -> None:
    """Print the threshold that was chosen."""
    chosen = tuned.threshold
    if isinstance(chosen, dict):
        shown = ", ".join(f"{name} {value:g}" for name, value in list(chosen.items())[:SHOWN_LABELS])
        more = f", and {len(chosen) - SHOWN_LABELS} more" if len(chosen) > SHOWN_LABELS else ""
        console.print(f"thresholds {shown}{more}", soft_wrap=True)
    else:
        console.print(f"threshold {chosen:g}", soft_wrap=True)
    rows = counted(tuned.num_rows, "row")
    console.print(f"{tuned.metric} {tuned.value:.4f}, with 0.5 {tuned.before:.4f}, on {rows}", soft_wrap=True)
    console.print(f"kept in {folder}", soft_wrap=True)
