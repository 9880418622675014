"""Findings: the result of a check, and the nodes that it applies to. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    NOTE = "note"  # works, but slower or less safely than it could; may be intended
    PROBLEM = "problem"  # makes a run fail or lose work, or may do so


@dataclass(frozen=True)
class Verdict:
    """The result of one check on one node."""

    status: Status
    text: str
    """`{}` stands for the amount."""
    remedy: str = ""
    """What to do, in one sentence. Empty if the status is ok."""
    amount: float | None = None
    """The measured number in the text. Verdicts that differ only in it are shown as one finding."""
    unit: Callable[[float], str] = str
    """Formats the amount."""


@dataclass(frozen=True)
class Finding:
    """A verdict and the nodes that share it: one row of the report."""

    check: str
    status: Status
    nodes: list[str]
    """Display names."""
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """The result of an examination."""

    findings: list[Finding]
    """Grouped by check, the most severe first within each."""
    num_nodes: int
    skipped: list[str] = field(default_factory=list)
    """Checks that were skipped, and why."""

    def count(self, status: Status) -> int:
        """Number of findings with this status."""
        return sum(finding.status is status for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """1 if there is a problem, else 0."""
        return 1 if self.count(Status.PROBLEM) else 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dict."""
        return {**asdict(self), "problems": self.count(Status.PROBLEM), "notes": self.count(Status.NOTE)}


def fold(check: str, verdicts: Iterable[tuple[str, Verdict]], names: Mapping[str, str]) -> list[Finding]:
    """Merge verdicts that differ only in the amount into one finding each, the most severe first.

    Args:
        verdicts: (node id, verdict) pairs; a node may have several.
        names: Node id -> display name.
    """
    groups: dict[tuple[Status, str, str], list[tuple[str, Verdict]]] = {}
    for node, verdict in verdicts:
        groups.setdefault((verdict.status, verdict.text, verdict.remedy), []).append((node, verdict))
    found = [
        Finding(check, status, sorted({names[node] for node, _ in group}), _value(text, group), remedy)
        for (status, text, remedy), group in groups.items()
    ]
    return sorted(found, key=lambda finding: list(Status).index(finding.status), reverse=True)


def _value(text: str, group: list[tuple[str, Verdict]]) -> str:
    amounts = [verdict.amount for _, verdict in group if verdict.amount is not None]
    if not amounts:
        return text
    unit = group[0][1].unit
    low, high = unit(min(amounts)), unit(max(amounts))
    return text.replace("{}", low if low == high else f"{low} to {high}")


def ok(text: str, amount: float | None = None, unit: Callable[[float], str] = str) -> Verdict:
    """Everything is fine."""
    return Verdict(Status.OK, text, "", amount, unit)


def note(text: str, remedy: str, amount: float | None = None, unit: Callable[[float], str] = str) -> Verdict:
    """Not an error, but worth knowing."""
    return Verdict(Status.NOTE, text, remedy, amount, unit)


def problem(text: str, remedy: str, amount: float | None = None, unit: Callable[[float], str] = str) -> Verdict:
    """To be fixed."""
    return Verdict(Status.PROBLEM, text, remedy, amount, unit)


def in_bytes(count: float) -> str:
    """Such as 470 MiB or 12.3 GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def in_rate(bytes_per_s: float) -> str:
    """Such as 113 MB/s; decimal, as network speeds are quoted."""
    return f"{bytes_per_s / 1e9:,.1f} GB/s" if bytes_per_s >= 1e9 else f"{bytes_per_s / 1e6:,.3g} MB/s"


def in_seconds(seconds: float) -> str:
    """Such as 3.2 ms or 41 s."""
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{seconds * 1e3:,.2g} ms"
