"""Tasks by dotted name: found in the folder of the command, told apart by their file, refused early. No Ray."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from running import tiny_run
from saved_models import save_best

import raytrain
from raytrain.config import ModelConfig, PythonTaskConfig, RunConfig, TrainingConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError, ForeignMessage
from raytrain.runs.preflight import resolve
from raytrain.tasks import Task, make_task
from raytrain.tasks.imported import import_named
from raytrain.tasks.user_code import BEFORE_TRAINING
from raytrain.training.trainer import to_tensors
from tests.tiny import context

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_task"
ARGS = {"features": ["a", "b", "c"], "target": "y"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's with a copy of the example, as the command's folder."""
    (tmp_path / "regression.py").write_text((EXAMPLE / "regression.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_a_task_of_ones_own_is_evaluated_on_other_rows(here: Path) -> None:
    """Sample by sample, since it does not define `judge`; its slices tell the loss alone."""
    raw = {
        "name": "own",
        "task": {"kind": "python", "target": "regression:Regression", "args": ARGS},
        "model": {"config": {"hidden": 4}},
        "data": {"train": {"path": "train.parquet"}},
    }
    best = save_best(parse_config(raw), {"mean": 1.0, "std": 2.0}, here)
    rows = [{"a": n % 3 / 3, "b": n / 12, "c": -n / 12, "y": n / 4, "side": ["even", "odd"][n % 2]} for n in range(12)]
    answers = [row["predicted_y"] for row in raytrain.load(best).predict([{k: r[k] for k in "abc"} for r in rows])]
    errors = [abs(answer - row["y"]) for answer, row in zip(answers, rows, strict=True)]
    found = raytrain.evaluate(best, rows, by="side")
    assert isinstance(found, raytrain.DataEvaluation)
    assert found.metrics["mae"] == pytest.approx(sum(errors) / 12, rel=1e-5)
    assert found.metrics["loss"] == pytest.approx(sum(error**2 for error in errors) / 12 / 4, rel=1e-5)
    assert found.worst[0].row == errors.index(max(errors)) + 1
    assert {one.value: one.num_rows for one in found.slices} == {"even": 6, "odd": 6}
    assert set(found.slices[0].metrics) == {"loss"}
    with pytest.raises(raytrain.DataError, match="y is missing"):
        raytrain.evaluate(best, [*rows, {**rows[0], "y": None}])


def own(target: str = "regression:Regression", **args: Any) -> Task:
    return make_task(PythonTaskConfig(kind="python", target=target, args=args or ARGS), 32)


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        ("regresion:Regression", ARGS, "there is no module 'regresion' in"),
        ("regression:Regresion", ARGS, "has no 'Regresion'; did you mean Regression?"),
        ("regression:RegressionScores", ARGS, "not a subclass of raytrain.tasks.Task"),
        ("half:Half", {}, "half:Half lacks blank, build_model, collate"),
        ("broken:Task", {}, "importing broken failed: ZeroDivisionError"),
        ("lost:Task", {}, "importing lost failed: No module named 'not_installed'"),
        ("regression:Regression", {"features": ["a"]}, ".*missing 1 required .*'target'"),
        ("regression:Regression", {**ARGS, "typo": 1}, "can't be made of them.*'typo'"),
        ("odd:Odd", ARGS, "best_metric 'rmse' is not one of its metrics: loss, mae, r2"),
    ],
)
def test_a_mistake_is_named(here: Path, target: str, args: dict[str, Any], expected: str) -> None:
    (here / "half.py").write_text("from raytrain.tasks import Task\n\n\nclass Half(Task):\n    pass\n")
    (here / "broken.py").write_text("1 / 0\n")
    (here / "lost.py").write_text("import not_installed\n")
    (here / "odd.py").write_text(
        "from regression import Regression\n\n\nclass Odd(Regression):\n    best_metric = 'rmse'\n"
    )
    with pytest.raises(ConfigError, match=f"(?s)^task[.].*{expected}"):
        make_task(PythonTaskConfig(kind="python", target=target, args=args), 32)


def test_its_file_is_part_of_the_config(here: Path, tmp_path: Path) -> None:
    """So the prepared data and a resume tell one version from another, and a node with another one refuses to run."""
    config = tiny_run(tmp_path, "a", f"task={{kind: python, target: 'regression:Regression', args: {ARGS}}}")
    resolved = resolve(config)
    assert isinstance(resolved.task, PythonTaskConfig) and resolved.task.source is not None
    make_task(resolved.task, 32)
    with open(here / "regression.py", "a") as file:
        file.write("\n# changed\n")
    assert resolve(config).task != resolved.task
    with pytest.raises(ConfigError, match="every node needs the same one"):
        make_task(resolved.task, 32)


def test_a_run_is_not_evaluated_with_another_version_of_its_task(here: Path, tmp_path: Path) -> None:
    """An evaluation takes the run's config, which says which file its task was."""
    task = {"kind": "python", "target": "regression:Regression", "args": ARGS}
    raw = {**tiny_run(tmp_path, "own").model_dump(mode="json", exclude_unset=True), "task": task}
    of_the_run = resolve(RunConfig.model_validate(raw))
    assert resolve(of_the_run) == of_the_run
    make_task(of_the_run.task, 32)
    with (here / "regression.py").open("a") as file:
        file.write("# another version\n")
    with pytest.raises(ConfigError, match="not those that the run was started with"):
        make_task(resolve(of_the_run).task, 32)


@pytest.mark.parametrize("target", ["builtins:int", "math:sin"])
def test_a_module_of_python_itself_is_no_task(tmp_path: Path, target: str) -> None:
    raw = tiny_run(tmp_path, "own").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ConfigError, match=r"task\.target"):
        make_task(resolve(RunConfig.model_validate({**raw, "task": {"kind": "python", "target": target}})).task, 32)


def test_an_installed_package_is_not_hidden_by_a_file_of_the_same_name(here: Path) -> None:
    (here / "tokenizers.py").write_text("raise SystemExit\n")
    own()
    sys.modules.pop("tokenizers", None)
    import tokenizers

    assert tokenizers.__version__


def test_a_network_of_ones_own_is_saved_and_loaded(tmp_path: Path) -> None:
    task, model_config = own(), ModelConfig(config={"hidden": 4})
    state = {"mean": 1.0, "std": 2.0}
    model = task.build_model(model_config, state, TrainingConfig())
    table = pa.table({name: np.arange(3.0) for name in "abcy"})
    batch = to_tensors(task.collate(table, context(3, state=state)), torch.device("cpu"))
    task.save_model(model, model.state_dict(), str(tmp_path))
    loaded = task.load_model(str(tmp_path), model_config, state, TrainingConfig())
    assert task.loss_sum(loaded, batch).item() == task.loss_sum(model, batch).item()


def trained(here: Path, target: str) -> str:
    """best/ of a run of a task."""
    raw = {"name": "a", "task": {"kind": "python", "target": target, "args": ARGS}, "model": {"config": {"hidden": 4}}}
    config = parse_config({**raw, "data": {"train": {"path": "train.parquet"}}})
    return save_best(config, {"mean": 1.0, "std": 2.0}, here / "run")


def test_a_model_of_ones_own_predicts(here: Path) -> None:
    model = raytrain.load(trained(here, "regression:Regression"))
    rows = [{"a": 0.5 * n, "b": 1.0, "c": -n} for n in range(5)]
    found = [row["predicted_y"] for row in model.predict(rows)]
    task: Any = own()
    table = pa.Table.from_pylist([{**row, "y": 0.0} for row in rows])
    batch = task.collate(table, context(5, state={"mean": 1.0, "std": 2.0}))
    with torch.no_grad():
        _, predicted = task.predict(model._predictor.model, to_tensors(batch, torch.device("cpu")))
    np.testing.assert_allclose(found, np.array(predicted) * 2.0 + 1.0, atol=1e-5)
    assert len(set(found)) == 5


def test_a_task_without_predictions_says_what_it_lacks(here: Path) -> None:
    (here / "bare.py").write_text(
        "from regression import Regression\nfrom raytrain.tasks import Task\n\n"
        "own = {k: v for k, v in vars(Regression).items() if k not in ('__dict__', '__weakref__')}\n"
        "Bare = type('Bare', (Task,), own)\n"
    )
    with pytest.raises(ConfigError, match=r"bare:Bare can't answer .*inherit from raytrain.tasks.Predicting"):
        raytrain.load(trained(here, "bare:Bare"))


@pytest.mark.parametrize("name", BEFORE_TRAINING)
@pytest.mark.parametrize("error", ["ValueError('no such thing')", "KeyError('y')", "OSError(2, 'gone', 'w.bin')"])
def test_an_error_of_its_methods_is_told_as_one_of_the_task(here: Path, name: str, error: str) -> None:
    """Not as a traceback through raytrain: with its line in the user's file."""
    source = f"from regression import Regression\n\nclass Bad(Regression):\n    def {name}(self, *_):\n"
    (here / "bad.py").write_text(f"{source}        raise {error}\n")
    task = own("bad:Bad")
    method = getattr(task, name)
    with pytest.raises(ConfigError) as caught:
        method(*[None] * (len(inspect.signature(getattr(Task, name)).parameters) - 1))
    assert f"task.target bad:Bad: {name} failed: {error.partition('(')[0]}".replace("OSError", "FileNotFound") in str(
        caught.value
    )
    assert f"({here / 'bad.py'}, line 5)" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def __init__(self, **_): self.size = 1 / 0", "task.args: bad:Bad can't be made of them: ZeroDivisionError"),
        ("metrics = property(lambda self: 1 / 0)", "task.target bad:Bad: its metrics failed: ZeroDivisionError"),
        ("1 / 0", "task.target bad:Bad: importing bad failed: ZeroDivisionError"),
        ("raise SystemExit(0)", "task.target bad:Bad: importing bad failed: SystemExit: 0"),
    ],
)
def test_an_error_before_there_is_a_task_names_its_line(here: Path, body: str, expected: str) -> None:
    (here / "bad.py").write_text(f"from regression import Regression\n\nclass Bad(Regression):\n    {body}\n")
    with pytest.raises(ConfigError) as caught:
        own("bad:Bad")
    assert str(caught.value).startswith(expected) and f"({here / 'bad.py'}, line 4)" in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(f"[x] {ForeignMessage.NO_CPU_MEMORY}: 1 bytes")])
def test_a_lack_of_memory_is_no_mistake_of_the_task(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A worker group may be tried again after it."""

    def fail(*_: Any) -> None:
        raise error

    import_named("regression:Regression")
    monkeypatch.setattr(sys.modules["regression"].Regression, "build_model", fail)
    with pytest.raises(type(error)):
        own().build_model(ModelConfig(config={"hidden": 4}), {}, TrainingConfig())


def test_plan_refuses_a_task_whose_model_fails(here: Path) -> None:
    source = (
        "from regression import Regression\n\nclass Bad(Regression):\n    def build_model(self, *_):\n        1 / 0\n"
    )
    (here / "bad.py").write_text(source)
    pq.write_table(pa.table({name: np.arange(9.0) for name in "abcy"}), here / "train.parquet")
    raw = {
        "name": "bad",
        "task": {"kind": "python", "target": "bad:Bad", "args": ARGS},
        "model": {"config": {"hidden": 4}},
        "data": {"train": {"path": "train.parquet"}},
        "training": {"epochs": 1, "global_batch_size": 4, "micro_batch_size": 4},
    }
    with pytest.raises(ConfigError, match=r"build_model failed: ZeroDivisionError: .*bad\.py, line 5\)") as caught:
        raytrain.plan(raw)
    assert caught.value.exit_code == 2
