"""Terminal output of the `raytrain data` commands."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from raytrain.data.prepared import PreparedStore


def print_store(console: Console, store: PreparedStore, notes: Sequence[str]) -> None:
    """Print the sizes of the splits in a prepared store, its labels, and notes on what an epoch has of it."""
    table = Table(box=None, pad_edge=False)
    for column in ("split", "samples", "tokens", "tokens per sample", "truncated", "set aside"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in store.manifest.splits.items():
        mean = split.num_tokens / max(1, split.num_samples)
        numbers = (split.num_samples, split.num_tokens, mean, split.num_truncated, split.num_set_aside)
        table.add_row(name, *(f"{number:,.1f}" if isinstance(number, float) else f"{number:,}" for number in numbers))
    console.print(table)
    if labels := store.manifest.task_state.get("labels"):
        console.print(f"labels  {', '.join(map(repr, labels))}", soft_wrap=True, markup=False)
    for remark in (*store.manifest.remarks, *notes):
        console.print(f"note: {remark}", soft_wrap=True, markup=False)
    console.print(f"store   {store.root}", soft_wrap=True)


def print_samples(console: Console, samples: list[dict[str, Any]]) -> None:
    """Print samples, one block each."""
    for number, sample in enumerate(samples):
        console.print(f"\n[bold]sample {number}")
        for name, value in sample.items():
            text = " ".join(map(_visible, value)) if isinstance(value, list) else str(value)
            shown = repr(value) if name == "labels" and isinstance(value, str) else text
            console.print(f"{name}: {shown}", markup=False, soft_wrap=True)


def _visible(item: Any) -> str:
    """An item of a list; in quotes if there are blanks in it."""
    return repr(item) if isinstance(item, str) and item.split() != [item] else str(item)
