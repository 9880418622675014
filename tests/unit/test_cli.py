"""The commands as a user meets them when something is wrong: exit code 2, one clear sentence, and no Ray."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import run_cli, tiny_run, write_config

COMMANDS = [
    "cluster",
    "configs",
    "data",
    "doctor",
    "eval",
    "jobs",
    "plan",
    "reclaim-watch",
    "report",
    "resume",
    "submit",
    "train",
]
COMMANDS += ["tune"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


def test_the_surface_is_frozen() -> None:
    """A new command or flag is a decision, not an accident."""
    from raytrain.cli.main import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names | {group.name for group in app.registered_groups} == set(COMMANDS)


def test_help_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, raytrain.cli; sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'pydantic', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    exit_code, output = run_cli("--help")
    assert exit_code == 0
    assert all(command in output for command in COMMANDS)


def test_the_version() -> None:
    from importlib.metadata import version

    assert run_cli("--version") == (0, f"raytrain {version('raytrain')}\n")


def test_fields_need_no_config() -> None:
    exit_code, output = run_cli("configs", "show", "--fields")
    assert exit_code == 0
    assert "training.precision: auto | fp32 | bf16 | fp16" in output
    exit_code, output = run_cli("configs", "show")
    assert exit_code == 2
    assert "movie_reviews" in output


def broken_parquet(folder: Path) -> list[str]:
    path = folder / "half.parquet"
    whole = folder / "data" / "train.parquet"
    path.write_bytes(whole.read_bytes()[:-100])
    return [f"data.train.path={path}"]


def no_label(folder: Path) -> list[str]:
    path = folder / "nolabel.parquet"
    pq.write_table(pa.table({"text": ["a"], "lable": ["x"]}), path)
    return [f"data.train.path={path}"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (lambda f: ["training.epoch=3"], "did you mean training.epochs"),
        (lambda f: [f"data.train.path={f}/data/trian.parquet"], "did you mean"),
        (no_label, "no column 'label'"),
        (broken_parquet, "half-written"),
        (lambda f: ["workers.min=9", "workers.max=9", "training.global_batch_size=9", "ray.num_cpus=2"], "workers.min"),
        (lambda f: ["workers.min=3", "workers.max=2"], "workers.min 3 is more than workers.max 2"),
        (lambda f: [f"model.tokenizer={f}/nothing"], "model.tokenizer"),
        (lambda f: [f"model.tokenizer={f}/data"], "no tokenizer"),
        (lambda f: ["training.precision=fp16", "workers.gpu=false"], "training.precision"),
        (lambda f: ["training.deepspeed={train_batch_size: 4}"], "training.deepspeed.train_batch_size"),
        (lambda f: ["storage_path=/proc/nothing"], "storage_path"),
        (lambda f: ["storage_path='s3://bucket/runs?region=x'"], "storage_path"),
        (lambda f: ["training.best_metric=acuracy"], "did you mean accuracy"),
    ],
)
def test_bad_input_is_refused_before_ray(folder: Path, overrides: Callable[[Path], list[str]], expected: str) -> None:
    config = write_config(tiny_run(folder, "bad"), folder)
    code, output = run_cli("train", config, *overrides(folder))
    assert code == 2, output
    assert expected in output
    assert "Traceback" not in output
    assert "starting Ray" not in output


def test_commands_on_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for command in ("eval", "resume", "report"):
        code, output = run_cli(command, str(tmp_path))
        assert code == 2, output
        assert "is not a run's folder" in output
