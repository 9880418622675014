"""The figures of the report. Each function draws one and returns it as PNG; matplotlib's global state is not used."""

import io
import unicodedata
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from raytrain.reports.curves import RunRecord, smooth
from raytrain.reports.scores import newest_confusion
from raytrain.training.records import scores_of

INK, FAINT, ACCENT, SECOND, GRID = "#1f2933", "#b8c4d0", "#1f6feb", "#d9730d", "#e6eaee"
SIZE = (5.6, 2.7)  # inches; the page shows two per row at about this size
WIDE = (2 * SIZE[0] + 0.35, SIZE[1])  # a figure that takes a whole row
MAX_LABEL = 28  # characters of a label that a figure shows


def draw_all(record: RunRecord) -> dict[str, bytes]:
    """Draw every figure that the run has data for: file name without suffix -> PNG. The page shows two figures per row;
    if their number is odd, the first takes a whole row."""
    chosen = _chosen(record)
    drawn = {name: draw(record) for name, draw in chosen.items()}
    if len(chosen) % 2:
        drawn["loss"] = loss(record, WIDE)
    confusion = newest_confusion(record)
    if confusion is not None:
        drawn["confusion"] = confusion_matrix(confusion["labels"], np.array(confusion["counts"]))
    return drawn


def _chosen(record: RunRecord) -> dict[str, Callable[[RunRecord], bytes]]:
    """The curves that the run has data for, in page order."""
    figures: dict[str, Callable[[RunRecord], bytes]] = {}
    if not record.steps:
        return figures
    figures["loss"] = loss
    if len(record.evaluations_of("validation")) > 1:
        figures["validation"] = validation
    figures |= {"learning_rate": learning_rate, "gradient_norm": gradient_norm}
    if np.isfinite(record.column("loss_scale")).any() or np.nanmax(record.column("skipped_steps"), initial=0) > 0:
        figures["loss_scale"] = loss_scale
    figures |= {"throughput": throughput, "padding": padding, "time": step_time}
    if len(record.world_sizes) > 1:
        figures["world_size"] = world_size
    return figures


def loss(record: RunRecord, size: tuple[float, float] = SIZE) -> bytes:
    """Training loss per step and smoothed, validation loss as points."""
    figure, axes = new_axes("Loss", "mean loss per target", record, size)
    _faint_and_smooth(axes, record, record.column("loss"), "training")
    points = [(row["step"], row["loss"]) for row in record.evaluations_of("validation") if row.get("loss") is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "o-", color=SECOND, markersize=4, linewidth=1.2, label="validation")
    _legend(axes)
    return png_of(figure)


def gradient_norm(record: RunRecord) -> bytes:
    """L2 norm of the gradient before clipping, on a logarithmic scale since peaks can be a hundred times the median."""
    figure, axes = new_axes("Gradient norm", "L2 norm before clipping", record)
    values = record.column("grad_norm")
    _faint_and_smooth(axes, record, values, None)
    if (values > 0).any():
        axes.set_yscale("log")
    return png_of(figure)


def learning_rate(record: RunRecord) -> bytes:
    """Learning rate of each step."""
    figure, axes = new_axes("Learning rate", "learning rate", record)
    _curve(axes, record.column("step"), record.column("lr"), color=ACCENT)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    return png_of(figure)


def throughput(record: RunRecord) -> bytes:
    """Tokens per second over all workers."""
    figure, axes = new_axes("Throughput", "tokens/s, all workers", record)
    _faint_and_smooth(axes, record, record.column("tokens_per_s"), None)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return png_of(figure)


def padding(record: RunRecord) -> bytes:
    """Percentage of the computed tokens that is padding."""
    figure, axes = new_axes("Padding", "% of computed tokens", record)
    _faint_and_smooth(axes, record, 100 * record.column("padding"), None)
    axes.set_ylim(bottom=0)
    return png_of(figure)


def step_time(record: RunRecord) -> bytes:
    """Seconds per step, and the part of them spent waiting for data."""
    figure, axes = new_axes("Step time", "seconds, smoothed", record)
    steps, window = record.column("step"), _window(record)
    _curve(axes, steps, smooth(record.column("step_s"), window), color=ACCENT, label="whole step")
    _curve(axes, steps, smooth(record.column("data_wait_s"), window), color=SECOND, label="waiting for data")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return png_of(figure)


def loss_scale(record: RunRecord) -> bytes:
    """The fp16 loss scale, and the number of skipped steps so far."""
    figure, axes = new_axes("Loss scale", "loss scale", record)
    _curve(axes, record.column("step"), record.column("loss_scale"), color=ACCENT)
    axes.set_yscale("log", base=2)
    other = axes.twinx()
    _curve(other, record.column("step"), record.column("skipped_steps"), color=SECOND)
    other.set_ylabel("skipped steps so far", color=SECOND, fontsize=8)
    other.tick_params(labelsize=8, colors=SECOND)
    other.set_ylim(bottom=0, top=max(1.0, 1.1 * np.nanmax(record.column("skipped_steps"), initial=0)))
    other.yaxis.set_major_locator(MaxNLocator(integer=True))
    other.spines[["top"]].set_visible(False)
    return png_of(figure)


def world_size(record: RunRecord) -> bytes:
    """Number of workers at each step."""
    figure, axes = new_axes("World size", "workers", record)
    axes.step(record.column("step"), record.column("world_size"), where="mid", color=ACCENT)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return png_of(figure)


def validation(record: RunRecord) -> bytes:
    """Those metrics of the validation split that lie between 0 and 1."""
    figure, axes = new_axes("Validation", "score, 0 to 1", record)
    rows = record.evaluations_of("validation")
    names = [name for name, value in scores_of(rows[-1]).items() if name != "loss" and 0 <= value <= 1]
    for name in names[:6]:
        values = np.array([row.get(name) for row in rows], dtype=float)  # a null is NaN: a gap in the line
        axes.plot([row["step"] for row in rows], values, "o-", markersize=3, label=name)
    _legend(axes)
    return png_of(figure)


def confusion_matrix(labels: list[str], counts: np.ndarray) -> bytes:
    """Rows: true label; columns: predicted label; shade: fraction of the row. `counts`: shape (labels, labels)."""
    margin = 0.07 * max(len(shown_label(label)) for label in labels)  # inches taken by the labels
    side = min(1.6 + 0.42 * len(labels), 12.0) + margin
    figure = Figure(figsize=(side + 0.6, side), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    shown = [shown_label(label) for label in labels]
    is_turned = len(labels) > 4 or max(map(len, shown)) > 10
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_turned else {}
    axes.set_xticks(range(len(labels)), shown, parse_math=False, **turned)
    axes.set_yticks(range(len(labels)), shown, parse_math=False)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    if len(labels) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else INK
            axes.text(
                column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8 if len(labels) <= 12 else 5
            )
    return png_of(figure)


def new_axes(
    title: str, unit: str, record: RunRecord | None = None, size: tuple[float, float] = SIZE
) -> tuple[Figure, Axes]:
    """Axes over steps, with a dotted line at each restart. `size`: inches."""
    figure = Figure(figsize=size, layout="constrained", dpi=130)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for step in record.restarts if record else []:
        axes.axvline(step, color=INK, linewidth=0.8, linestyle=":", alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _faint_and_smooth(axes: Axes, record: RunRecord, values: np.ndarray, label: str | None) -> None:
    steps, window = record.column("step"), _window(record)
    _curve(axes, steps, values, color=FAINT, linewidth=0.8)
    _curve(axes, steps, smooth(values, window), color=ACCENT, linewidth=1.6, label=label)


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Draw a line, or a dot if there is only one value."""
    axes.plot(steps, values, marker="o" if np.isfinite(values).sum() == 1 else None, markersize=4, **style)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def shown_label(label: str) -> str:
    """A label made fit for a figure: one line, without control characters, at most MAX_LABEL characters."""
    clean = "".join("?" if unicodedata.category(c) in ("Cc", "Cs") else c for c in label)
    return clean if len(clean) <= MAX_LABEL else clean[: MAX_LABEL - 3] + "..."


def _window(record: RunRecord) -> int:
    """Number of points that a smoothed curve averages over: a fiftieth of the curve."""
    return max(1, len(record.steps) // 50)


def png_of(figure: Figure) -> bytes:
    """The figure's file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Glyphs that matplotlib's font lacks become boxes; report.html has the same numbers as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
