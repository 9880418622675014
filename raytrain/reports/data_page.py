"""The page of `raytrain data show --html`, and the section on data that it shares with a run's report."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from raytrain.data.summary import PERCENTILES, SUMMARY_NAME, DataSummary, LengthsOf
from raytrain.reports.page import embedded, number, page_template
from raytrain.reports.plots import ACCENT, SIZE, WIDE, new_axes, png_of
from raytrain.storage import Storage

MOST_OPEN = 12  # groups of examples that are open at first


def write_data_page(
    folder: Storage,
    name: str,
    title: str,
    store: str,
    data: DataSummary,
    samples: Iterable[Mapping[str, Any]],
    split: str,
) -> str:
    """Write one self-contained page.

    Args:
        name: Of the file.
        title: The config's name.
        store: Path of the prepared data.
        samples: The first ones of `split`, as the task describes them.

    Returns:
        The full path of the page. Raises OSError.
    """
    splits = [one for one in data.rows if not one.source]
    lost = sum(one.read - one.kept for one in splits)
    tiles = [*((f"{one.split} rows kept", number(one.kept)) for one in splits), ("rows not kept", number(lost))]
    shown = [[(key, _as_text(value)) for key, value in sample.items()] for sample in samples]
    page = page_template("raytrain.reports", "data.html").render(
        name=title, path=store, tiles=tiles, message=None, samples=shown, split=split, **section_of(data)
    )
    folder.commit_bytes(name, page.encode(errors="replace"))  # a lone surrogate can't be encoded
    return folder.path_of(name)


def read_summary(run: Storage) -> DataSummary | None:
    """The summary that a run keeps; None where there is none, or another version has written it. Raises OSError."""
    try:
        return DataSummary.from_json(json.loads(run.read_bytes(SUMMARY_NAME)))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def section_of(data: DataSummary) -> dict[str, Any]:
    """What data_section.html needs."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in data.examples:
        groups.setdefault((one["split"], one["stage"], one["what"]), []).append(one)
    drawn = [one for one in data.lengths if len(one.counts) > 1]
    figures = {
        f"lengths of {one.split}": draw_lengths(one, is_wide=not i and len(drawn) % 2 > 0)
        for i, one in enumerate(drawn)
    }
    return {
        "data": data,
        "data_splits": [one.split for one in data.rows if not one.source],
        "percentile_names": ["min", *(f"p{q}" for q in PERCENTILES[1:-1]), "max"],
        "length_figures": embedded(figures),
        "example_groups": groups,
        "are_examples_open": len(groups) <= MOST_OPEN,
    }


def draw_lengths(lengths: LengthsOf, *, is_wide: bool) -> bytes:
    """Histogram of the lengths of a split's samples, as PNG."""
    figure, axes = new_axes(f"Lengths of {lengths.split}", "samples", size=WIDE if is_wide else SIZE)
    edges = np.array(lengths.edges)
    axes.bar(edges[:-1], lengths.counts, np.diff(edges), align="edge", color=ACCENT, edgecolor="white", linewidth=0.5)
    axes.set_xlabel("tokens", fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return png_of(figure)


def _as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
