"""The figures of a sweep's report; each function returns a PNG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from raytrain.reports.plots import ACCENT, FAINT, GRID, INK, SECOND, WIDE, new_axes, png_of
from raytrain.tuning.space.domains import Domain
from raytrain.tuning.space.schedulers import Halving
from raytrain.tuning.space.space import Space, short
from raytrain.tuning.trials import TrialRow

MOST_NAMES = 12  # trials that are named in a figure
NAME_HEIGHT = 0.06  # height of a name, as a share of the axis
LEAST_TRIALS = 8  # with fewer, an importance would be noise
CUT_SHORT = ("pruned", "failed", "stopped")
STAR: dict[str, Any] = {"marker": "*", "color": INK, "markersize": 11, "markeredgecolor": "white", "zorder": 5}
HATCHED: dict[str, Any] = {"hatch": "///", "edgecolor": "white", "linewidth": 0}
BEHIND_TEXT = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}  # lines pass behind the text
Segment = tuple[str, float, float, int]
"""(trial, start and end in seconds since the sweep began, workers)."""
Colors = Mapping[str, str]
"""Trial -> its color, the same in all figures and in the table."""


def trial_colors(names: Sequence[str]) -> dict[str, str]:
    """A color for each trial. With many trials, neighbors look alike, and their numbers tell them apart."""
    ordered = sorted(names)
    palette = colormaps["tab20"] if len(ordered) <= 20 else colormaps["turbo"].resampled(len(ordered))
    # tab20 has pairs of a dark and a pale shade; the dark ones come first.
    places = [*range(0, 20, 2), *range(1, 20, 2)] if len(ordered) <= 20 else range(len(ordered))
    shades = (palette(place, bytes=True)[:3] for place in places)
    return {name: "#{:02x}{:02x}{:02x}".format(*shade) for name, shade in zip(ordered, shades, strict=False)}


def metric_by_step(rows: Sequence[TrialRow], space: Space, metric: str, winner: str, colors: Colors) -> bytes | None:
    """One line per trial, the winner's thick and with a star at its best value; a cross ends those that did not train
    to the end. Dotted lines are the scheduler's rungs, dots the steps at which a trial continued from another one's
    model. None before the first evaluation."""
    if not any(row.history for row in rows):
        return None
    figure, axes = new_axes("Trials", metric, size=WIDE)
    named = _readable(rows)
    for row in rows:
        if not row.history:
            continue
        is_winner, color = row.name == winner, colors[row.name]
        style: dict[str, Any] = {"linewidth": 2.6, "zorder": 4} if is_winner else {"linewidth": 1.1}
        axes.plot(*zip(*row.history, strict=True), color=color, **style)
        end = "x" if row.status in CUT_SHORT else "o"
        axes.plot(*row.history[-1], end, color=color, markersize=5 if end == "x" else 3.5)
        if is_winner and row.best_step is not None and row.best_value is not None:
            axes.plot(row.best_step, row.best_value, **STAR)
        if row.name in named:
            text = f"{number_of(row.name)}{' (best)' * is_winner}"
            axes.annotate(text, row.history[-1], (5, -2), fontsize=7, color=color, textcoords="offset points")
        values = dict(row.history)
        moments = [step for step, _ in row.sources if step in values]
        axes.plot(moments, [values[step] for step in moments], "o", color=SECOND, markersize=4)
    scheduler = space.scheduler
    last = max((row.step for row in rows), default=0)
    if isinstance(scheduler, Halving) and scheduler.grace_steps:  # in epochs they depend on the batch size
        rung = float(scheduler.grace_steps)
        while rung <= last:
            axes.axvline(rung, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
            rung *= scheduler.reduction_factor
    return png_of(figure)


def _readable(rows: Sequence[TrialRow]) -> set[str]:
    """The best trials whose numbers fit at the ends of their lines without covering a better trial's number."""
    ends = {row.name: row.history[-1] for row in rows if row.history}
    values = [value for row in rows for _, value in row.history]
    least = NAME_HEIGHT * (max(values) - min(values)) if values else 0.0
    named: dict[str, tuple[int, float]] = {}
    for name, (step, value) in list(ends.items())[:MOST_NAMES]:
        if all(step != other or abs(value - height) >= least > 0.0 for other, height in named.values()):
            named[name] = (step, value)
    return set(named)


def parallel_coordinates(rows: Sequence[TrialRow], space: Space, metric: str, mode: str, winner: str) -> bytes | None:
    """One line per trial through its values; darker is better, and the winner has its own color. None while there are
    no two trials to compare."""
    rows = [row for row in rows if row.best_value is not None]
    if len(rows) < 2:
        return None
    keys = list(space.parameters)
    figure = Figure(figsize=WIDE, layout="constrained", dpi=130)
    axes = figure.add_subplot()
    axes.set_title("Values", loc="left", fontsize=10, color=INK, fontweight="bold")
    best = np.array([row.best_value for row in rows], dtype=float)
    goodness = _unit(best if mode == "max" else -best)
    for place in np.argsort(goodness):
        values = rows[place].values_at_best
        heights = [space.parameters[key].unit(values[key]) if key in values else math.nan for key in keys]
        style: dict[str, Any] = {"color": colormaps["Blues"](0.2 + 0.8 * goodness[place]), "linewidth": 1.3}
        if rows[place].name == winner:
            style = {"color": SECOND, "linewidth": 2.6, "zorder": 4}
        axes.plot(range(len(keys) + 1), [*heights, _unit(best)[place]], **style)
    for index, key in enumerate(keys):
        axes.axvline(index, color=GRID, zorder=0)
        for height, text in _ticks(space.parameters[key]):
            axes.annotate(
                text, (index, height), (3, 0), fontsize=7, color=INK, textcoords="offset points", bbox=BEHIND_TEXT
            )
    for height, value in sorted({(_unit(best)[place], best[place]) for place in (best.argmin(), best.argmax())}):
        text = f"{value:.4f}"
        axes.annotate(text, (len(keys), height), (3, 0), fontsize=7, textcoords="offset points", bbox=BEHIND_TEXT)
    axes.set_xticks(range(len(keys) + 1), [*(short(key) for key in keys), metric], fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(keys) + 0.35)
    axes.spines[:].set_visible(False)
    return png_of(figure)


def trade_offs(
    front: Sequence[TrialRow], rows: Sequence[TrialRow], metric: str, other: str, winner: str
) -> bytes | None:
    """One dot per trial, a star for the winner: the metric against another objective. `front`: the Pareto front, the
    trials that no other one beats in everything."""
    rows = [row for row in rows if row.best_value is not None and other in row.best_others]
    if not rows:
        return None
    figure, axes = new_axes("Trade-offs", metric)
    best = {row.name for row in front}
    for row in rows:
        place = (row.best_others[other], row.best_value or 0.0)
        axes.plot(*place, "o", color=ACCENT if row.name in best else FAINT, markersize=5)
        if row.name == winner:
            axes.plot(*place, **STAR)
        if row.name in best:
            axes.annotate(number_of(row.name), place, (4, 3), fontsize=7, textcoords="offset points")
    axes.set_xlabel(other, fontsize=8)
    axes.xaxis.set_major_locator(_fractions())
    return png_of(figure)


def importance(rows: Sequence[TrialRow], space: Space) -> bytes | None:
    """How much of the metric's variance each parameter explains (fANOVA, Hutter et al., 2014); None for few trials."""
    keys = [
        key for key, domain in space.parameters.items() if not domain.when and len(set(map(repr, domain.ends()))) > 1
    ]
    rows = [row for row in rows if row.best_value is not None and all(key in row.values_at_best for key in keys)]
    if len(rows) < LEAST_TRIALS or len(keys) < 2 or len({row.best_value for row in rows}) < 2:
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    heights: dict[str, Any] = {key: optuna.distributions.FloatDistribution(0.0, 1.0) for key in keys}
    for row in rows:
        params = {key: space.parameters[key].unit(row.values_at_best[key]) for key in keys}
        study.add_trial(optuna.create_trial(params=params, distributions=heights, value=row.best_value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    figure, axes = new_axes("Importance", "")
    names = sorted(found, key=lambda key: found[key])
    axes.barh([short(name) for name in names], [found[name] for name in names], color=ACCENT, height=0.6)
    axes.set_xlabel("share of the metric's variance, over all trials", fontsize=8)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(_fractions())
    return png_of(figure)


def allocation(segments: Sequence[Segment], winner: str, colors: Colors) -> bytes | None:
    """Workers of each trial over time, stacked, the winner's hatched; None when no trial had any."""
    if not segments:
        return None
    moments = sorted({moment for _, begin_s, end_s, _ in segments for moment in (begin_s, end_s)})
    trials = sorted({trial for trial, *_ in segments})
    middles = (np.array(moments[:-1]) + np.array(moments[1:])) / 2
    layers = [
        [
            sum(workers for name, begin_s, end_s, workers in segments if name == trial and begin_s <= m < end_s)
            for m in middles
        ]
        for trial in trials
    ]
    figure, axes = new_axes("Workers", "workers")
    steps = np.repeat(np.array(moments), 2)[1:-1] / 60
    shades = [colors[trial] for trial in trials]
    areas = axes.stackplot(steps, *(np.repeat(layer, 2) for layer in layers), colors=shades, linewidth=0)
    for trial, area in zip(trials, areas, strict=True):
        if trial == winner:
            area.set(**HATCHED)
    axes.set_xlabel("minutes since the sweep began", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(trials) <= MOST_NAMES:
        patches = [Patch(facecolor=colors[trial], label=number_of(trial)) for trial in trials if trial != winner]
        if winner in trials:
            patches.insert(0, Patch(facecolor=colors[winner], label=f"{number_of(winner)} (best)", **HATCHED))
        axes.legend(handles=patches, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.xaxis.set_major_locator(_fractions())
    return png_of(figure)


def number_of(trial: str) -> str:
    """The number of a trial: 0003 for trial_0003."""
    return trial.rpartition("_")[2]


def _ticks(domain: Domain) -> list[tuple[float, str]]:
    """(height, text) of the labels at a parameter's axis."""
    texts = ((value, f"{value:g}" if isinstance(value, float) else str(value)[:16]) for value in domain.ends())
    return [(domain.unit(value), text) for value, text in texts]


def _unit(values: np.ndarray) -> np.ndarray:
    """Values scaled to 0..1; all 1 when they are equal."""
    span = np.ptp(values) if len(values) else 0.0
    return (values - values.min()) / span if span else np.ones_like(values)


def _fractions() -> Any:
    """A locator for an axis whose values are not whole steps."""
    return MaxNLocator(nbins=6)
