"""The command line. Commands import heavy modules in their bodies, so that `--help` answers at once."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from raytrain.cli.arguments import Config, OptionalConfig, Overrides, RunFolder
from raytrain.cli.chat import chat
from raytrain.cli.cluster import cluster_app, doctor
from raytrain.cli.configs import configs_app
from raytrain.cli.data import data_app
from raytrain.cli.evaluate import evaluate
from raytrain.cli.export import export
from raytrain.cli.group import Commands, leave
from raytrain.cli.jobs import jobs_app, submit
from raytrain.cli.predict import predict
from raytrain.cli.report import report
from raytrain.cli.serve import serve
from raytrain.cli.watch import watch
from raytrain.errors import ConfigError, RaytrainError
from raytrain.launch.arguments import Sent, can_be_submitted
from raytrain.ray_core.quiet import quieten

if TYPE_CHECKING:
    from raytrain.config import RunConfig


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(configs_app, name="configs")
app.add_typer(cluster_app, name="cluster")


def _say_version(wanted: bool) -> None:
    if wanted:
        import raytrain

        typer.echo(f"raytrain {raytrain.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train Transformers on a Ray cluster. The size of the cluster does not change the result."""


def _check_train(parameters: Mapping[str, Any]) -> None:
    if parameters["from_sweep"] is not None:
        return
    if parameters["all_data"] or parameters["trial"]:
        from raytrain.tuning.best_trial import NEEDS_SWEEP, TRIAL_NEEDS_SWEEP

        raise ConfigError(NEEDS_SWEEP if parameters["all_data"] else TRIAL_NEEDS_SWEEP)
    if not parameters["config"]:
        raise ConfigError("train needs a CONFIG: a YAML file, or the name of a shipped one (`raytrain configs list`)")


@app.command()
@can_be_submitted(needs_folder_alone=True, check=_check_train)
def train(
    config: OptionalConfig = "",
    overrides: Overrides = None,
    from_sweep: Annotated[
        str | None,
        typer.Option(metavar="SWEEP", help="Instead of CONFIG: the best trial of this sweep's folder."),
        Sent.SWEEP,
    ] = None,
    all_data: Annotated[
        bool, typer.Option("--all-data", help="With --from-sweep: train on the validation split too.")
    ] = False,
    trial: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --from-sweep: this trial instead of the best.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Delete what the run has written to its folder, and start over. Other files stay.")
    ] = False,
) -> None:
    """Train a run to its end. The same command again resumes it where it stopped."""
    from raytrain.config.io import load_config

    _check_train({"config": config, "from_sweep": from_sweep, "all_data": all_data, "trial": trial})
    if from_sweep is None:
        _run(load_config(config, overrides), overwrite=overwrite)
    from raytrain.storage import Storage
    from raytrain.tuning.best_trial import train_winner

    words = [word for word in (config, *(overrides or [])) if word]  # without CONFIG all are overrides
    _run(train_winner(Storage(from_sweep), words, all_data=all_data, trial=trial), overwrite=overwrite)


@app.command()
@can_be_submitted(needs_folder_alone=True)
def resume(run: RunFolder, overrides: Overrides = None) -> None:
    """Resume a run from its newest good checkpoint."""
    from raytrain.runs.folder import read_run_config
    from raytrain.storage import Storage

    _run(read_run_config(Storage(run), overrides or []), overwrite=False)


def _run(config: "RunConfig", *, overwrite: bool) -> NoReturn:
    from raytrain.runs.run import run_training
    from raytrain.tasks import make_task
    from raytrain.tasks.predicting import Generating
    from raytrain.terminal.run import RunDisplay, print_result

    try:
        with RunDisplay() as display:
            result = run_training(config, display, overwrite=overwrite)
    except KeyboardInterrupt:
        leave(_how_to_resume(config))
    generates = result.is_done and isinstance(make_task(config.task, config.data.max_length), Generating)
    print_result(display.console, result, generates=generates)
    raise typer.Exit(result.exit_code)


def _how_to_resume(config: "RunConfig") -> str:
    """The command to type after a run was killed by a second Ctrl-C."""
    from raytrain.storage import Storage

    run = Storage(config.storage_path).at(config.name)
    if run.exists("config.yaml"):
        return f"ended at once; to resume it from its newest checkpoint, if it has one: raytrain resume {run.path_of()}"
    return "interrupted before the run began; the same command starts it again"


def _say_fields(wanted: bool) -> None:
    if wanted:
        from raytrain.config.help import describe_fields
        from raytrain.tuning.space.space import Space

        typer.echo(describe_fields(root=Space))
        raise typer.Exit


@app.command()
@can_be_submitted(needs_folder_alone=True)
def tune(
    config: Config,
    overrides: Overrides = None,
    space: Annotated[
        str,
        typer.Option(metavar="SPACE", help="What is tried: a YAML file, or the name of a shipped space."),
        Sent.SPACE,
    ] = "lr_asha",
    trials: Annotated[int | None, typer.Option(min=1, help="Configurations to try, instead of the space's.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Maximum number of trials at a time.")] = None,
    fields: Annotated[
        bool,
        typer.Option(
            "--fields", callback=_say_fields, is_eager=True, help="Print the fields of a search space, and exit."
        ),
    ] = False,
) -> None:
    """Try many configurations. The same command again resumes the sweep where it stopped."""
    from raytrain.config.io import read_config
    from raytrain.terminal.sweep import SweepDisplay, print_sweep
    from raytrain.tuning.space.space import load_space, space_name
    from raytrain.tuning.sweep import run_sweep

    chosen = load_space(space).with_trials(trials)
    raw = read_config(config)
    try:
        with SweepDisplay() as display:
            result = run_sweep(raw, overrides or [], chosen, space_name(space), display, max_concurrent=max_concurrent)
    except KeyboardInterrupt:
        leave("ended at once; the same command resumes the trials from their newest checkpoints")
    print_sweep(display.console, result)
    raise typer.Exit(result.exit_code)


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="GPU", help="GPU of each worker: a10g, a100-80, h100, ... or its memory, 24GiB."),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes; default: as many as needed.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs per node; default: 1.")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="CPUs per node; default: as many as needed.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a worker in dollars per hour.")] = None,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="Upload rate of a worker to storage, in MiB/s.")] = 100.0,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Run whose step times are used; default: this config's own."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check a config, and estimate what a run needs: memory, batches, CPUs, bytes, time and cost. Starts nothing.

    Without --gpu and --nodes it plans for CPU workers on this machine. Exit code 2: a mistake, or the run does not fit.
    """
    import raytrain
    from raytrain.terminal.plan import print_forecast

    found = raytrain.plan(
        config,
        *(overrides or []),
        gpu=gpu,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        price=price,
        bandwidth=bandwidth,
        calibrate=calibrate,
    )
    print_forecast(found, as_json=json)
    raise typer.Exit(0 if found.fits else 2)


app.command("eval")(evaluate)


@app.command()
@can_be_submitted()
def verify(
    run: RunFolder,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps to compare, from the first.")] = 20,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers; default: 1 if the run had more, else 2.")
    ] = None,
) -> None:
    """Train a run's first steps again at another number of workers, and compare. Exit code 1: they differ.

    The repetition is kept in the run's folder, in verify/.
    """
    from raytrain.runs.verification import verify_run
    from raytrain.terminal.run import RunDisplay
    from raytrain.terminal.verification import print_verification

    with RunDisplay() as display:
        found = verify_run(run, steps, workers, display, overrides or [])
    print_verification(display.console, found)
    raise typer.Exit(0 if found.agrees else 1)


@app.command("reclaim-watch")
def reclaim_watch(
    cloud: Annotated[str, typer.Option(help="auto, aws, gcp or azure.")] = "auto",
    interval_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two queries.")] = 5.0,
    address: Annotated[str | None, typer.Option(help="host:port of the cluster; default: this machine's Ray.")] = None,
    node_id: Annotated[str | None, typer.Option(help="Ray node to drain; default: all on this machine.")] = None,
    drain_on_rebalance: Annotated[bool, typer.Option(help="Drain on an EC2 rebalance recommendation too.")] = False,
    acknowledge: Annotated[bool, typer.Option(help="Tell Azure not to wait once the node has left Ray.")] = False,
    metadata_url: Annotated[str | None, typer.Option(help="Base URL of the cloud's metadata service.")] = None,
) -> None:
    """Watch for the cloud's reclaim notice, and drain this node in Ray. Runs until SIGTERM, beside Ray on each node."""
    import logging

    from raytrain.reclaim.watcher import watch_this_node

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    watch_this_node(
        cloud,
        interval_s=interval_s,
        address=address,
        node_id=node_id,
        drain_on_rebalance=drain_on_rebalance,
        acknowledge=acknowledge,
        metadata_url=metadata_url,
    )


for command in (predict, chat, serve, watch, export, report, submit, doctor):
    app.command()(command)
app.add_typer(jobs_app, name="jobs")


def main() -> NoReturn:
    """Entry point of `raytrain` and `python -m raytrain`. Turns a RaytrainError into its message and exit code."""
    quieten()
    try:
        app(standalone_mode=True)
    except RaytrainError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    sys.exit(0)
