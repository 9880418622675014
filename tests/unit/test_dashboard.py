"""The Grafana dashboard and the Prometheus alerts: what they ask for is there, and Prometheus can read it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grafana_dashboard
import promql_parser
import pytest
import yaml

from raytrain.config.shipped import find_cluster_file
from raytrain.launch.cluster_check import check_cluster_file
from raytrain.monitoring import names
from raytrain.monitoring.names import METRICS, RAY_PREFIX

BOARD = json.loads(Path(find_cluster_file("raytrain")).read_text())
ALERTS = yaml.safe_load(Path(find_cluster_file("alerts")).read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS += [rule["expr"] for rule in RULES]


def parse(expression: str) -> Any:
    """By Prometheus' grammar; raises for what it refuses. Grafana has put its own interval in by then."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def selectors(expression: str) -> list[Any]:
    found: list[Any] = []

    def take(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)

    promql_parser.walk(parse(expression), take)
    return found


def metrics_of_ray() -> set[str]:
    """What a node's agent tells of it, and what Ray's own dashboards ask for."""
    from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    text = Path(default_dashboard_panels.__file__).read_text()
    return {f"ray_{name}" for name in METRICS_GAUGES} | set(re.findall(r"\b(?:ray|autoscaler)_[a-z_]+\b", text))


@pytest.fixture(scope="module")
def known() -> set[str]:
    return metrics_of_ray() | {f"{RAY_PREFIX}{name}" for name in METRICS}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_is_exported(expression: str, known: set[str]) -> None:
    asked = selectors(expression)
    assert asked
    for selector in asked:
        assert selector.name in known, f"{selector.name} is exported by nobody"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_of_ours_is_one_of_the_metrics(expression: str) -> None:
    """A misspelt label matches nothing, or everything, and nobody is told."""
    of_metrics = [METRICS.get(selector.name.removeprefix(RAY_PREFIX)) for selector in selectors(expression)]
    ours = [metric for metric in of_metrics if metric is not None]
    for metric in ours:
        for inside in re.findall(rf"{RAY_PREFIX}{metric.name}\{{([^}}]*)\}}", expression):
            assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", inside)) <= set(metric.labels), expression
    if ours:
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert any({word.strip() for word in by.split(",")} <= set(metric.labels) for metric in ours), expression


def test_what_is_named_like_a_rate_is_taken_of_a_counter() -> None:
    """`increase` of a gauge is nonsense that no parser sees."""
    for expression in EXPRESSIONS:
        for function, name in re.findall(r"(rate|increase|delta|deriv)\(ray_(raytrain_\w+)", expression):
            assert METRICS[name].is_counter == (function in ("rate", "increase")), expression


def test_the_dashboard_is_what_its_script_makes() -> None:
    assert grafana_dashboard.dashboard() == BOARD, "run python tools/grafana_dashboard.py"


def test_the_dashboard_is_laid_out_without_gaps_and_overlaps() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert ids == sorted(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    assert [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"] == [
        *("Progress", "Elasticity", "Data", "Checkpoints", "Sweep", "Nodes")
    ]


def test_the_dashboard_asks_for_its_datasource_and_its_runs() -> None:
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["datasource", "sweep", "run"]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
    used = set(re.findall(r"\$(\w+)", " ".join(EXPRESSIONS)))
    assert used == {"run", "sweep", "__rate_interval"}
    for panel in PANELS:
        for target in panel["targets"]:
            by = {word.strip() for words in re.findall(r"by \(([^)]*)\)", target["expr"]) for word in words.split(",")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by, panel["title"]


def test_everything_that_is_exported_is_shown_or_watched() -> None:
    """But for what other panels show in another way."""
    beside = {names.EPOCH, names.LOSS_SCALE, names.STEPS, names.SAMPLES, names.TOKENS, names.STEP_S}
    beside |= {names.TRIALS_PLANNED, names.ENDS}
    asked = {selector.name for expression in EXPRESSIONS for selector in selectors(expression)}
    missing = {metric.name for metric in METRICS.values() if f"{RAY_PREFIX}{metric.name}" not in asked}
    assert missing <= {metric.name for metric in beside}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith(("Raytrain", "Ray"))
    assert rule["labels"]["severity"] in ("warning", "critical")
    summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
    assert "{{ $labels." in summary and len(description) > 60
    by = {word.strip() for words in re.findall(r"by \(([^)]*)\)", rule["expr"]) for word in words.split(",")}
    assert set(re.findall(r"\$labels\.(\w+)", summary + description)) <= by


def test_alerts_speak_of_fields_that_the_config_has() -> None:
    from raytrain.config import RunConfig

    text = " ".join(rule["annotations"]["description"] for rule in RULES)
    for dotted in re.findall(r"\b(?:training|workers|checkpoint|data)\.[a-z_.]*[a-z_]", text):
        section: Any = RunConfig
        for part in dotted.split("."):
            assert part in section.model_fields, dotted
            section = section.model_fields[part].annotation


def test_the_operators_rules_are_the_same() -> None:
    manifest = yaml.safe_load(Path(find_cluster_file("prometheus_rule")).read_text())
    assert manifest["spec"] == ALERTS


MISTAKES = [
    (
        "  - name: raytrain-nodes",
        "  - name: raytrain-runs",
        "groups.0.name: raytrain-runs: each group needs a unique name",
    ),
    ("        for: 5m", "        for: 5 minutes", "groups.2.rules.0.for: 5 minutes is not a duration"),
    ("        expr: max by (instance)", "        expression: max by (instance)", "groups.2.rules.0.expr: missing"),
    (
        "        expr: max by (instance)",
        "        expression: max by (instance)",
        "expression: Prometheus knows no such",
    ),
    ("      - alert: RayNodeDisk", "      - alrt: RayNodeDisk", "groups.2.rules.0: a rule has either `alert` or"),
    ("summary: The disk", "summary: 3 #", "groups.2.rules.0.annotations: expected names with texts"),
]


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES)
def test_a_mistake_in_the_rules_is_caught(tmp_path: Path, old: str, new: str, expected: str) -> None:
    for name in ("alerts", "prometheus_rule"):
        text, indent = Path(find_cluster_file(name)).read_text(), "  " * (name == "prometheus_rule")
        old_here = indent + old if old.startswith(" ") else old
        new_here = indent + new if new.startswith(" ") else new
        assert old_here in text
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.replace(old_here, new_here))
        problems = [str(problem) for problem in check_cluster_file(str(path)).problems]
        assert any(expected in problem for problem in problems), problems


def rules_of(text: str) -> Iterator[str]:
    yield from (str(problem) for problem in check_cluster_file(text).problems)


def test_a_file_whose_groups_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("groups: {name: x}\n")
    assert list(rules_of(str(path))) == ["groups: expected a list of groups of rules"]
