"""`raytrain.train()` and what the package exports. No Ray."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run

import raytrain
from raytrain.runs import run as driver
from raytrain.runs.run import RunResult
from raytrain.training.outcome import RunStatus


def test_a_failed_run_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = RunResult(status=RunStatus.FAILED, run_path="runs/a", step=7, message="worker 1: out of memory")
    monkeypatch.setattr(driver, "run_training", lambda *_, **__: failed)
    with pytest.raises(raytrain.TrainingError, match=r"runs/a failed at step 7: worker 1: out of memory"):
        raytrain.train(tiny_run(tmp_path, "a"))


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


def test_a_loop_for_a_trainer_is_checked_before_anything_starts(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    with pytest.raises(raytrain.ConfigError, match=r"training.best_metric 'beauty' is no metric of this task"):
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
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = raytrain.nothing_of_ours
