"""Turns facts into findings. Pure: no Ray, no torch, so that each finding can be tested."""

from raytrain.doctor import judge_links, judge_nodes
from raytrain.doctor.facts import Facts
from raytrain.doctor.findings import Finding, Report, fold

CHECKS = {
    "nodes": judge_nodes.nodes,
    "versions": judge_nodes.versions,
    "packages": judge_nodes.packages,
    "GPUs": judge_nodes.gpus,
    "clock": judge_nodes.clocks,
    "memory": judge_nodes.memory,
    "object store": judge_nodes.object_store,
    "disk": judge_nodes.disks,
    "open files": judge_nodes.open_files,
    "storage": judge_links.storage,
    "ports": judge_links.ports,
    "interfaces": judge_links.interfaces,
    "all-reduce": judge_links.all_reduce,
    "object transfer": judge_links.transfers,
    "workers": judge_links.workers,
    "snapshots": judge_links.snapshots,
}
"""In display order."""


def judge(facts: Facts) -> Report:
    """Run all checks on the facts."""
    names = facts.names()
    findings: list[Finding] = []
    for check, verdicts in CHECKS.items():
        findings += fold(check, verdicts(facts), names)
    return Report(findings, len(facts.nodes), list(facts.skipped))
