"""Folders that are given instead of a run's or a sweep's: the message names the one that is meant. No Ray."""

from pathlib import Path

import pytest
from running import tiny_run
from typer.testing import CliRunner

from raytrain.cli.main import app
from raytrain.errors import ConfigError
from raytrain.runs.resume import begin_or_resume
from raytrain.storage import Storage


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a config, runs, and a sweep. Their configs are never read."""
    for run in ("runs/reviews", "runs/reviews-2", "runs/swept-lr/trials/trial_0000"):
        for file in ("config.yaml", "lease/00000001", "best/raytrain.json", "checkpoints/step_00000001-0001/x"):
            (tmp_path / run / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / run / file).write_text("")
    (tmp_path / "runs/swept-lr/sweep.yaml").write_text("")
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = [
    (
        "runs/swept-lr",
        "it is a sweep's, whose trials are runs, such as PLACE/runs/swept-lr/trials/trial_0000. `raytrain",
    ),
    ("runs/swept-lr/trials", "it holds runs: give one of them, such as PLACE/runs/swept-lr/trials/trial_0000"),
    ("runs/reviews/best", "it is a part of one: give PLACE/runs/reviews"),
    ("runs/reviews/checkpoints/step_00000001-0001", "it is a part of one: give PLACE/runs/reviews"),
    ("runs/reviews/config.yaml", "it is a part of one: give PLACE/runs/reviews"),
    ("runs", "it holds runs: give one of them, such as PLACE/runs/reviews (reviews, reviews-2)"),
    ("runs/reviewz", "there is no such folder; PLACE/runs has the runs reviews, reviews-2; did you mean reviews"),
    ("nowhere/reviews", "PLACE/nowhere/reviews is not a run's folder: there is no such folder"),
    ("elsewhere", "it has no config.yaml"),
]


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        (command, *case)
        for command in ("resume", "eval", "report")
        for case in CASES
        if (command, case[0]) != ("report", "runs/swept-lr")  # it has one
    ],
)
def test_a_folder_that_is_no_run(place: Path, command: str, given: str, expected: str) -> None:
    result = CliRunner().invoke(app, [command, given])
    assert result.exception is not None and str(result.exception).count("is not a run's folder: ") == 1
    assert expected.replace("PLACE", str(place)) in str(result.exception)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/swept-lr/trials/trial_0000", "it is a part of one: give PLACE/runs/swept-lr"),
        ("runs/reviews", "it is a single run's"),
        ("runs", "it holds sweeps: give one of them, such as PLACE/runs/swept-lr (swept-lr)"),
        ("runs/swept", "there is no such folder; PLACE/runs has the sweeps swept-lr; did you mean swept-lr?"),
        ("elsewhere", "it has no sweep.yaml"),
    ],
)
def test_a_folder_that_is_no_sweep(place: Path, given: str, expected: str) -> None:
    result = CliRunner().invoke(app, ["train", "--from-sweep", given])
    assert f"is not a sweep's folder: {expected}".replace("PLACE", str(place)) in str(result.exception)


@pytest.mark.parametrize("content", ["", "[]", "half a li"])
def test_a_damaged_config_is_refused(tmp_path: Path, content: str) -> None:
    """In a sentence; it is replaced only when the user says so."""
    config = tiny_run(tmp_path, "a")
    run = Storage(str(tmp_path / "runs" / "a"))
    run.write_bytes("config.yaml", content.encode())
    with pytest.raises(ConfigError, match=r"a/config.yaml is damaged: .*--overwrite"):
        begin_or_resume(run, config, overwrite=False)
    assert begin_or_resume(run, config, overwrite=True) is None
