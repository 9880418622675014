"""raytrain from Python: what it takes, what it gives, and that it is the same as the commands. No Ray."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from running import run_cli, tiny_run, write_config

import raytrain
from raytrain.cli.main import app
from raytrain.config.from_python import words_of
from raytrain.config.io import parse_config
from raytrain.errors import FailureCode
from raytrain.evaluating import OnRows
from raytrain.runs import run as driver
from raytrain.runs.result import RunResult
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus
from raytrain.tuning import sweep
from raytrain.tuning.observer import SweepObserver
from raytrain.tuning.state import Sweep, SweepEnd, SweepResult, name_of
from raytrain.tuning.trials import TrialFailure, TrialTable

DONE = SweepResult(status=RunStatus.FINISHED, path="runs/a-space", metric="accuracy", mode="max")


def test_a_failed_run_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = RunResult(status=RunStatus.FAILED, run_path="runs/a", step=7, message="worker 1: out of memory")
    monkeypatch.setattr(driver, "run_training", lambda *_, **__: failed)
    with pytest.raises(raytrain.TrainingError, match=r"runs/a failed at step 7: worker 1: out of memory"):
        raytrain.train(tiny_run(tmp_path, "a"))


def test_a_failed_sweep_is_an_error_with_the_code_of_its_trials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(raw: Any, words: Any, space: Any, *_: Any, **__: Any) -> SweepResult:
        root = Storage(str(tmp_path / "swept"))
        table = TrialTable(root, "max")
        codes = (FailureCode.HANG, FailureCode.OUT_OF_MEMORY, FailureCode.OUT_OF_MEMORY)
        for number, code in enumerate(codes):
            table.add(name_of(number), {})
            table.update(name_of(number), status="failed", failure=TrialFailure(code, "why"))
        state = Sweep(parse_config(raw), space, root, "accuracy", "max", table, SweepObserver())
        state.end = SweepEnd(RunStatus.FAILED, "3 trials have failed")
        return state.result(RunStatus.FAILED, 1.0)

    monkeypatch.setattr(sweep, "run_sweep", fail)
    with pytest.raises(raytrain.TrainingError, match="swept: 3 trials have failed; `raytrain report") as caught:
        raytrain.tune(tiny_run(tmp_path, "a"))
    assert caught.value.code is FailureCode.OUT_OF_MEMORY


def test_the_result_of_a_run_and_its_display(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(config: Any, observer: Any, **_: Any) -> RunResult:
        if observer:
            observer.phase("checking")
        return RunResult(status=RunStatus.STOPPED, run_path=config.name)

    monkeypatch.setattr(driver, "run_training", stop)
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    assert raytrain.train(raw, "name=b").run_path == "b"
    assert capsys.readouterr().out == ""
    assert isinstance(raytrain.train(raw, progress=True), raytrain.RunResult)
    assert "checking" in capsys.readouterr().out


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[raytrain.RunConfig]:
    """Configs that a run was started with; none is."""
    configs: list[raytrain.RunConfig] = []

    def note(config: raytrain.RunConfig, *_: Any, **__: Any) -> RunResult:
        configs.append(config)
        return RunResult(status="finished", run_path=config.name)

    monkeypatch.setattr(driver, "run_training", note)
    return configs


def test_a_config_may_be_a_path_a_name_a_mapping_or_an_object(
    seen: list[raytrain.RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, "a")
    path = write_config(config, tmp_path)
    for given in (path, Path(path), config, config.model_dump(mode="json", exclude_unset=True)):
        raytrain.train(given)
        assert (seen[-1].name, seen[-1].data.train.path) == ("a", config.data.train.path), given
    monkeypatch.chdir(tmp_path)
    raytrain.train("movie_reviews")
    assert seen[-1].name == "movie_reviews"


def test_a_sweep_reads_the_file_as_a_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may be named 007, and a space be given as a mapping."""
    seen = []
    monkeypatch.setattr(sweep, "run_sweep", lambda *given, **options: seen.append((given, options)) or DONE)
    path = write_config(tiny_run(tmp_path, "a"), tmp_path)
    Path(path).write_text(Path(path).read_text().replace("name: a\n", "name: 007\n"))
    space = {"parameters": {"seed": {"kind": "randint", "low": 1, "high": 9}}, "budget": {"trials": 4}}
    assert raytrain.tune(path, {"training.epochs": 1}, space=space, trials=2, max_concurrent=1) is DONE
    (raw, words, chosen, name, _), options = seen[0]
    assert (raw["name"], words, name, options) == ("007", ["training.epochs=1"], "space", {"max_concurrent": 1})
    assert chosen.budget.trials == 2


def test_overrides_are_words_and_mappings_and_the_last_wins(seen: list[raytrain.RunConfig], tmp_path: Path) -> None:
    raytrain.train(tiny_run(tmp_path, "a"), "seed=1", {"seed": 2, "training.epochs": 9}, "training.epochs=4")
    assert (seen[-1].seed, seen[-1].training.epochs) == (2, 4)


@pytest.mark.parametrize("value", ["off", "no", "2024-11-29", "1e5", "007", "null", "a: b", 'quote"d'])
def test_text_in_a_mapping_stays_text(tmp_path: Path, value: str) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    assert parse_config(raw, words_of([{"task.text_column": value}])).task.text_column == value  # type: ignore[union-attr]


def test_a_mapping_takes_the_objects_that_python_has(tmp_path: Path) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    given = {"data.test.path": tmp_path / "x", "training.optimizer.learning_rate": 1e-05, "data.validation": None}
    config = parse_config(raw, words_of([given]))
    assert config.data.test is not None
    assert config.data.test.path == str(tmp_path / "x")
    assert (config.training.optimizer.learning_rate, config.data.validation) == (1e-05, None)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda config: raytrain.train(config, 3), "override 3 is of type int; give 'dotted.key=value' strings"),
        (lambda config: raytrain.train(config, {"seed": {1}}), "override value {1} is of type set"),
        (
            lambda config: raytrain.train(3),
            "a config is a path, the name of a shipped config, a mapping or a RunConfig",
        ),
        (lambda config: raytrain.train(), "train() needs a config"),
        (lambda config: raytrain.train(config, trial="t"), "need from_sweep"),
        (lambda config: raytrain.train(config, from_sweep="s"), "not both"),
        (lambda config: raytrain.train(config, {"training.epoch": 1}), "did you mean training.epochs"),
        (lambda config: raytrain.tune(config, trials=0), "trials 0 is less than 1"),
        (lambda config: raytrain.tune(config, space={"parameter": {}}), "the space has"),
        (lambda config: raytrain.tune(config, space="lr_ash"), "did you mean lr_asha"),
    ],
)
def test_a_mistake_is_a_config_error_in_one_sentence(tmp_path: Path, call: Any, said: str) -> None:
    with pytest.raises(raytrain.ConfigError, match=re.escape(said)):
        call(tiny_run(tmp_path, "a"))


def test_a_folder_that_is_not_a_runs(tmp_path: Path) -> None:
    for function in (raytrain.resume, raytrain.evaluate, raytrain.report):
        with pytest.raises(raytrain.ConfigError, match="is not a run's folder"):
            function(tmp_path)


def test_resume_reads_the_config_of_the_run(seen: list[raytrain.RunConfig], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    Path(write_config(tiny_run(tmp_path, "a"), tmp_path)).rename(folder / "config.yaml")
    assert raytrain.resume(folder, {"workers.max": 2}).run_path == "a"
    assert (seen[-1].workers.max, seen[-1].storage_path) == (2, str(tmp_path / "runs"))


def test_the_plan_is_that_of_the_command(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    options = {"gpu": "24GiB", "nodes": 2, "gpus_per_node": 4, "price": 1.5, "bandwidth": 50}
    found = raytrain.plan(config, {"workers.max": 4}, **options)  # type: ignore[arg-type]
    assert isinstance(found, raytrain.Forecast)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    code, output = run_cli("plan", write_config(config, tmp_path), "workers.max=4", *words, "--json")
    assert code == 0, output
    assert json.loads(output) == json.loads(json.dumps(found.to_json()))
    assert not (tmp_path / "runs").exists()


FUNCTIONS = {
    "train": "train",
    "resume": "resume",
    "tune": "tune",
    "plan": "plan",
    "eval": "evaluate",
    "verify": "verify",
}
ONLY_PYTHON = {"progress", "callbacks", "data", "against"}
ONLY_COMMAND = {"json", "fields", "data"}  # of plan: the function gives the object; of tune: help
ONLY_COMMAND |= {"tune_threshold", "tune_for"}  # of eval: a function of their own


@pytest.mark.parametrize(("command", "function"), FUNCTIONS.items())
def test_a_function_takes_the_words_of_its_command(command: str, function: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    words = {parameter.name for parameter in commands[command].params} - {"help"} - ONLY_COMMAND
    names = set(inspect.signature(getattr(raytrain, function)).parameters) - ONLY_PYTHON
    if "options" in names:
        names = (names - {"options"}) | OnRows.__annotations__.keys()
    assert names == words


def test_a_loop_for_a_trainer_is_checked_before_anything_starts(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    with pytest.raises(raytrain.ConfigError, match=r"training.best_metric 'beauty' is not a metric of this task"):
        raytrain.ray_train_loop(config, "training.best_metric=beauty")
    assert not (tmp_path / "runs").exists()


def test_names_are_there_and_the_import_is_light() -> None:
    code = (
        "import sys, raytrain\n"
        "from raytrain import CheckpointError, ConfigError, DataError, TrainingError\n"
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'pydantic', 'pyarrow', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert all(hasattr(raytrain, name) for name in raytrain.__all__)
    assert all(inspect.isfunction(getattr(raytrain, name)) for name in ("train", "plan", "report", "tune"))
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = raytrain.nothing_of_ours
