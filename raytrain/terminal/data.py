"""Terminal output of the `raytrain data` commands."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from raytrain.data.prepared import PreparedStore
from raytrain.data.stages.counts import LOST
from raytrain.data.stages.removed import Removed
from raytrain.data.summary import PERCENTILES, DataSummary


def print_store(console: Console, store: PreparedStore, notes: Sequence[str]) -> None:
    """Print the sizes of the splits in a prepared store, its labels, and notes on what an epoch has of it."""
    columns = ("rows", "samples", "tokens", "tokens per sample", "truncated", "quarantined", "dropped", "removed")
    table = _table(("split", *columns), num_left=1)
    for name, split in store.manifest.splits.items():
        mean = split.num_tokens / max(1, split.num_samples)
        lost = (split.num_quarantined, split.rows.get("dropped", 0), sum(split.num_removed.values()))
        numbers = (split.num_read, split.num_samples, split.num_tokens, mean, split.num_truncated, *lost)
        table.add_row(name, *(f"{number:,.1f}" if isinstance(number, float) else f"{number:,}" for number in numbers))
    console.print(table)
    for name, split in store.manifest.splits.items():
        if split.num_removed:
            rules = ", ".join(f"{count:,} x {rule}" for rule, count in split.num_removed.items())
            console.print(f"removed {rules} from {name}; --pairs 10 shows pairs", soft_wrap=True, highlight=False)
        if split.num_leaks:
            kept = f"leaks   {split.num_leaks:,} rows of {name} nearly equal a validation or test row, and were kept"
            console.print(f"{kept}; --pairs 10 shows pairs", soft_wrap=True, highlight=False)
    if labels := store.manifest.task_state.get("labels"):
        console.print(f"labels  {', '.join(map(repr, labels))}", soft_wrap=True)
    for remark in (*store.manifest.remarks, *notes):
        console.print(f"note: {remark}", soft_wrap=True)
    console.print(f"store   {store.root}", soft_wrap=True)


def print_summary(console: Console, data: DataSummary) -> None:
    """Print what each stage did to the rows of each split, with examples, and how long the samples are."""
    columns = ("rows in", "changed", "dropped", "quarantined", "rows out", "seconds")
    for split, stages in itertools.groupby(data.stages, lambda one: one["split"]):
        console.print()
        table = _table((f"stages of {split}", *columns), num_left=1)
        for one in stages:
            took = "" if one["seconds"] is None else f"{one['seconds']:,.1f}"
            counts = (one[name] for name in ("rows_in", "changed", "dropped", "quarantined", "rows_out"))
            table.add_row(one["name"], *(f"{count:,}" for count in counts), took)
        console.print(table)
    for rows in data.rows:
        if rows.source:
            lost = (f"{getattr(rows, name):,} {name}" for name in LOST)
            line = f"{rows.source}: {rows.read:,} rows read, {', '.join(lost)}, {rows.kept:,} kept"
            console.print(line, highlight=False, soft_wrap=True)
    if not data.adds_up:
        console.print("[red]the counts do not add up: this is a mistake of raytrain; please report it", markup=True)
    console.print()
    table = _table(("tokens of a sample", "min", *(f"p{q}" for q in PERCENTILES[1:-1]), "max"), num_left=1)
    for lengths in data.lengths:
        table.add_row(lengths.split, *(f"{length:,}" for length in lengths.percentiles))
    console.print(table)
    if data.padding is not None:
        console.print(
            f"padding {data.padding:.1%} of the computed tokens: {data.batch}", soft_wrap=True, highlight=False
        )
    for (split, stage, what), examples in itertools.groupby(
        data.examples, lambda one: (one["split"], one["stage"], one["what"])
    ):
        console.print(f"\n{split}: {stage}, {what}", style="bold")
        for one in examples:
            _print_example(console, one)


def _print_example(console: Console, one: Mapping[str, Any]) -> None:
    jaccard = "" if one["jaccard"] is None else f"Jaccard {one['jaccard']:.2f}"
    about = [one["place"], one["partner"], jaccard, one["reason"]]
    console.print("  ".join(filter(None, about)), style="dim", highlight=False, soft_wrap=True)
    marks = ("-", "+") if one["what"] == "changed" else (" ", " ")
    for mark, text in zip(marks, (one["text"], one["other"]), strict=True):
        if text:
            visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
            console.print(f"{mark} {visible}", highlight=False, soft_wrap=True)


def _table(columns: Sequence[str], num_left: int) -> Table:
    """A table without lines, whose first columns are text."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < num_left else "right")
    return table


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print sentences, with an empty line before them."""
    console.print()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def print_pairs(console: Console, pairs: Sequence[Removed], texts: Mapping[str, str]) -> None:
    """Print rows and those that they duplicate, one block each.

    Args:
        texts: By place.
    """
    if not pairs:
        print_lines(console, ["No row duplicates another one, as far as data.dedup asks to look."])
    for pair in pairs:
        similarity = "" if pair.jaccard is None else f", Jaccard {pair.jaccard:.2f}"
        places = [f"{place}: {texts.get(place, 'not there any more')}" for place in pair.places]
        print_lines(console, [f"{pair.stage}.{pair.rule}{similarity}", *places])


def print_samples(console: Console, samples: Iterable[dict[str, Any]], ids: Sequence[int] | None = None) -> None:
    """Print samples, one block each. `ids`: theirs; None: from 0."""
    for number, sample in zip(itertools.count() if ids is None else ids, samples, strict=False):
        console.print(f"\nsample {number}", style="bold")
        for name, value in sample.items():
            text = " ".join(map(_visible, value)) if isinstance(value, list) else str(value)
            shown = repr(value) if name == "labels" and isinstance(value, str) else text
            console.print(f"{name}: {shown}", soft_wrap=True)


def _visible(item: Any) -> str:
    """An item of a list; in quotes if there are blanks in it."""
    return repr(item) if isinstance(item, str) and item.split() != [item] else str(item)
