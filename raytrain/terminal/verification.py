"""Terminal output of `raytrain verify`."""

import math

from rich.console import Console
from rich.table import Table

from raytrain.errors import counted
from raytrain.runs.verification import Verification


def print_verification(console: Console, found: Verification) -> None:
    """Print what was compared, each finding, and the verdict."""
    sizes = ", ".join(map(str, found.world_sizes))
    console.print(
        f"steps 1 to {found.num_steps} of {found.run_path}; workers: {sizes}, and again with {found.workers}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    what = "samples" if found.has_samples else "samples and tokens, counted"
    table.add_row(what, _equal_or(found.other_samples))
    table.add_row("learning rate, loss scale, skipped updates", _equal_or(found.other_updates))
    worst = f"at most {found.worst_loss:.1e} apart (step {found.worst_step}); tolerance {found.tolerance:.1e}"
    if math.isnan(found.worst_loss):
        worst = f"in step {found.worst_step} only one of them is finite"
    if found.tolerance == found.worst_loss == 0.0:
        worst = "equal in every step"
    table.add_row("loss", worst)
    if found.is_bitwise:
        table.add_row("weights, to the last bit", _equal_or(found.other_weights))
    console.print(table)
    if found.num_missing:
        console.print(f"not compared: {counted(found.num_missing, 'step')} whose line in metrics.jsonl is lost")
    if found.other_device:
        console.print("one of them ran on GPUs, and the other did not: from the same seed they draw other numbers")
    if not found.has_samples:
        console.print("a run with data.record_samples=true is compared sample by sample", soft_wrap=True)
    console.print("they agree" if found.agrees else "[red]they differ", soft_wrap=True, markup=True)


def _equal_or(step: int | None) -> str:
    return "equal in every step" if step is None else f"different from step {step} on"
