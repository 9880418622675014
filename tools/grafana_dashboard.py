"""Makes cluster/grafana/raytrain.json, which is kept in the repository: python tools/grafana_dashboard.py

A panel is a line here and forty in the file. tests/unit/test_dashboard.py holds that the two agree.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain.monitoring import names
from raytrain.monitoring.names import RAY_PREFIX, Metric

FILE = Path(__file__).parents[1] / "cluster" / "grafana" / "raytrain.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, WIDTH, HEIGHT = 3, 8, 8  # Grafana's grid is 24 wide
DESCRIPTION = (
    "Runs and sweeps of raytrain, and the nodes that they run on. Import it, and choose the Prometheus that scrapes "
    "Ray's nodes. Checked: its expressions by a PromQL parser, its names against what raytrain and Ray 2.60.0 export; "
    "not checked: in a Grafana."
)

Query = tuple[str, str]
"""An expression, and its legend."""


def of_run(metric: Metric, by: str = "run") -> str:
    """A gauge. `max`: for some seconds after a resume, two processes tell of the same run."""
    return f'max by ({by}) ({RAY_PREFIX}{metric.name}{{run=~"$run", sweep=~"$sweep"}})'


def grown(metric: Metric, by: str = "run") -> str:
    """What a counter has grown by between two points of the graph."""
    return f'sum by ({by}) (increase({RAY_PREFIX}{metric.name}{{run=~"$run", sweep=~"$sweep"}}[$__rate_interval]))'


def per_s(metric: Metric) -> str:
    """A counter's rate."""
    return f'sum by (run) (rate({RAY_PREFIX}{metric.name}{{run=~"$run", sweep=~"$sweep"}}[$__rate_interval]))'


def of_sweep(metric: Metric, by: str = "sweep") -> str:
    return f'max by ({by}) ({RAY_PREFIX}{metric.name}{{sweep=~"$sweep"}})'


def simple(title: str, metric: Metric, unit: str = "short") -> dict[str, Any]:
    """One gauge of each run, described as in its own table."""
    return panel(title, unit, (of_run(metric), "{{run}}"), description=metric.description)


def panel(title: str, unit: str, *queries: Query, description: str = "", stack: bool = False) -> dict[str, Any]:
    custom = {"drawStyle": "line", "fillOpacity": 40 if stack else 0, "showPoints": "never", "spanNulls": False}
    custom["stacking"] = {"mode": "normal" if stack else "none", "group": "A"}
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"datasource": DATASOURCE, "editorMode": "code", "expr": expr, "legendFormat": legend, "refId": ref}
            for ref, (expr, legend) in zip("ABCDEFGH", queries, strict=False)
        ],
    }


def progress() -> list[dict[str, Any]]:
    left = f"({of_run(names.TARGET_STEP)} - {of_run(names.STEP)})"
    speed = f'max by (run) (deriv({RAY_PREFIX}{names.STEP.name}{{run=~"$run", sweep=~"$sweep"}}[15m]) > 0)'
    skipped = (of_run(names.SKIPPED_IN_A_ROW), "{{run}} in a row"), (grown(names.SKIPPED), "{{run}}")
    no_number = (of_run(names.NOT_FINITE), "{{run}} without a finite loss")
    return [
        simple("Training loss", names.LOSS),
        panel(
            "Validation",
            "short",
            (of_run(names.VALIDATION, "run, metric"), "{{run}} {{metric}}"),
            description=names.VALIDATION.description,
        ),
        simple("Learning rate", names.LEARNING_RATE),
        simple("Samples per second", names.SAMPLES_PER_S),
        simple("Tokens per second", names.TOKENS_PER_S),
        panel("Steps done", "percentunit", (f"{of_run(names.STEP)} / {of_run(names.TARGET_STEP)}", "{{run}}")),
        panel("Time left", "s", (f"{left} / {speed}", "{{run}}"), description="At the speed of the last 15 minutes."),
        simple("Gradient norm", names.GRAD_NORM),
        panel("Overflows", "short", *skipped, no_number, description=names.SKIPPED.description),
    ]


def elasticity() -> list[dict[str, Any]]:
    workers = (of_run(names.WORKERS), "{{run}}"), (of_run(names.WANTED), "{{run}} wanted")
    classes = f"sum by (class) ({of_run(names.WORKER_SECONDS, 'run, class')})"
    return [
        panel("Workers", "short", *workers, description=f"{names.WORKERS.description} {names.WANTED.description}"),
        panel(
            "Restarts by cause",
            "short",
            (grown(names.RESTARTS, "run, cause"), "{{run}} {{cause}}"),
            description=names.RESTARTS.description,
        ),
        panel(
            "Steps redone", "short", (grown(names.STEPS_REDONE), "{{run}}"), description=names.STEPS_REDONE.description
        ),
        simple("Goodput", names.GOODPUT, "percentunit"),
        panel(
            "Worker-seconds by class",
            "s",
            (classes, "{{class}}"),
            description=names.WORKER_SECONDS.description,
            stack=True,
        ),
        simple("Waiting for nodes", names.WAITING_S, "s"),
    ]


def data() -> list[dict[str, Any]]:
    loop = [(names.DATA_WAIT_S, "data"), (names.SAVE_S, "saving"), (names.EVALUATION_S, "evaluation")]
    return [
        simple("Data wait", names.DATA_WAIT, "percentunit"),
        panel(
            "What the loop spends beside its steps",
            "percentunit",
            *((per_s(metric), f"{{{{run}}}} {word}") for metric, word in loop),
            description="Seconds per second: waiting for data, saving, evaluating.",
        ),
    ]


def checkpoints() -> list[dict[str, Any]]:
    return [
        panel(
            "Time since the newest checkpoint",
            "s",
            (f"time() - {of_run(names.SAVE_TIME)}", "{{run}}"),
            description="What the loss of all nodes would cost.",
        ),
        panel("Time in saves", "s", (grown(names.SAVE_S), "{{run}}"), description=names.SAVE_S.description),
    ]


def sweep() -> list[dict[str, Any]]:
    trials = (of_sweep(names.TRIALS, "sweep, status"), "{{sweep}} {{status}}")
    return [
        panel("Trials", "short", trials, description=names.TRIALS.description, stack=True),
        panel(
            "Best value",
            "short",
            (of_sweep(names.BEST_VALUE, "sweep, metric"), "{{sweep}} {{metric}}"),
            description=names.BEST_VALUE.description,
        ),
        panel("Steps of all trials", "short", (of_sweep(names.SWEEP_STEPS), "{{sweep}}")),
    ]


def nodes() -> list[dict[str, Any]]:
    """From Ray's own metrics."""
    gpu = "{{instance}} GPU {{GpuIndex}}"
    used, free = "ray_node_disk_usage", "ray_node_disk_free"
    gram = "ray_node_gram_used / (ray_node_gram_used + ray_node_gram_available)"
    full = 'sum by (instance) (ray_resources{Name="object_store_memory"})'
    store = f"sum by (instance) (ray_object_store_memory) / {full}"
    words = [("active", "Active"), ("pending", "Starting"), ("recently_failed", "Failed")]
    return [
        panel("GPU", "percent", ("avg by (instance, GpuIndex) (ray_node_gpus_utilization)", gpu)),
        panel("GPU memory", "percentunit", (f"avg by (instance, GpuIndex) ({gram})", gpu)),
        panel("CPU", "percent", ("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}")),
        panel(
            "Memory",
            "percentunit",
            ("max by (instance) (ray_node_mem_used / ray_node_mem_total)", "{{instance}}"),
        ),
        panel("Object store", "percentunit", (store, "{{instance}}")),
        panel(
            "Disk",
            "percentunit",
            (f"max by (instance) ({used} / ({used} + {free}))", "{{instance}}"),
            description="Above 95 % Ray spills no objects to it, and what needs that fails.",
        ),
        panel(
            "Network",
            "Bps",
            ("max by (instance) (ray_node_network_receive_speed)", "{{instance}} in"),
            ("max by (instance) (ray_node_network_send_speed)", "{{instance}} out"),
        ),
        panel(
            "Nodes",
            "short",
            *((f"sum by (NodeType) (autoscaler_{key}_nodes)", f"{word} {{{{NodeType}}}}") for key, word in words),
            description="From the autoscaler's own port.",
        ),
    ]


def variable(name: str, query: str) -> dict[str, Any]:
    """A choice of values of a label, all of them at first."""
    return {
        "type": "query",
        "name": name,
        "label": name.capitalize(),
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def laid_out() -> Iterator[dict[str, Any]]:
    """All panels, in rows."""
    rows = {
        "Progress": progress(),
        "Elasticity": elasticity(),
        "Data": data(),
        "Checkpoints": checkpoints(),
        "Sweep": sweep(),
        "Nodes": nodes(),
    }
    number = y = 0
    for title, panels in rows.items():
        number += 1
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        yield {"type": "row", "id": number, "title": title, "collapsed": False, "gridPos": place, "panels": []}
        y += 1
        for i, content in enumerate(panels):
            number += 1
            place = {"x": i % COLUMNS * WIDTH, "y": y + i // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            yield {"id": number, "gridPos": place, **content}
        y += -(-len(panels) // COLUMNS) * HEIGHT


def dashboard() -> dict[str, Any]:
    """The contents of the file."""
    workers = f"{RAY_PREFIX}{names.WORKERS.name}"
    source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1}
    return {
        "title": "raytrain",
        "uid": "raytrain",
        "description": DESCRIPTION,
        "tags": ["ray", "raytrain"],
        "schemaVersion": 39,  # Grafana 11's; later ones bring it up to theirs
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                source,
                variable("sweep", f'label_values({{__name__=~"{workers}|{RAY_PREFIX}{names.TRIALS.name}"}}, sweep)'),
                variable("run", f'label_values({workers}{{sweep=~"$sweep"}}, run)'),
            ]
        },
        "annotations": {"list": []},
        "panels": list(laid_out()),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
