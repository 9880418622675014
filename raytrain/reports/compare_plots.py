"""The figures of a comparison. Each run has the same color in all of them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from raytrain.reports.curves import RunRecord, smooth
from raytrain.reports.plots import SIZE, WIDE, new_axes, png_of, shown_label
from raytrain.training.records import scores_of

MOST_SCORES = 4
# Column of metrics.jsonl -> title and unit.
CURVES = {
    "lr": ("Learning rate", "learning rate"),
    "grad_norm": ("Gradient norm", "L2 norm before clipping, smoothed"),
    "tokens_per_s": ("Throughput", "tokens/s, all workers, smoothed"),
    "world_size": ("World size", "workers"),
}
SMOOTHED = ("grad_norm", "tokens_per_s")


def draw_runs(records: Mapping[str, RunRecord]) -> dict[str, bytes]:
    """Draw every figure that the runs have data for.

    Args:
        records: The runs by the label that legends show.

    Returns:
        Title -> PNG.
    """
    colors = dict(zip(records, run_colors(len(records)), strict=True))
    overlay = Overlay({label: record for label, record in records.items() if record.steps}, colors)
    if not overlay.records:
        return {}
    scores, curves = overlay.shared_scores(), overlay.curves()
    # The page shows two figures per row. If their number is odd, the loss takes a whole row.
    is_odd = (1 + len(scores) + len(curves)) % 2 == 1
    drawn = {"loss": overlay.loss(WIDE if is_odd else SIZE)}
    drawn |= {f"validation {name}": overlay.score(name) for name in scores}
    return drawn | {CURVES[name][0]: overlay.curve(name) for name in curves}


def run_colors(num_runs: int) -> list[str]:
    """One color per run, as #rrggbb."""
    palette = colormaps["tab10"] if num_runs <= 10 else colormaps["turbo"].resampled(num_runs)
    return ["#{:02x}{:02x}{:02x}".format(*palette(index, bytes=True)[:3]) for index in range(num_runs)]


class Overlay:
    """Draws several runs over one x axis: steps, or samples seen if the runs differ in samples per step."""

    def __init__(self, records: Mapping[str, RunRecord], colors: Mapping[str, str]):
        self.records, self._colors = records, colors
        batches = {round(record.column("samples_seen")[0] / record.steps[0]["step"]) for record in records.values()}
        self._is_in_samples = len(batches) > 1

    def shared_scores(self) -> list[str]:
        """Metrics of the validation split to draw, those that select a best model first, without the loss."""
        rows = [row for record in self.records.values() for row in record.evaluations_of("validation")]
        known = dict.fromkeys(name for row in rows for name in scores_of(row) if name != "loss")
        first = [record.best["metric"] for record in self.records.values() if record.best.get("metric") in known]
        return list(dict.fromkeys([*first, *known]))[:MOST_SCORES]

    def curves(self) -> list[str]:
        """The columns of metrics.jsonl that get a figure."""
        found = [name for name in CURVES if any(np.isfinite(r.column(name)).any() for r in self.records.values())]
        is_steady = all(len(record.world_sizes) == 1 for record in self.records.values())
        return [name for name in found if name != "world_size" or not is_steady]  # constant: the table shows it

    def loss(self, size: tuple[float, float]) -> bytes:
        """Smoothed training loss as lines, validation loss as dots."""
        figure, axes = self._axes("Loss", "training smoothed, validation as dots", size)
        for label, record, color in self._colored():
            self._line(axes, record, "loss", is_smoothed=True, color=color, label=label)
            self._dots(axes, record, "loss", color=color, markersize=3.5, linewidth=0.8, linestyle=":")
        return _finished(figure, axes)

    def score(self, name: str) -> bytes:
        """One metric of the validation split."""
        figure, axes = self._axes(f"Validation {name}", name, SIZE)
        for label, record, color in self._colored():
            self._dots(axes, record, name, color=color, markersize=3.5, label=label)
        return _finished(figure, axes)

    def curve(self, name: str) -> bytes:
        """One column of metrics.jsonl."""
        figure, axes = self._axes(*CURVES[name], SIZE)
        for label, record, color in self._colored():
            self._line(axes, record, name, is_smoothed=name in SMOOTHED, color=color, label=label)
        if name == "lr":
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        elif name == "grad_norm" and any((record.column(name) > 0).any() for record in self.records.values()):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return _finished(figure, axes)

    def _axes(self, title: str, unit: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
        figure, axes = new_axes(title, unit, size=size)
        if self._is_in_samples:
            axes.set_xlabel("samples seen", fontsize=8)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return figure, axes

    def _colored(self) -> Iterator[tuple[str, RunRecord, str]]:
        for label, record in self.records.items():
            yield shown_label(label), record, self._colors[label]

    def _positions(self, record: RunRecord, steps: np.ndarray) -> np.ndarray:
        """The x coordinates of steps, in the shape of `steps`."""
        if not self._is_in_samples:
            return steps
        return np.interp(steps, record.column("step"), record.column("samples_seen"))

    def _line(self, axes: Axes, record: RunRecord, name: str, *, is_smoothed: bool, **style: Any) -> None:
        values = record.column(name)
        values = smooth(values, max(1, len(values) // 50)) if is_smoothed else values
        marker = "o" if np.isfinite(values).sum() == 1 else None
        axes.plot(
            self._positions(record, record.column("step")),
            values,
            marker=marker,
            markersize=4,
            linewidth=1.5,
            **style,
        )

    def _dots(self, axes: Axes, record: RunRecord, name: str, **style: Any) -> None:
        rows = [row for row in record.evaluations_of("validation") if row.get(name) is not None]
        steps = np.array([row["step"] for row in rows], dtype=float)
        axes.plot(self._positions(record, steps), [row[name] for row in rows], marker="o", **style)


def _finished(figure: Figure, axes: Axes) -> bytes:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)
    return png_of(figure)
