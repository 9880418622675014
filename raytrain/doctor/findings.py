"""Findings: what a check says of which nodes. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"  # it works, but worse than it could, or it may be meant
    PROBLEM = "problem"  # a run fails by it, loses something by it, or may


@dataclass(frozen=True)
class Verdict:
    """What one check says of one node."""

    status: Status
    text: str
    """With `{}` where the amount goes."""
    mend: str = ""
    """One sentence; empty when all is well."""
    amount: float | None = None
    """The measured number in it, of which nodes may differ and agree all the same."""
    unit: Callable[[float], str] = str
    """The amount in words."""


@dataclass(frozen=True)
class Finding:
    """One row: a verdict, and the nodes that share it."""

    check: str
    status: Status
    nodes: list[str]
    """Their names."""
    value: str
    mend: str = ""


@dataclass(frozen=True)
class Report:
    """What the doctor says."""

    findings: list[Finding]
    """By check, and what is worst in each of them first."""
    num_nodes: int
    skipped: list[str] = field(default_factory=list)
    """Checks that were not made, and why."""

    def count(self, status: Status) -> int:
        """Findings of this status."""
        return sum(finding.status is status for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """1 when there is a problem."""
        return 1 if self.count(Status.PROBLEM) else 0

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "problems": self.count(Status.PROBLEM), "notes": self.count(Status.NOTE)}


def fold(check: str, verdicts: Iterable[tuple[str, Verdict]], names: Mapping[str, str]) -> list[Finding]:
    """One finding for all nodes of which a check says the same, but for the amount; the worst first.

    Args:
        verdicts: (node id, verdict); a node may have several.
        names: Of the nodes, by id.
    """
    groups: dict[tuple[Status, str, str], list[tuple[str, Verdict]]] = {}
    for node, verdict in verdicts:
        groups.setdefault((verdict.status, verdict.text, verdict.mend), []).append((node, verdict))
    found = [
        Finding(check, status, sorted({names[node] for node, _ in group}), _value(text, group), mend)
        for (status, text, mend), group in groups.items()
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
    """All is well."""
    return Verdict(Status.OK, text, "", amount, unit)


def note(text: str, mend: str, amount: float | None = None, unit: Callable[[float], str] = str) -> Verdict:
    """Worth knowing."""
    return Verdict(Status.NOTE, text, mend, amount, unit)


def problem(text: str, mend: str, amount: float | None = None, unit: Callable[[float], str] = str) -> Verdict:
    """To be mended."""
    return Verdict(Status.PROBLEM, text, mend, amount, unit)


def in_bytes(count: float) -> str:
    """As 470 MiB or 12.3 GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def in_rate(bytes_per_s: float) -> str:
    """As 113 MB/s; decimal, as networks are sold."""
    return f"{bytes_per_s / 1e9:,.1f} GB/s" if bytes_per_s >= 1e9 else f"{bytes_per_s / 1e6:,.3g} MB/s"


def in_seconds(seconds: float) -> str:
    """As 3.2 ms or 41 s."""
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{seconds * 1e3:,.2g} ms"
