"""`raytrain cluster` and `raytrain doctor`. Heavy imports stand inside the commands, as in cli.py."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from raytrain.cli.arguments import Overrides, complete_config
from raytrain.errors import ConfigError
from raytrain.launch.arguments import Sent, can_be_submitted

cluster_app = typer.Typer(help="Files that start a Ray cluster: fill them in, and check them.", no_args_is_help=True)

ClusterFile = Annotated[str, typer.Argument(metavar="FILE", help="A path, or a shipped file's name, such as aws.")]


@cluster_app.command("list")
def cluster_list() -> None:
    """The cluster files that come with raytrain."""
    from raytrain.config.shipped import cluster_names
    from raytrain.launch.cluster_files import describe

    for name in cluster_names():
        typer.echo(f"{name:<30} {describe(name)}")


@cluster_app.command("show")
def cluster_show(name: ClusterFile) -> None:
    """Print a cluster file."""
    from raytrain.config.shipped import find_cluster_file

    with open(find_cluster_file(name), encoding="utf-8") as file:
        typer.echo(file.read(), nl=False)


@cluster_app.command("render")
def cluster_render(
    name: ClusterFile,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where to write it; `-` prints it.")],
    cluster_name: Annotated[str | None, typer.Option("--name", help="The cluster's name, or the RayJob's.")] = None,
    image: Annotated[str | None, typer.Option(help="The images' repository, without a tag.")] = None,
    region: Annotated[str | None, typer.Option(help="The cloud's region.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Most GPUs on spot, and as many on demand behind them.")
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs of a GPU node.")] = None,
    gpu_machine: Annotated[str | None, typer.Option(help="Machine type of the GPU nodes.")] = None,
    spot: Annotated[bool, typer.Option("--spot/--on-demand", help="Spot nodes first, or none.")] = True,
    config: Annotated[str | None, typer.Option(help="A run's config: CPUs for each GPU as its workers hold.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it is there.")] = False,
) -> None:
    """Fill in a cluster file from a few answers; the rest stays as it is, and marked lines are yours."""
    from raytrain.config.io import load_config
    from raytrain.launch.cluster_files import Answers, render, write_rendered

    cpus = load_config(config).workers.cpus if config else None
    text = render(name, Answers(cluster_name, image, region, gpus, gpus_per_node, gpu_machine, spot, cpus))
    typer.echo(write_rendered(text, out, overwrite=overwrite), nl=False)


@cluster_app.command("check")
def cluster_check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A `ray up` file, manifests, or Prometheus rules.")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(help="A run's config, whose workers the nodes must hold.")] = None,
    price: Annotated[
        list[str] | None, typer.Option(metavar="NODE=DOLLARS", help="What an hour of such a node costs; many times.")
    ] = None,
) -> None:
    """Check a cluster file, without reaching any cloud, and say what would be launched."""
    from raytrain.config.io import load_config
    from raytrain.config.shipped import find_cluster_file
    from raytrain.launch.cluster_check import check_cluster_file, read_prices

    if overrides and not config:
        raise ConfigError(f"{overrides[0]} is to override a config, and none is given: add --config")
    loaded = load_config(config, overrides) if config else None
    report = check_cluster_file(find_cluster_file(file), loaded, read_prices(price or []))
    for line in report.lines():
        typer.echo(line)
    raise typer.Exit(2 if report.problems else 0)


def _check_doctor(parameters: Mapping[str, Any]) -> None:
    config = parameters["config"]
    if "=" in config:
        raise ConfigError(
            f"{config} is to override a CONFIG, and none is given; without one use --address and --storage"
        )


@can_be_submitted(check=_check_doctor)
def doctor(
    config: Annotated[
        str,
        typer.Argument(
            metavar="[CONFIG]",
            help="A run whose needs are checked too: a YAML file, or the name of a shipped config.",
            show_default=False,
            autocompletion=complete_config,
        ),
        Sent.CONFIG,
    ] = "",
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster; default: the config's ray.address, RAY_ADDRESS, or a private Ray."),
        Sent.NEVER,
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder or URI to try instead of the config's storage_path."),
        Sent.FOLDER,
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Examine a cluster, or this machine: versions, GPUs, clocks, memory, disks, storage and the network between nodes.

    Takes about a minute, and holds no CPU or GPU of Ray's. Exit code 1: there is a problem; 2: it can't be examined.
    """
    from raytrain.config.io import load_config
    from raytrain.doctor.examine import examine
    from raytrain.terminal.doctor import DoctorConsole

    _check_doctor({"config": config})
    console = DoctorConsole(as_json=json)
    parsed = load_config(config, overrides) if config else None
    report = examine(parsed, address=address, storage_path=storage, say=console.say)
    console.show(report)
    raise typer.Exit(report.exit_code)
