"""Two or more runs on one page: their curves in the same figures, their results and what differs between configs."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raytrain.config import RunConfig
from raytrain.config.io import flatten
from raytrain.config.yaml import parse_yaml
from raytrain.errors import ConfigError
from raytrain.reports.compare_plots import draw_runs, run_colors
from raytrain.reports.curves import RunRecord, read_run
from raytrain.reports.html import facts, tiles
from raytrain.reports.page import embedded, number, page_template
from raytrain.reports.scores import metric_names
from raytrain.storage import Storage

COMPARISON = "comparison.html"
NAMES_OF_A_RUN = ("name", "storage_path")  # differ between any two runs
Rows = list[tuple[str, list[str]]]
"""(what, its value in each run)."""


def build_comparison(runs: Sequence[Storage], output: str = COMPARISON) -> str:
    """Write one page that compares several runs, whether or not they have ended.

    Args:
        runs: The runs' folders.
        output: Path or URI of the page.

    Returns:
        The page's full path.

    Raises:
        ConfigError: The same run is given twice.
    """
    records = {label: read_run(run) for label, run in _labeled(runs).items()}
    folder, name = os.path.split(output)
    target = Storage(folder or ".")
    page = page_template("raytrain.reports", "compare.html").render(
        name=f"{len(records)} runs",
        path=", ".join(run.path_of() for run in runs),
        message="",
        tiles=[],
        labels=list(records),
        colors=run_colors(len(records)),
        figures=embedded(draw_runs(records)),
        scores=_rows(records, _scores),
        courses=_rows(records, _course),
        differences=config_differences({label: record.config_text for label, record in records.items()}),
        origins=_rows(records, lambda record: dict(facts(record)), only_different=True),
    )
    target.commit_bytes(name, page.encode(errors="replace"))
    return target.path_of(name)


def _labeled(runs: Sequence[Storage]) -> dict[str, Storage]:
    """The runs by label: the shortest end of each path that distinguishes it from the others."""
    paths = [run.path_of() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path} is given twice; a comparison needs different runs")
    parts = [path.split("/") for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(words[-depth:]) for words in parts]
        if len(set(labels)) == len(labels):
            return dict(zip(labels, runs, strict=True))
    return dict(zip(paths, runs, strict=True))


def _scores(record: RunRecord) -> dict[str, str]:
    """A run's best value and the metrics of its last evaluations, by label."""
    found: dict[str, str] = {}
    if "value" in record.best:
        found[f"best validation {record.best.get('metric', '')}"] = number(record.best["value"])
    if "step" in record.best:
        found["at step"] = number(record.best["step"])
    rows = {"test": record.last_evaluation("test"), "last validation": record.last_evaluation("validation")}
    for split, row in rows.items():
        found |= {f"{split} {name}": number(row[name]) for name in metric_names(record) if row and name in row}
    return found


def _course(record: RunRecord) -> dict[str, str]:
    """A run's progress and speed, by label."""
    return {label: value for label, value in tiles(record) if not label.startswith(("test ", "best validation "))}


def config_differences(texts: Mapping[str, str]) -> Rows:
    """The config fields whose values differ between runs. `texts`: the config.yaml of each run, by label."""
    configs = {label: flatten(_parsed(text)) for label, text in texts.items()}
    keys = dict.fromkeys(key for config in configs.values() for key in config if key not in NAMES_OF_A_RUN)
    rows = [(key, [_shown(config.get(key, "")) for config in configs.values()]) for key in keys]
    return [row for row in rows if len(set(row[1])) > 1]


def _parsed(text: str) -> dict[str, Any]:
    """The fields of a config.yaml; empty when the file is missing or incomplete."""
    try:
        raw = parse_yaml(text, RunConfig)
    except ConfigError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rows(
    records: Mapping[str, RunRecord], of: Callable[[RunRecord], Mapping[str, str]], *, only_different: bool = False
) -> Rows:
    """One row for each label that at least one run has a value for."""
    columns = [of(record) for record in records.values()]
    rows = [(what, [column.get(what, "") for column in columns]) for what in _in_order(columns)]
    return [row for row in rows if not only_different or len(set(row[1])) > 1]


def _in_order(columns: Sequence[Mapping[str, str]]) -> list[str]:
    """All keys, in the order of the columns with the most keys."""
    ordered = sorted(columns, key=len, reverse=True)
    return list(dict.fromkeys(what for column in ordered for what in column))
