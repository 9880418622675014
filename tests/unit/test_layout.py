"""Imports point one way, and the light modules stay light."""

import ast
from pathlib import Path

import raytrain

PACKAGE = Path(raytrain.__file__).parent
# In the order of the flow: a module may import modules of its own row and of rows above it.
ROWS = [
    ("errors", "config"),
    ("assets", "storage", "actors"),
    ("config_io", "config_help"),
    ("batch_plan", "timetable", "tokenizer", "model_files"),
    ("plan",),
    ("tracking",),
    ("tasks",),
    ("data",),
    ("forecast.shape", "forecast.memory", "forecast.usable"),
    ("training.job", "training.records", "training.schedule", "training.deepspeed_config"),
    ("training.zero_stage", "training.engine"),
    ("checkpoint",),
    ("training",),
    ("report",),
    ("monitoring",),
    ("elastic",),
    ("forecast",),
    ("doctor",),
    ("tuning",),
    ("launch",),
    ("console", "sweep_console", "plan_console", "job_console", "doctor_console"),
    ("cli", "cli_cluster", "cli_jobs", "__init__", "__main__"),
]
NO_RAY = ("config", "config_io", "plan", "batch_plan", "timetable", "data.order", "data.prepared", "data.sources")
NO_RAY += ("training.engine", "training.trainer", "training.saving", "training.evaluate", "tasks")
NO_RAY += ("tracking", "forecast", "tuning.space", "tuning.sharing", "tuning.board", "tuning.hparams")
NO_RAY += ("doctor.facts", "doctor.findings", "doctor.judge", "doctor.judge_nodes", "doctor.judge_links")
NO_RAY += ("launch.packing", "launch.request")
NO_RAY += ("monitoring.names", "monitoring.run_metrics")
NO_RAY += ("checkpoint.manifest", "checkpoint.ranges", "checkpoint.store", "checkpoint.writer", "checkpoint.zero_state")
NO_TORCH = (
    "tokenizer",
    "config",
    "config_io",
    "plan",
    "batch_plan",
    "timetable",
    "data",
    "tasks",
    "checkpoint.store",
    "tracking",
    "monitoring",
    "elastic",
    "forecast",
    "doctor",
    "tuning",
    "launch",
)


def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> its syntax tree."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        names[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return names


def imports_of(tree: ast.AST, *, only_top: bool = False) -> set[str]:
    """Modules that a tree imports, but for those that only the type checker sees."""
    hidden = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    nodes = ast.iter_child_nodes(tree) if only_top else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} if node.module != "raytrain" else {f"raytrain.{a.name}" for a in node.names}
    return found


def row_of(module: str) -> int:
    """The row of the longest prefix that is listed."""
    matches = [(len(name), i) for i, row in enumerate(ROWS) for name in row if (module + ".").startswith(name + ".")]
    assert matches, f"{module} stands in no row of the layout"
    return max(matches)[1]


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, tree in modules().items()
        for target in imports_of(tree)
        if target.startswith("raytrain.")
        and row_of(target.removeprefix("raytrain.")) > row_of(module or "__init__")
        and module != "__init__"
    ]
    assert not wrong


def test_light_modules_import_neither_ray_nor_torch_at_the_top() -> None:
    for module, tree in modules().items():
        top = {name.split(".")[0] for name in imports_of(tree, only_top=True)}
        everywhere = {name.split(".")[0] for name in imports_of(tree)}
        if any((module + ".").startswith(name + ".") for name in NO_RAY):
            assert "ray" not in everywhere, module
        if any((module + ".").startswith(name + ".") for name in NO_TORCH):
            assert not top & {"torch", "transformers", "deepspeed"}, module


def test_private_names_of_ray_train_are_in_few_files() -> None:
    """Where an upgrade of Ray is to be looked at, beside tests/ray/test_ray_train_seams.py."""
    users = {
        module
        for module, tree in modules().items()
        if any(name.startswith(("ray.train.v2", "ray.train._internal")) for name in imports_of(tree))
    }
    assert all(module.startswith("elastic.ray_train") for module in users)
    assert "elastic.ray_train_loop" not in users  # which runs under a trainer of the user's own


def test_files_fit_the_eye() -> None:
    """About 350 lines."""
    lines = {path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path: n for path, n in lines.items() if n > 360}
