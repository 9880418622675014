"""The layout: one row a package, imports point down only, and what only some packages may do."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import raytrain

PACKAGE = Path(raytrain.__file__).parent
# A module may import modules of its own row and of the rows below it.
ROWS = [
    ("__init__", "__main__"),
    ("cli", "api", "prediction", "evaluating"),
    ("terminal",),
    ("launch", "doctor"),
    ("watching",),
    ("serving",),
    ("inference",),
    ("tuning",),
    ("planning",),
    ("runs",),
    ("elastic",),
    ("reports", "monitoring"),
    ("training",),
    ("tracking",),
    ("sizing",),
    ("engine",),
    ("checkpoint",),
    ("data",),
    ("reclaim",),
    ("tasks", "models"),
    ("ray_core",),
    ("steps",),
    ("config",),
    ("storage", "retries"),
    ("errors",),
    ("redaction",),
]
ROW_OF = {package: number for number, row in enumerate(ROWS) for package in row}
BEHIND_A_WALL = ("launch", "doctor", "reclaim")  # nothing below `runs` imports them
NO_RAY = ("config", "steps", "tasks", "models", "tracking", "sizing", "planning", "engine", "runs.plan")
NO_RAY += ("data.prepared", "data.sources", "data.readers", "data.encode", "data.items", "data.fingerprint")
NO_RAY += (
    "data.listing",
    "data.content",
    "data.bad_rows",
    "data.commit",
    "data.stages",
    "data.cutting",
    "data.work_folder",
)
NO_RAY += ("training.trainer", "training.saving", "training.evaluate", "training.snapshot_schedule")
NO_RAY += ("tuning.space", "tuning.population", "tuning.pool.allocate", "tuning.trials", "tuning.hparams")
NO_RAY += ("doctor.facts", "doctor.findings", "doctor.judge", "doctor.judge_nodes", "doctor.judge_links")
NO_RAY += ("launch.packing", "launch.request", "monitoring.names", "monitoring.run_metrics")
NO_RAY += ("checkpoint.manifest", "checkpoint.ranges", "checkpoint.store", "checkpoint.writer")
NO_TORCH = ("models.tokenizer", "models.files", "config", "steps", "data", "tasks", "checkpoint.store", "tracking")
NO_TORCH += ("monitoring", "elastic", "runs", "planning", "sizing", "doctor", "tuning", "launch", "ray_core", "reclaim")
NO_TORCH += ("engine.deepspeed_config", "engine.rendezvous", "cli", "terminal", "inference", "serving", "watching")
PRIVATE_RAY = (
    "ray._",
    "ray.core.",
    "ray.train.v2",
    "ray.autoscaler._",
    "ray.data._",
    "ray.util.state._",
    "ray.dashboard",
)
# Beside `ray_core`. `node_facts` travels to the nodes by value, where there may be no raytrain.
MAY_USE_PRIVATE_RAY = ("elastic.ray_train", "runs.ray_train_resize", "launch.cluster_nodes", "launch.spot_first")
MAY_USE_PRIVATE_RAY += ("doctor.node_facts",)
MOST_LINES_OF_A_FILE = 360
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 8


def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> its syntax tree."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        names[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return names


MODULES = modules()


def imports_of(tree: ast.AST, *, only_top: bool = False) -> set[str]:
    """Modules that a tree imports, late imports too, but for those that only the type checker sees."""
    hidden = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree) if only_top else ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {
                name for name in inner if name.removeprefix("raytrain.") in MODULES and name.startswith("raytrain.")
            }
            found |= ours | ({node.module} if ours != inner else set())
    return found


def own_imports(tree: ast.AST) -> set[str]:
    """Those of raytrain's own modules, named below the package."""
    return {name.removeprefix("raytrain.") for name in imports_of(tree) if name.startswith("raytrain.")}


def arrows() -> Iterator[tuple[str, str]]:
    """(module, module that it imports) within raytrain."""
    return ((module, target) for module, tree in MODULES.items() for target in own_imports(tree))


def is_in(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of these or inside one of these packages."""
    return any((module + ".").startswith(name + ".") for name in names)


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_imports_point_down() -> None:
    unknown = {package_of(module) for module in MODULES} - set(ROW_OF)
    assert not unknown, "in no row of the layout"
    wrong = [f"{a} imports {b}" for a, b in arrows() if ROW_OF[package_of(b)] < ROW_OF[package_of(a)]]
    assert not wrong


def test_no_circles() -> None:
    try:
        TopologicalSorter({module: own_imports(tree) - {module} for module, tree in MODULES.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_walls() -> None:
    above = {package for row in ROWS[: ROW_OF["runs"] + 1] for package in row}
    wrong = [
        f"{a} imports {b}"
        for a, b in arrows()
        if package_of(b) in BEHIND_A_WALL and package_of(a) not in above | set(BEHIND_A_WALL)
    ]
    assert not wrong


def test_light_modules_import_neither_ray_nor_torch_at_the_top() -> None:
    for module, tree in MODULES.items():
        top = {name.partition(".")[0] for name in imports_of(tree, only_top=True)}
        everywhere = {name.partition(".")[0] for name in imports_of(tree)}
        if is_in(module, NO_RAY):
            assert "ray" not in everywhere, module
        if is_in(module, NO_TORCH):
            assert not top & {"torch", "transformers", "deepspeed"}, module


def test_steps_are_pure() -> None:
    allowed = {"raytrain.config", "raytrain.steps", "raytrain.errors", "numpy"}
    for module, tree in MODULES.items():
        if is_in(module, ("steps",)):
            foreign = {name for name in imports_of(tree) if not is_in(name, tuple(allowed))}
            assert all(is_standard(name) for name in foreign), (module, foreign)


def is_standard(name: str) -> bool:
    import sys

    return name.partition(".")[0] in sys.stdlib_module_names


def test_deepspeed_is_imported_in_one_package() -> None:
    assert not [m for m, tree in MODULES.items() if uses(tree, ("deepspeed",)) and not is_in(m, ("engine",))]


def test_private_names_of_ray_are_in_few_files() -> None:
    """Where an upgrade of Ray is to be looked at, beside tests/ray/test_ray_train_seams.py."""
    users = [m for m, tree in MODULES.items() if uses(tree, PRIVATE_RAY) and not m.startswith("ray_core.")]
    assert not [module for module in users if not module.startswith(MAY_USE_PRIVATE_RAY)]
    assert "runs.ray_train_loop" not in users  # which runs under a trainer of the user's own


def uses(tree: ast.Module, names: tuple[str, ...]) -> bool:
    return any(name.startswith(names) for name in imports_of(tree))


def test_files_fit_the_eye() -> None:
    lines = {path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path: n for path, n in lines.items() if n > MOST_LINES_OF_A_FILE}


def test_functions_fit_a_screen() -> None:
    """The functions of commands have a parameter an option."""
    too_big = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            num_parameters = 0 if is_in(module, ("cli",)) else len(set(names) - {"self", "cls"})
            if num_lines > MOST_LINES_OF_A_FUNCTION or num_parameters > MOST_PARAMETERS:
                too_big.append(f"{module}.{node.name}: {num_lines} lines, {num_parameters} parameters")
    assert not too_big
