"""The report of a sweep: one HTML file that needs nothing else. `raytrain report SWEEP` writes it again."""

import base64
import json
from typing import Any

from raytrain.config.io import dump_config, to_yaml
from raytrain.reports.html import duration, page_template
from raytrain.storage import Storage
from raytrain.training.records import read_jsonl
from raytrain.tuning.best_trial import read_sweep, winner_config
from raytrain.tuning.plots import Segment, allocation, importance, metric_by_step, parallel_coordinates, trade_offs
from raytrain.tuning.space.schedulers import Generational, Halving
from raytrain.tuning.space.space import short
from raytrain.tuning.state import SUMMARY
from raytrain.tuning.trials import TRIALS, TrialRow, TrialTable

REPORT = "sweep.html"
CHANGES = ("begin", "resize", "reclaim", "failure")


def build_sweep_report(root: Storage) -> str:
    """Write `sweep.html` and `plots/*.png` into a sweep's folder, done or not. Returns the page's full path."""
    raw, config, space = read_sweep(root)
    summary = json.loads(root.read_bytes(SUMMARY)) if root.exists(SUMMARY) else {}  # none while it runs at first
    metric, mode = raw["compares"]["metric"], raw["compares"]["mode"]
    trial_table = TrialTable(root, mode)
    rows = trial_table.best_first()
    segments = _segments(root, rows)
    front = trial_table.front(space.also) if space.also else []
    drawn = {
        "trials": metric_by_step(rows, space, metric),
        **{f"{o.metric}": trade_offs(front, rows, metric, o.metric) for o in space.also},
        "workers": allocation(segments),
        "importance": importance(rows, space),
        "values": parallel_coordinates(rows, space, metric, mode),
    }
    figures = {name: png for name, png in drawn.items() if png is not None}
    for name, png in figures.items():
        root.write_bytes(f"plots/{name}.png", png)
    best = trial_table.best
    page = page_template("raytrain.tuning").render(
        name=root.place()[1],
        path=root.path_of(),
        summary=summary,
        tiles=_tiles(trial_table, summary, metric, segments),
        figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
        metric=metric,
        best=best.name if best else "",
        also=[objective.metric for objective in space.also],
        front={row.name for row in front},
        is_population=isinstance(space.scheduler, Generational),
        rungs_are_steps=isinstance(space.scheduler, Halving) and space.scheduler.grace_steps is not None,
        keys={key: short(key) for row in rows for key in row.values},
        rows=rows,
        best_config=dump_config(winner_config(root, config, best)) if best else "",
        space=to_yaml(space.model_dump(mode="json", exclude_unset=True)),
    )
    root.commit_bytes(REPORT, page.encode(errors="replace"))
    return root.path_of(REPORT)


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
    hours = sum((end_s - begin_s) * workers for _, begin_s, end_s, workers in segments) / 3600
    tiles.append(("worker-hours", f"{hours:.2f}"))
    if summary.get("duration_s"):
        tiles.append(("last command took", duration(summary["duration_s"])))
    return tiles


def _segments(root: Storage, rows: list[TrialRow]) -> list[Segment]:
    """When each trial had how many workers, from its events."""
    found: list[Segment] = []
    for row in rows:
        events = read_jsonl(root.at(f"{TRIALS}/{row.name}"), "events.jsonl")
        changes = [event for event in events if event.get("kind") in CHANGES and "started_at_s" in event]
        for index, change in enumerate(changes):
            follows = changes[index + 1 :]
            last_s = max(event["time"] for event in events if event.get("attempt") == change.get("attempt"))
            end_s = min([last_s, *(event["started_at_s"] for event in follows)]) if follows else last_s
            found.append((row.name, change["started_at_s"], max(end_s, change["started_at_s"]), change["world_size"]))
    began_s = min((begin_s for _, begin_s, _, _ in found), default=0.0)
    return [(name, begin_s - began_s, end_s - began_s, workers) for name, begin_s, end_s, workers in found]
