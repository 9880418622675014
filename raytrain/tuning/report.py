"""The report of a sweep: one self-contained HTML file. `raytrain report SWEEP` writes it again."""

import json
from collections import defaultdict
from typing import Any

from raytrain.config import RunConfig
from raytrain.config.io import dump_config, flatten
from raytrain.config.yaml import to_yaml
from raytrain.reports.page import duration, embedded, page_template
from raytrain.storage import Storage
from raytrain.training.records import iterate_jsonl, read_jsonl
from raytrain.tuning.best_trial import read_sweep, winner_config
from raytrain.tuning.plots import (
    Segment,
    allocation,
    importance,
    metric_by_step,
    parallel_coordinates,
    trade_offs,
    trial_colors,
)
from raytrain.tuning.space.schedulers import Generational, Halving
from raytrain.tuning.space.space import Space, short
from raytrain.tuning.state import SUMMARY
from raytrain.tuning.trials import TRIALS, TrialRow, TrialTable

REPORT = "sweep.html"
CHANGES = ("begin", "resize", "reclaim", "failure")
PARTS = ("step_s", "checkpoint_s", "evaluation_s")  # components of the time between two lines of metrics.jsonl


def build_sweep_report(root: Storage) -> str:
    """Write `sweep.html` and `plots/*.png` into a sweep's folder, finished or not. Returns the page's full path."""
    raw, config, space = read_sweep(root)
    summary = json.loads(root.read_bytes(SUMMARY)) if root.exists(SUMMARY) else {}  # none in the first command
    metric, mode = raw["compares"]["metric"], raw["compares"]["mode"]
    trial_table = TrialTable(root, mode)
    rows = trial_table.best_first()
    segments = _segments(root, rows)
    front = trial_table.front(space.also) if space.also else []
    best, colors = trial_table.best, trial_colors([row.name for row in rows])
    figures = _figures(rows, space, raw["compares"], front, segments, best, colors)
    for name, png in figures.items():
        root.write_bytes(f"plots/{name}.png", png)
    page = page_template("raytrain.tuning").render(
        name=root.place()[1],
        path=root.path_of(),
        message=summary.get("message"),
        tiles=_tiles(trial_table, summary, metric, segments),
        figures=embedded(figures),
        metric=metric,
        best=best,
        changes=winner_changes(config, best) if best else [],
        also=[objective.metric for objective in space.also],
        front={row.name for row in front},
        is_population=isinstance(space.scheduler, Generational),
        rungs_are_steps=isinstance(space.scheduler, Halving) and space.scheduler.grace_steps is not None,
        keys={key: short(key) for row in rows for key in row.values},
        rows=rows,
        colors=colors,
        worker_s=_worker_seconds(segments),
        best_config=dump_config(winner_config(root, config, best)) if best else "",
        space=to_yaml(space.model_dump(mode="json", exclude_unset=True)),
    )
    root.commit_bytes(REPORT, page.encode(errors="replace"))
    return root.path_of(REPORT)


def _figures(
    rows: list[TrialRow],
    space: Space,
    compares: dict[str, str],
    front: list[TrialRow],
    segments: list[Segment],
    best: TrialRow | None,
    colors: dict[str, str],
) -> dict[str, bytes]:
    """Every figure that there is data for: name -> PNG."""
    metric, winner = compares["metric"], best.name if best else ""
    drawn = {
        "trials": metric_by_step(rows, space, metric, winner, colors),
        **{f"{o.metric}": trade_offs(front, rows, metric, o.metric, winner) for o in space.also},
        "workers": allocation(segments, winner, colors),
        "importance": importance(rows, space),
        "values": parallel_coordinates(rows, space, metric, compares["mode"], winner),
    }
    return {name: png for name, png in drawn.items() if png is not None}


def winner_changes(config: RunConfig, best: TrialRow) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in the sweep's config, value in the winner) of each difference."""
    base = flatten(config.model_dump(mode="json"))
    values = {key: value for key, value in best.values_at_best.items() if base.get(key) != value}
    return [(key, base.get(key), value) for key, value in values.items()]


def _tiles(
    trial_table: TrialTable, summary: dict[str, Any], metric: str, segments: list[Segment]
) -> list[tuple[str, str]]:
    best = trial_table.best
    tiles = [("status", summary.get("status", "running or interrupted"))]
    if best is not None:
        tiles.append((f"best {metric}, {best.name}", f"{best.best_value:.4f}"))
    tiles.append(("trials", str(len(trial_table.rows))))
    tiles += [
        (status, str(trial_table.count(status)))
        for status in ("pruned", "failed", "stopped")
        if trial_table.count(status)
    ]
    tiles.append(("steps", f"{trial_table.steps:,}"))
    tiles.append(("worker-hours", f"{sum(_worker_seconds(segments).values()) / 3600:.2f}"))
    if summary.get("duration_s"):
        tiles.append(("last command took", duration(summary["duration_s"])))
    return tiles


def _worker_seconds(segments: list[Segment]) -> dict[str, float]:
    """Worker-seconds of each trial."""
    found: defaultdict[str, float] = defaultdict(float)
    for name, begin_s, end_s, workers in segments:
        found[name] += (end_s - begin_s) * workers
    return dict(found)


def _segments(root: Storage, rows: list[TrialRow]) -> list[Segment]:
    """The number of workers of each trial over time."""
    found = [segment for row in rows for segment in segments_of(root.at(f"{TRIALS}/{row.name}"), row.name)]
    began_s = min((begin_s for _, begin_s, _, _ in found), default=0.0)
    return [(name, begin_s - began_s, end_s - began_s, workers) for name, begin_s, end_s, workers in found]


def segments_of(trial: Storage, name: str) -> list[Segment]:
    """The segments of one trial, in seconds since 1970. A trial that the scheduler has stopped wrote no last event: its
    last worker group ends with its last step or evaluation."""
    events, evaluations = read_jsonl(trial, "events.jsonl"), read_jsonl(trial, "evals.jsonl")
    steps_s = _seconds_after_first_step(trial)
    changes = [event for event in events if event.get("kind") in CHANGES and "started_at_s" in event]
    found: list[Segment] = []
    for index, change in enumerate(changes):
        attempt = change.get("attempt")
        moments = [event["time"] for event in [*events, *evaluations] if event.get("attempt") == attempt]
        # Lines of metrics.jsonl have durations, not times. The first step's event is written when that step is done.
        last_s = max([*moments, change["time"] + steps_s.get(attempt, 0.0)])
        end_s = min([last_s, *(event["started_at_s"] for event in changes[index + 1 :])])
        found.append((name, change["started_at_s"], max(end_s, change["started_at_s"]), change["world_size"]))
    return found


def _seconds_after_first_step(trial: Storage) -> dict[int | None, float]:
    """For each attempt the seconds from its first line of metrics.jsonl to its last."""
    found: dict[int | None, float] = {}
    for row in iterate_jsonl(trial, "metrics.jsonl"):
        attempt = row.get("attempt")
        found[attempt] = found[attempt] + sum(row.get(part) or 0.0 for part in PARTS) if attempt in found else 0.0
    return found
