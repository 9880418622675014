"""The report of a run: one HTML file that needs nothing else, and the figures as PNGs beside it."""

import base64
import datetime
from importlib import resources
from typing import Any

import jinja2

from raytrain.report.curves import RunRecord, read_run
from raytrain.report.plots import draw_all
from raytrain.storage import Storage

REPORT_NAME = "report.html"


def build_report(run: Storage) -> str:
    """Write `report.html` and `plots/*.png` into a run's folder, done or not.

    Returns:
        The full path of report.html.
    """
    record = read_run(run)
    figures = draw_all(record)
    for name, png in figures.items():
        run.write_bytes(f"plots/{name}.png", png)
    page = _template().render(
        name=run.path_of().rstrip("/").rsplit("/", 1)[-1],
        path=run.path_of(),
        summary=record.summary,
        tiles=_tiles(record),
        figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
        results=[row for row in (record.last_evaluation("test"), record.last_evaluation("validation")) if row],
        evaluations=record.evaluations,
        metric_names=_metric_names(record),
        events=record.events,
        config=record.config_text,
    )
    run.commit_bytes(REPORT_NAME, page.encode())
    return run.path_of(REPORT_NAME)


def _template() -> jinja2.Template:
    """Autoescape is on: labels and file names are the user's data."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "clock": _clock}
    text = (resources.files("raytrain.report") / "template.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _tiles(record: RunRecord) -> list[tuple[str, str]]:
    """(label, value) of the numbers at the top."""
    summary = record.summary
    last = record.steps[-1] if record.steps else {}
    tiles = [("status", summary.get("status", "running or interrupted"))]
    if summary.get("best_value") is not None:
        tiles.append((f"best validation {summary['best_metric']}", _number(summary["best_value"])))
    for name, value in list(summary.get("final_metrics", {}).items())[1:3]:
        tiles.append((f"test {name}", _number(value)))
    tiles.append(("steps", f"{last.get('step', 0):,}"))
    if last:
        busy_s = sum(row["step_s"] for row in record.steps)
        tiles.append(("samples/s", f"{last['samples_seen'] / max(busy_s, 1e-9):,.1f}"))
        tiles.append(("tokens", f"{last['tokens_seen']:,}"))
        tiles.append(("workers", str(last["world_size"])))
    if summary.get("duration_s"):
        minutes, seconds = divmod(int(summary["duration_s"]), 60)
        tiles.append(("duration of the last command", f"{minutes}m {seconds:02d}s"))
    return tiles


def _metric_names(record: RunRecord) -> list[str]:
    """Names of the metrics, in the order in which the task gives them."""
    names = {name: None for row in record.evaluations for name, value in row.items() if isinstance(value, float)}
    names.pop("time", None)
    return list(names)


def _number(value: Any) -> str:
    """Four decimals for a measure, separators for a count."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _clock(time_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(time_s, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
