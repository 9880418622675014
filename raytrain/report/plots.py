"""The report's figures, one function a figure; each returns a PNG. matplotlib's objects, not its global state."""

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raytrain.report.curves import RunRecord, smooth, thin

INK, FAINT, ACCENT, SECOND, GRID = "#1f2933", "#b8c4d0", "#1f6feb", "#d9730d", "#e6eaee"
SIZE = (5.6, 2.9)  # inches


def draw_all(record: RunRecord) -> dict[str, bytes]:
    """Every figure that the run has numbers for: file name without ending -> PNG."""
    figures: dict[str, Callable[[RunRecord], bytes]] = {}
    if record.steps:
        figures |= {"loss": loss, "learning_rate": learning_rate, "throughput": throughput, "padding": padding}
        figures["time"] = step_time
        if np.nanmax(record.column("skipped_steps"), initial=0) > 0:
            figures["loss_scale"] = loss_scale
        if len({row["world_size"] for row in record.steps}) > 1:
            figures["world_size"] = world_size
    if len([row for row in record.evaluations if row["split"] == "validation"]) > 1:
        figures["validation"] = validation
    drawn = {name: draw(record) for name, draw in figures.items()}
    confusion = _newest_confusion(record)
    if confusion is not None:
        drawn["confusion"] = confusion_matrix(confusion["labels"], np.array(confusion["counts"]))
    return drawn


def loss(record: RunRecord) -> bytes:
    """Training loss a step and smoothed, validation loss as points."""
    figure, axes = _axes("Loss", "loss")
    _faint_and_smooth(axes, record, record.column("loss"), "training")
    points = [
        (row["step"], row["loss"]) for row in record.evaluations if row["split"] == "validation" and "loss" in row
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "o-", color=SECOND, markersize=4, linewidth=1.2, label="validation")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def learning_rate(record: RunRecord) -> bytes:
    """Learning rate of each step."""
    figure, axes = _axes("Learning rate", "learning rate")
    axes.plot(*thin(record.column("step"), record.column("lr")), color=ACCENT)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    return _png(figure)


def throughput(record: RunRecord) -> bytes:
    """Tokens a second over all workers."""
    figure, axes = _axes("Throughput", "tokens/s, all workers")
    _faint_and_smooth(axes, record, record.column("tokens_per_s"), None)
    axes.set_ylim(bottom=0)
    return _png(figure)


def padding(record: RunRecord) -> bytes:
    """Share of what was computed that is padding."""
    figure, axes = _axes("Padding", "% of computed tokens")
    _faint_and_smooth(axes, record, 100 * record.column("padding"), None)
    axes.set_ylim(bottom=0)
    return _png(figure)


def step_time(record: RunRecord) -> bytes:
    """Seconds of a step, and of them those that the loop waited for data."""
    figure, axes = _axes("Step time", "seconds, smoothed")
    steps, window = record.column("step"), _window(record)
    axes.plot(*thin(steps, smooth(record.column("step_s"), window)), color=ACCENT, label="whole step")
    axes.plot(*thin(steps, smooth(record.column("data_wait_s"), window)), color=SECOND, label="waiting for data")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def loss_scale(record: RunRecord) -> bytes:
    """fp16's loss scale, and the steps that were skipped so far."""
    figure, axes = _axes("Loss scale", "loss scale")
    axes.plot(*thin(record.column("step"), record.column("loss_scale")), color=ACCENT)
    axes.set_yscale("log", base=2)
    other = axes.twinx()
    other.plot(*thin(record.column("step"), record.column("skipped_steps")), color=SECOND)
    other.set_ylabel("skipped steps", color=SECOND, fontsize=8)
    return _png(figure)


def world_size(record: RunRecord) -> bytes:
    """Workers at each step."""
    figure, axes = _axes("World size", "workers")
    axes.step(*thin(record.column("step"), record.column("world_size")), where="mid", color=ACCENT)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure)


def validation(record: RunRecord) -> bytes:
    """The metrics between 0 and 1 on the validation split."""
    figure, axes = _axes("Validation", "score")
    rows = [row for row in record.evaluations if row["split"] == "validation"]
    names = [n for n, v in rows[-1].items() if isinstance(v, float) and n not in ("time", "loss") and 0 <= v <= 1]
    for name in names[:6]:
        values = [row.get(name, np.nan) for row in rows]
        axes.plot([row["step"] for row in rows], values, "o-", markersize=3, label=name)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def confusion_matrix(labels: list[str], counts: np.ndarray) -> bytes:
    """Rows: true label; columns: predicted label; shade: share of the row. `counts`: shape (labels, labels)."""
    side = min(2.4 + 0.42 * len(labels), 12.0)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(
        range(len(labels)), labels, rotation=45 if len(labels) > 4 else 0, ha="right" if len(labels) > 4 else "center"
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    if len(labels) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else INK
            axes.text(
                column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8 if len(labels) <= 12 else 5
            )
    return _png(figure)


def _newest_confusion(record: RunRecord) -> dict | None:
    for split in ("test", "validation"):
        row = record.last_evaluation(split)
        if row is not None and "confusion" in row.get("tables", {}):
            return row["tables"]["confusion"]
    return None


def _axes(title: str, unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained", dpi=130)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _faint_and_smooth(axes: Axes, record: RunRecord, values: np.ndarray, label: str | None) -> None:
    steps, window = record.column("step"), _window(record)
    axes.plot(*thin(steps, values), color=FAINT, linewidth=0.8)
    axes.plot(*thin(steps, smooth(values, window)), color=ACCENT, linewidth=1.6, label=label)


def _window(record: RunRecord) -> int:
    """Steps that a smoothed curve averages over: a fiftieth of the run."""
    return max(1, len(record.steps) // 50)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
