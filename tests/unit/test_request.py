"""A command on its way to a cluster: checked here, its config sent as data, and nothing in it of this machine."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from running import run_cli, tiny_run, write_config

from raytrain.cli.arguments import Config, Overrides
from raytrain.cli.main import app
from raytrain.cli.submitted import parse_command, sent_as
from raytrain.config.io import parse_config
from raytrain.config.shipped import find_space
from raytrain.errors import ConfigError
from raytrain.launch.arguments import Sent, can_be_submitted
from raytrain.launch.request import Request, make_request
from raytrain.launch.server import Job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("request")


def request_of(*words: str) -> Request:
    """What `raytrain submit -- WORDS` would send."""
    ctx: Any = typer.Context(typer.main.get_command(app))
    submittable, arguments = parse_command(typer.Context(typer.main.get_command(app), parent=ctx), list(words))
    return make_request(words[0], arguments, needs_folder_alone=submittable.needs_folder_alone)


def test_the_config_is_sent_with_its_overrides(folder: Path) -> None:
    config = tiny_run(folder, "one", "ray.address=10.0.0.1:6379")
    request = request_of("train", write_config(config, folder), "seed=7", "--overwrite")
    assert request.words == ["train", "raytrain_job/config.yaml", "--overwrite"]
    sent = yaml.safe_load(request.files["raytrain_job/config.yaml"])
    assert parse_config(sent) == tiny_run(folder, "one", "seed=7", "ray={}")
    assert request.run == str(folder / "runs" / "one")
    assert str(folder / "data" / "train.parquet") in request.data_paths


def test_a_space_is_sent_under_its_name(folder: Path) -> None:
    """The folder of the sweep is called after it."""
    config = write_config(tiny_run(folder, "swept"), folder)
    space = "raytrain_job/space/lr_asha.yaml"
    for given in ([], ["--space", "lr_asha"]):
        request = request_of("tune", config, "--trials=3", *given)
        assert request.words[:2] == ["tune", "raytrain_job/config.yaml"]
        assert sorted(request.words[2:]) == ["--space", "--trials", "3", space]
        assert yaml.safe_load(request.files[space])["scheduler"]["kind"] == "asha"
        assert request.run == str(folder / "runs" / "swept-lr_asha")
        assert request.needs_folder_alone


def test_a_space_called_config_does_not_replace_the_config(folder: Path) -> None:
    config = write_config(tiny_run(folder, "swept"), folder)
    (folder / "config.yaml").write_text(Path(find_space("lr_asha")).read_text())
    request = request_of("tune", config, "--space", str(folder / "config.yaml"))
    assert len(request.files) == 2
    assert request.run == str(folder / "runs" / "swept-config")


def test_the_doctor_goes_where_the_run_would(folder: Path) -> None:
    options = ["--storage", "/mnt/runs", "--json"]
    assert request_of("doctor", *options).words == ["doctor", *options]
    config = write_config(tiny_run(folder, "ill"), folder)
    request = request_of("doctor", config, *options)
    assert request.words == ["doctor", "raytrain_job/config.yaml", *options]
    assert not request.needs_folder_alone  # it may look while the run trains
    with pytest.raises(ConfigError, match="omit its own --address"):
        request_of("doctor", *options, "--address", "10.0.0.1:6379")


def test_runs_and_sweeps_are_named_by_their_folder(folder: Path) -> None:
    assert request_of("resume", "s3://b/runs/x/", "workers.max=2") == Request(
        ["resume", "s3://b/runs/x", "workers.max=2", "ray.address=null"], "s3://b/runs/x"
    )
    evaluation = request_of("eval", "/mnt/runs/x", "--split", "validation")
    assert evaluation.words == ["eval", "/mnt/runs/x", "ray.address=null", "--split", "validation"]
    assert not evaluation.needs_folder_alone
    with pytest.raises(ConfigError, match="RUN runs/x: a path relative to"):
        request_of("resume", "runs/x")


@pytest.mark.parametrize(
    ("words", "sent", "run"),
    [
        ("seed=1", "seed=1 ray.address=null --from-sweep /mnt/s", "/mnt/s-best"),
        ("--trial trial_0003", "ray.address=null --from-sweep /mnt/s --trial trial_0003", "/mnt/s-trial_0003"),
        ("--all-data", "ray.address=null --from-sweep /mnt/s --all-data", "/mnt/s-best-all-data"),
        ("a.b=1 seed=2", "a.b=1 seed=2 ray.address=null --from-sweep /mnt/s", "/mnt/s-best"),
    ],
)
def test_the_winner_of_a_sweep(words: str, sent: str, run: str) -> None:
    """The sweep may be out of this machine's reach."""
    request = request_of("train", "--from-sweep", "/mnt/s/", *words.split())
    assert (request.words, request.run) == (["train", *sent.split()], run)


def test_a_relative_sweep_is_refused() -> None:
    with pytest.raises(ConfigError, match="--from-sweep runs/s: a path relative to"):
        request_of("train", "--from-sweep", "runs/s")
    with pytest.raises(ConfigError, match="--all-data needs --from-sweep"):
        request_of("train", "any.yaml", "--all-data")


@pytest.mark.parametrize(
    "words",
    [
        ["resume", "s3://id:HUSH@bucket/x"],
        ["resume", "/mnt/x", "task.args.api_key=HUSH"],
        ["train", "--from-sweep", "https://HUSH@host/x"],
        ["doctor", "--storage", "abfs://c@a/x?sig=HUSH"],
    ],
)
def test_no_credential_is_in_a_jobs_command(words: list[str]) -> None:
    """Ray's dashboard shows it to everyone."""
    with pytest.raises(ConfigError, match="this URI holds credentials|environment of every node") as caught:
        request_of(*words)
    assert "HUSH" not in str(caught.value)


SUBMITTABLE = [
    (name, parameter.name)
    for name, command in typer.main.get_command(app).commands.items()
    if hasattr(command.callback, "submittable")
    for parameter in command.params
    if parameter.name in inspect.signature(command.callback).parameters
]
EAGER = ("fields",)  # prints and leaves: nothing is submitted
VALUES = {
    "out": "/mnt/out.csv",
    "storage": "/mnt/x",
    "run": "/mnt/x",
    "from_sweep": "/mnt/s",
    "split": "validation",
    "trial": "trial_0001",
    "data": "/mnt/rows.csv",
    "predictions": "/mnt/out.csv",
    "report": "/mnt/page.html",
    "tune_for": "labels",
}


@pytest.mark.parametrize(("command", "name"), SUBMITTABLE, ids=lambda word: word)
def test_every_parameter_of_every_command_arrives(folder: Path, command: str, name: str) -> None:
    """The job's own parser reads what was given here, for parameters that are still to be invented too."""
    own = typer.main.get_command(app).commands[command]
    parameter: Any = next(one for one in own.params if one.name == name)
    kind = sent_as(inspect.signature(own.callback).parameters[name].annotation)
    if name in EAGER or kind in (Sent.NEVER, Sent.OVERRIDES, Sent.CONFIG):
        return  # the tests above
    words = [write_config(tiny_run(folder, "arrives"), folder)]
    if any(sent_as(one.annotation) is Sent.RUN for one in inspect.signature(own.callback).parameters.values()):
        words = ["/mnt/x"]
    if command == "predict":
        words = ["/mnt/x", "/mnt/rows.csv"]
    if command == "eval" and name not in ("model", "split", "data", "tune_threshold"):
        words += ["--data", "/mnt/rows.csv"]
    if name in ("trial", "all_data", "from_sweep"):
        words = ["--from-sweep", "/mnt/s"]
    if parameter.param_type_name == "option" and name != "from_sweep":
        value = VALUES.get(name, "lr_asha" if kind is Sent.SPACE else "2")
        words += [parameter.opts[0], *([] if parameter.is_flag else [value])]
    request = request_of(command, *words)
    on_the_cluster = own.make_context(command, request.words[1:])
    here = own.make_context(command, words)
    if kind is Sent.SPACE:
        assert on_the_cluster.params[name] in request.files
    else:
        assert on_the_cluster.params[name] == here.params[name]
        assert on_the_cluster.get_parameter_source(name).name == "COMMANDLINE"


def test_a_new_command_is_submitted_by_what_it_declares(folder: Path) -> None:
    """Without a word of it in `launch`."""
    own = typer.Typer()

    @own.command("probe")
    @can_be_submitted()
    def probe(
        config: Config,
        overrides: Overrides = None,
        where: Annotated[str, typer.Option("--where"), Sent.FOLDER] = "/mnt/default",
        prices: Annotated[list[str] | None, typer.Option("--price")] = None,
        fast: Annotated[bool, typer.Option("--fast/--slow")] = True,
        here: Annotated[str | None, typer.Option("--here"), Sent.NEVER] = None,
    ) -> None:
        pass

    @own.command()
    def stays() -> None:
        pass

    def request(*words: str) -> Request:
        ctx: Any = typer.Context(typer.main.get_command(own))
        inner = typer.Context(typer.main.get_command(own), parent=ctx)
        submittable, arguments = parse_command(inner, list(words))
        return make_request(words[0], arguments, needs_folder_alone=submittable.needs_folder_alone)

    config = write_config(tiny_run(folder, "probed"), folder)
    found = request("probe", config, "seed=3", "--price", "a=1", "--slow", "--price", "b=2")
    file = "raytrain_job/config.yaml"
    words = ["probe", file, "--where", "/mnt/default", "--price", "a=1", "--price", "b=2", "--slow"]
    assert (found.words, list(found.files)) == (words, [file])
    assert yaml.safe_load(found.files[file])["seed"] == 3
    with pytest.raises(ConfigError, match="omit its own --here"):
        request("probe", config, "--here", "x")
    with pytest.raises(ConfigError, match="--where runs: a path relative"):
        request("probe", config, "--where", "runs")
    with pytest.raises(ConfigError, match="'stays' can't be submitted; allowed after --: probe$"):
        request("stays")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "CONFIG", "training.epoch=3"], "did you mean training.epochs"),
        (["train", "CONFIG", "training.best_metric=acuracy"], "did you mean accuracy"),
        (["train", "CONFIG", "training.deepspeed={train_batch_size: 4}"], "training.deepspeed.train_batch_size"),
        (["train", "CONFIG", "storage_path=runs"], "  storage_path: runs\nGive the absolute paths"),
        (["train", "CONFIG", "data.train.path=~/x.parquet"], "  data.train.path: ~/x.parquet\n"),
        (["train", "CONFIG", "--overwite"], "No such option: --overwite"),
        (["tune", "CONFIG", "--space", "lr_ash"], "did you mean lr_asha"),
        (["tune", "CONFIG", "data.validation=null"], "set data.validation"),
        (["plan", "CONFIG"], "allowed after --: train, resume, tune, eval, verify, predict, serve, doctor"),
        (["trian", "CONFIG"], "allowed after --: train, resume, tune, eval, verify, predict, serve, doctor"),
        (["train"], "train needs a CONFIG"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(folder: Path, words: list[str], expected: str) -> None:
    config = write_config(tiny_run(folder, "bad"), folder)
    code, output = run_cli("submit", "--", *(config if word == "CONFIG" else word for word in words))
    assert code == 2, output
    assert expected in output
    assert "Traceback" not in output


def test_a_run_inside_the_jobs_own_folder_is_refused(folder: Path) -> None:
    """A plain `ray job submit --working-dir .` with a relative storage_path: Ray deletes it after the job."""
    place = folder / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    place.mkdir(parents=True)
    code, output = run_cli("train", write_config(tiny_run(folder, "lost", "storage_path=runs"), folder), cwd=place)
    assert code == 2, output
    assert "is in the job's own folder, which Ray deletes" in output


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("head:8265", "--address head:8265: give the job server's URL"),
        ("http://127.0.0.1:9", "no job server answers at http://127.0.0.1:9 ("),
    ],
)
def test_an_address_where_nobody_is(address: str, expected: str) -> None:
    code, output = run_cli("jobs", "list", "--address", address)
    assert code == 2, output
    assert expected in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("status", "driver", "message", "code", "words"),
    [
        ("SUCCEEDED", 0, "", 0, "is done"),
        ("STOPPED", None, "", 1, "resumes from the run's newest checkpoint"),
        ("FAILED", 2, "error: ...", 2, "failed with exit code 2"),
        ("FAILED", 1, "python: No module named raytrain", 1, "the cluster's `python` has no raytrain"),
        ("FAILED", 127, "sh: 1: python: not found", 1, "the cluster's `python` has no raytrain"),
        ("FAILED", -9, "", 1, "killed by signal 9"),
        ("FAILED", 137, "", 1, "killed by signal 9"),
        ("FAILED", None, "Unexpected error occurred: The actor died", 1, "was lost: Unexpected error"),
    ],
)
def test_only_success_is_success(status: str, driver: int | None, message: str, code: int, words: str) -> None:
    job = Job("x", status, "", "", message, driver, 0.0, 1.0)
    assert job.exit_code == code
    assert words in job.end_in_words()
