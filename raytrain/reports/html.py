"""The report of a run: one HTML file that needs nothing else, and the figures as PNGs beside it."""

import base64
import datetime
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from raytrain.reports.curves import RunRecord, read_run
from raytrain.reports.goodput import CLASSES
from raytrain.reports.plots import draw_all, newest_confusion
from raytrain.storage import Storage
from raytrain.training.job import PHASES
from raytrain.training.records import scores_of

REPORT_NAME = "report.html"
MAX_TABLE_LABELS = 30  # a larger confusion matrix is shown as a picture


def build_report(run: Storage) -> str:
    """Write `report.html` and `plots/*.png` into a run's folder, done or not.

    Returns:
        The full path of report.html.
    """
    record = read_run(run)
    figures = draw_all(record)
    for name, png in figures.items():
        run.write_bytes(f"plots/{name}.png", png)
    page = page_template("raytrain.reports").render(
        name=run.place()[1],
        path=run.path_of(),
        summary=record.summary,
        tiles=_tiles(record),
        figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
        # Keys that an unfinished or older file may lack are empty, so that the template need not ask for each.
        results=[{"tables": {}, **row} for row in map(record.last_evaluation, ("test", "validation")) if row],
        evaluations=record.evaluations,
        metric_names=_metric_names(record),
        confusion=_confusion_rows(record),
        has_restarts=bool(record.restarts()),
        goodput=_goodput_rows(record),
        changes=[event for event in record.events if PHASES[0] in event and _is_change(event)],
        phases=PHASES,
        events=record.events,
        checkpoints=record.checkpoints,
        config=record.config_text,
    )
    run.commit_bytes(REPORT_NAME, page.encode(errors="replace"))  # half a surrogate pair has no bytes
    return run.path_of(REPORT_NAME)


def page_template(package: str) -> jinja2.Template:
    """The template of a package's page, which extends our base.html. Autoescape is on: labels and file names are the
    user's data."""
    loader = jinja2.FunctionLoader(lambda name: _text_of("raytrain.reports", name))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "clock": _clock, "size": _size, "duration": duration}
    return environment.from_string(_text_of(package, "template.html"))


def _text_of(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def _is_change(event: dict[str, Any]) -> bool:
    """A command that goes on where the last one had come to is none."""
    return event.get("kind") != "begin" or bool(event.get("steps_redone"))


def _tiles(record: RunRecord) -> list[tuple[str, str]]:
    """(label, value) of the numbers at the top."""
    summary = record.summary
    last = record.steps[-1] if record.steps else {}
    tiles = [("status", summary.get("status", "running or interrupted"))]
    if summary.get("best_value") is not None:
        tiles.append((f"best validation {summary['best_metric']}", _number(summary["best_value"])))
    tiles += _test_tiles(record)
    tiles.append(("steps", f"{last.get('step', 0):,}"))
    if record.num_redone:
        tiles.append(("steps redone after restarts", f"{record.num_redone:,}"))
    busy_s = float(np.nansum(record.column("step_s")))
    if last.get("samples_seen") and busy_s:
        tiles.append(("samples/s", f"{last['samples_seen'] / busy_s:,.1f}"))
    if last.get("tokens_seen"):
        tiles.append(("tokens", f"{last['tokens_seen']:,}"))
    sizes = sorted({row["world_size"] for row in record.steps if row.get("world_size")})
    if sizes:
        tiles.append(("workers", f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"))
    if record.goodput:
        tiles.append(("goodput", f"{record.goodput['goodput']:.1%}"))
    if summary.get("duration_s"):
        tiles.append(("last command took", duration(summary["duration_s"])))
    return tiles


def _test_tiles(record: RunRecord) -> list[tuple[str, str]]:
    """The metric that picked the best model, and the share that is right, on the test split."""
    row = record.last_evaluation("test") or {}
    best = record.summary.get("best_metric") or "loss"
    names = dict.fromkeys((best, "accuracy", "token_micro_f1", "subset_accuracy"))
    return [(f"test {name}", _number(row[name])) for name in names if isinstance(row.get(name), float)][:2]


def _confusion_rows(record: RunRecord) -> list[tuple[str, list[tuple[int, float]]]] | None:
    """(true label, (count, shade from 0 to 1) for each predicted label); None when there is none or it is too large.

    The shade is the square root of the share of the row, or rare mistakes would not be seen beside the right ones.
    """
    table = newest_confusion(record)
    if table is None or len(table["labels"]) > MAX_TABLE_LABELS:
        return None
    rows = zip(table["labels"], table["counts"], strict=True)
    return [(label, [(count, (count / max(1, sum(counts))) ** 0.5) for count in counts]) for label, counts in rows]


def _goodput_rows(record: RunRecord) -> list[tuple[str, float, float]]:
    """(what, worker-seconds, share) of each class that has any, the largest first."""
    if not record.goodput:
        return []
    total_s = record.goodput["worker_seconds"]
    classes = sorted(record.goodput["classes"].items(), key=lambda item: -item[1])
    return [(CLASSES[name], seconds, seconds / total_s) for name, seconds in classes if seconds > 0]


def _metric_names(record: RunRecord) -> list[str]:
    """Names of the metrics, in the order in which the task gives them."""
    return list({name: None for row in record.evaluations for name in scores_of(row)})


def _number(value: Any) -> str:
    """Four decimals for a measure, separators for a count."""
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _clock(time_s: float | None) -> str:
    if time_s is None:
        return ""
    moment = datetime.datetime.fromtimestamp(time_s, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
