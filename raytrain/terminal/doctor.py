"""Terminal output of `raytrain doctor`."""

import json
import os

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raytrain.doctor.facts import HERE_NAME
from raytrain.doctor.findings import Finding, Report, Status
from raytrain.terminal.output import make_console

COLORS = {Status.OK: "green", Status.NOTE: "yellow", Status.PROBLEM: "red"}
FILE_WIDTH = 120  # columns if the output is not a terminal
MAX_NAMES = 3  # nodes named in a row; --json lists all


class DoctorConsole:
    """Prints a line per phase, and the table at the end. With JSON, nothing else goes to standard output."""

    def __init__(self, *, as_json: bool = False, console: Console | None = None):
        self._as_json = as_json
        self._console = console or make_console(stderr=as_json)
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = FILE_WIDTH

    def say(self, text: str) -> None:
        """Print that a new phase has begun."""
        self._console.print(text, style="dim", soft_wrap=True)

    def show(self, report: Report) -> None:
        """Print the report."""
        if self._as_json:
            print(json.dumps(report.to_json(), indent=1))
            return
        self._console.print()
        self._console.print(finding_table(report))
        for text in report.skipped:
            self._console.print(f"not checked: {text}", style="dim", soft_wrap=True)
        self._console.print(verdict(report), style=COLORS[_worst(report)], soft_wrap=True)


def finding_table(report: Report) -> Table:
    """One row per finding, grouped by check; the remedy is below the finding."""
    table = Table(box=None, pad_edge=False)
    for name in ("check", ""):
        table.add_column(name, no_wrap=True)
    table.add_column("nodes", max_width=26)
    table.add_column("found", overflow="fold")
    last = ""
    for finding in report.findings:
        table.add_row(
            finding.check if finding.check != last else "",
            Text(finding.status.value, style=COLORS[finding.status]),
            Text(_nodes(finding, report)),
            Text(finding.value + (f"\n-> {finding.remedy}" if finding.remedy else "")),
        )
        last = finding.check
    return table


def _nodes(finding: Finding, report: Report) -> str:
    names, of_ray = finding.nodes, [name for name in finding.nodes if name != HERE_NAME]
    if len(of_ray) == report.num_nodes:
        return f"all {len(of_ray)}" if len(of_ray) > 1 else of_ray[0]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def verdict(report: Report) -> str:
    """The last line."""
    problems, notes = report.count(Status.PROBLEM), report.count(Status.NOTE)
    counts = [f"{n} {word}{'s' * (n > 1)}" for n, word in ((problems, "problem"), (notes, "note")) if n]
    return ", ".join(counts) or "no problems"


def _worst(report: Report) -> Status:
    return next((s for s in (Status.PROBLEM, Status.NOTE) if report.count(s)), Status.OK)
