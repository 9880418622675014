"""Builds the report of a run: one self-contained HTML file, and its figures as PNG files."""

from typing import Any

from raytrain.reports.curves import RunRecord, read_run
from raytrain.reports.data_page import read_summary, section_of
from raytrain.reports.goodput import CLASSES
from raytrain.reports.page import duration, embedded, number, page_template
from raytrain.reports.plots import draw_all
from raytrain.reports.scores import (
    confusion_rows,
    headline,
    label_rows,
    label_splits,
    metric_names,
    samples_by_prompt,
    scored,
)
from raytrain.storage import Storage
from raytrain.training.job import PHASES

REPORT_NAME = "report.html"


def build_report(run: Storage) -> str:
    """Write `report.html` and `plots/*.png` into a run directory, whether or not the run has ended.

    Returns:
        The full path of report.html.
    """
    record = read_run(run)
    figures, columns = draw_all(record), scored(record)
    data = read_summary(run)
    for name, png in figures.items():
        run.write_bytes(f"plots/{name}.png", png)
    page = page_template("raytrain.reports").render(
        name=run.place()[1],
        path=run.path_of(),
        message=record.summary.get("message"),
        tiles=tiles(record),
        figures=embedded(figures),
        scored=columns,
        table_titles=list(dict.fromkeys(title for column in columns for title in column.tables)),
        evaluations=record.evaluations,
        metric_names=metric_names(record),
        samples=samples_by_prompt(record),
        best_step=record.best.get("step"),
        confusion=confusion_rows(record),
        has_restarts=bool(record.restarts),
        goodput=_goodput_rows(record),
        changes=[event for event in record.events if PHASES[0] in event and _is_change(event)],
        phases=PHASES,
        events=record.events,
        checkpoints=record.checkpoints,
        commands=record.commands,
        labels=label_rows(record),
        label_splits=label_splits(record),
        facts=facts(record),
        config=record.config_text,
        **({"data": None} if data is None else {**section_of(data), "are_examples_open": False}),
    )
    run.commit_bytes(REPORT_NAME, page.encode(errors="replace"))  # a lone surrogate can't be encoded
    return run.path_of(REPORT_NAME)


def _is_change(event: dict[str, Any]) -> bool:
    """Whether an event changed the workers: resuming a run without redoing a step does not."""
    return event.get("kind") != "begin" or bool(event.get("steps_redone"))


def tiles(record: RunRecord) -> list[tuple[str, str]]:
    """(label, value) of each number at the top of the page."""
    summary = record.summary
    last = record.steps[-1] if record.steps else {}
    found = [("status", summary.get("status", "running or interrupted"))]
    found += [(f"{split} {metric}", number(value)) for split, metric, value in headline(record)]
    found.append(("steps", f"{last.get('step', 0):,}"))
    if record.num_redone:
        found.append(("steps redone after restarts", f"{record.num_redone:,}"))
    if last.get("samples_seen") and record.steps_s:
        found.append(("samples/s", f"{last['samples_seen'] / record.steps_s:,.1f}"))
    if last.get("tokens_seen"):
        found.append(("tokens", f"{last['tokens_seen']:,}"))
    if sizes := record.world_sizes:
        found.append(("workers", f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"))
    if record.goodput:
        found.append(("goodput", f"{record.goodput['goodput']:.1%}"))
    if summary.get("duration_s"):
        found.append(("last command took", duration(summary["duration_s"])))
    return found


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """(label, value) rows on the provenance of the run, as its last command recorded it; see runs.provenance."""
    if not record.commands:
        return []
    said = record.commands[-1]
    versions, machine, git = said.get("versions") or {}, said.get("machine") or {}, said.get("git") or {}
    memory = f"{machine['memory_gib']} GiB of memory" if machine.get("memory_gib") else ""
    cpus = f"{machine['cpus']} CPUs" if machine.get("cpus") else ""
    rows = [
        ("command", said.get("command")),
        ("commit", f"{git['commit']}{', with changes' * bool(git.get('is_modified'))}" if git.get("commit") else ""),
        ("versions", ", ".join(f"{package} {version}" for package, version in versions.items())),
        ("machine", ", ".join(filter(None, (machine.get("host"), machine.get("platform"), cpus, memory)))),
        ("GPUs", _counted(machine.get("gpus") or [])),
        ("epoch", said.get("epoch")),
    ]
    return [(what, value) for what, value in rows if value]


def _counted(names: list[str]) -> str:
    """As 8 x NVIDIA H200."""
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _goodput_rows(record: RunRecord) -> list[tuple[str, float, float]]:
    """(description, worker-seconds, fraction of the total) of each non-empty class, the largest first."""
    if not record.goodput:
        return []
    total_s = record.goodput["worker_seconds"]
    classes = sorted(record.goodput["classes"].items(), key=lambda item: -item[1])
    return [(CLASSES[name], seconds, seconds / total_s) for name, seconds in classes if seconds > 0]
