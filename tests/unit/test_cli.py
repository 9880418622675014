"""The commands as a user meets them when something is wrong: exit code 2, one clear sentence, and no Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from running import run_cli, tiny_run, write_config

from raytrain.config.io import read_config
from raytrain.config.shipped import config_names, find_space, space_names
from raytrain.config.yaml import read_yaml
from raytrain.errors import ConfigError

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
COMMANDS += ["chat", "export", "predict", "serve", "tune", "verify", "watch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


def test_the_surface_is_frozen() -> None:
    """A new command or flag is a decision, not an accident."""
    from raytrain.cli.main import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names | {group.name for group in app.registered_groups} == set(COMMANDS)


def test_help_is_light() -> None:
    heavy = ("ray", "torch", "pydantic", "pyarrow")
    code = f"import sys, raytrain.cli.main; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    exit_code, output = run_cli("--help")
    assert exit_code == 0
    assert all(command in output for command in COMMANDS)


def test_the_version() -> None:
    from importlib.metadata import version

    assert run_cli("--version") == (0, f"raytrain {version('raytrain')}\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train x --lr 3", "train has no option --lr. .*: training.optimizer.learning_rate=3$"),
        ("train x -lr 3", "train has no option -lr. .*: training.optimizer.learning_rate=3$"),
        ("tune x --learning-rate=1e-4", "tune has no option --learning-rate. .*learning_rate=1e-4$"),
        ("plan x --training.epochs 3", "plan has no option --training.epochs. .*: training.epochs=3$"),
        ("train x --seed", "train has no option --seed. .*: seed=VALUE$"),
        ("data prepare x --batch_size 4", "prepare has no option --batch_size. .*: training.global_batch_size=4$"),
        ("submit -- train x --max-workers 4", "train has no option --max-workers. .*"),
        ("train x --zzzz", "train has no option --zzzz. .*--fields WORD` finds a field$"),
    ],
)
def test_an_option_that_is_a_field_is_answered_with_the_field(words: str, expected: str) -> None:
    from raytrain.cli.main import app

    with pytest.raises(ConfigError, match=f"^{expected}"):
        app(words.split(), standalone_mode=False)


@pytest.mark.parametrize("words", ["tune x --trails 3", "report x --lr 3"])
def test_any_other_unknown_option_is_left_to_the_parser(words: str) -> None:
    from raytrain.cli.main import app

    with pytest.raises(Exception, match="No such option") as caught:
        app(words.split(), standalone_mode=False)
    assert not isinstance(caught.value, ConfigError)


def printed(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    from raytrain.cli.main import app

    app(words.split(), standalone_mode=False)
    return capsys.readouterr().out


def test_the_shipped_configs_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("configs list", capsys).splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split()) >= 6 and len(line) <= 140 and line[-1] != "." for line in lines), lines
    (reviews,) = (line for line in lines if line.startswith("movie_reviews "))
    assert "Sentiment of movie-review sentences: the MiniLM encoder, fine-tuned on" in reviews


def test_fields_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("configs show --fields EPSILON", capsys)
    assert text == "training.optimizer.epsilon: number above 0; default 1.0e-08\n    Added to the denominator.\n"
    of_both = printed("configs show --fields steps snapshots", capsys)
    assert [line.partition(":")[0] for line in of_both.splitlines() if line[0] != " "] == [
        "checkpoint.snapshot_every_steps"
    ]
    assert "    May be changed when a run is resumed." in of_both.splitlines()
    with pytest.raises(ConfigError, match="no field has 'zzzz'"):
        printed("configs show --fields zzzz", capsys)


def test_the_grammar_of_a_search_space(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("tune --fields", capsys)
    for line in (
        "parameters.KEY.kind: choice | grid | loguniform",
        "scheduler.kind: asha | hyperband",
        "budget.trials: integer",
    ):
        assert f"\n{line}" in text


@pytest.mark.parametrize("name", config_names())
def test_the_schema_takes_the_shipped_configs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    validator = Draft202012Validator(json.loads(printed("configs schema", capsys)))
    raw = read_config(name)
    assert not [*validator.iter_errors(raw)]
    (error,) = validator.iter_errors({**raw, "sed": 1})
    assert "'sed' was unexpected" in error.message


@pytest.mark.parametrize("name", space_names())
def test_the_schema_takes_the_shipped_spaces(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    validator = Draft202012Validator(json.loads(printed("configs schema --space", capsys)))
    assert not [*validator.iter_errors(read_yaml(find_space(name)))]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("raytrain tr", ["train"]),
        ("raytrain train mov", ["movie_reviews"]),
        ("raytrain train movie_reviews training.optimizer.l", ["training.optimizer.learning_rate="]),
    ],
)
def test_completion(typed: str, expected: list[str]) -> None:
    """What a shell asks after `raytrain --install-completion`."""
    asked = {"_RAYTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    code = "import sys; sys.argv[0] = 'raytrain'; from raytrain.cli.main import app; app(prog_name='raytrain')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stdout.split() == expected, done.stderr


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
        (broken_parquet, "truncated"),
        (
            lambda f: ["workers.min=9", "workers.max=9", "training.global_batch_size=36", "ray.num_cpus=2"],
            "workers.min",
        ),
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


def test_what_a_shell_makes_of_a_glob_is_refused() -> None:
    from typer.testing import CliRunner

    from raytrain.cli.main import app
    from raytrain.errors import ConfigError

    words = ["predict", "runs/a", "b.csv", "c.csv", "d.csv", "--out", "e.csv"]
    for command in (words, ["submit", "--address", "http://127.0.0.1:1", "--", *words]):
        with pytest.raises(ConfigError, match=r"has one INPUT, and c.csv is given after b.csv.*quotes.*'\*.csv'"):
            CliRunner().invoke(app, command, catch_exceptions=False)


def test_commands_on_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for command in ("eval", "resume", "report"):
        code, output = run_cli(command, str(tmp_path))
        assert code == 2, output
        assert "is not a run's folder" in output
