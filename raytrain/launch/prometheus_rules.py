"""Checks of Prometheus rule files, except for the expressions, which only Prometheus can parse."""

import re
from collections.abc import Iterator
from typing import Any

from raytrain.launch.cluster_rules import Problem

DURATION = re.compile(r"(\d+(ms|[smhdwy]))+")
OF_A_RULE = ("alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations")


def rule_problems(groups: Any, place: str) -> Iterator[Problem]:
    """Problems in the groups of a rule file or of a PrometheusRule. `place`: their dotted path in the file."""
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        yield Problem(place, "expected a list of groups of rules")
        return
    names = [group.get("name") for group in groups]
    for i, group in enumerate(groups):
        if not group.get("name") or names.count(group["name"]) > 1:
            yield Problem(f"{place}.{i}.name", f"{group.get('name')}: each group needs a unique name")
        rules = group.get("rules")
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            yield Problem(f"{place}.{i}.rules", "expected a list of rules")
            continue
        for j, rule in enumerate(rules):
            yield from _rule(rule, f"{place}.{i}.rules.{j}")


def _rule(rule: dict[str, Any], place: str) -> Iterator[Problem]:
    if ("alert" in rule) == ("record" in rule):
        yield Problem(place, "a rule has either `alert` or `record`")
    if not isinstance(rule.get("expr"), str | int | float):
        yield Problem(f"{place}.expr", "missing: the expression")
    for name in sorted(set(rule) - set(OF_A_RULE)):
        yield Problem(f"{place}.{name}", f"Prometheus knows no such field; allowed: {', '.join(OF_A_RULE)}")
    for name in ("for", "keep_firing_for"):
        if name in rule and not DURATION.fullmatch(str(rule[name])):
            yield Problem(f"{place}.{name}", f"{rule[name]} is not a duration; give it like 30s, 10m or 1h30m")
    for name in ("labels", "annotations"):
        values = rule.get(name, {})
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            yield Problem(f"{place}.{name}", "expected names with texts")
