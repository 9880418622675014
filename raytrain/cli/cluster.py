"""The commands `raytrain cluster` and `raytrain doctor`. They import heavy modules in their bodies; see `main`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from raytrain.cli.arguments import Overrides, complete_config
from raytrain.errors import ConfigError
from raytrain.launch.arguments import Sent, can_be_submitted

cluster_app = typer.Typer(help="Cluster files for Ray: list, show, fill in and check them.", no_args_is_help=True)

ClusterFile = Annotated[str, typer.Argument(metavar="FILE", help="A path, or a shipped file's name, such as aws.")]


@cluster_app.command("list")
def cluster_list() -> None:
    """List the cluster files that are shipped with raytrain."""
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
        int | None,
        typer.Option(min=1, help="Maximum number of GPUs on spot nodes, and as many on demand."),
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs per GPU node.")] = None,
    gpu_machine: Annotated[str | None, typer.Option(help="Machine type of the GPU nodes.")] = None,
    spot: Annotated[bool, typer.Option("--spot/--on-demand", help="Spot nodes first, or on-demand nodes only.")] = True,
    config: Annotated[str | None, typer.Option(help="A run's config, whose workers set the CPUs per GPU.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
) -> None:
    """Fill in a cluster file from a few options. The rest stays as it is; marked lines are for you to edit."""
    from raytrain.config.io import load_config
    from raytrain.launch.cluster_files import Answers, render, write_rendered

    cpus = load_config(config).workers.cpus if config else None
    text = render(name, Answers(cluster_name, image, region, gpus, gpus_per_node, gpu_machine, spot, cpus))
    typer.echo(write_rendered(text, out, overwrite=overwrite), nl=False)


@cluster_app.command("check")
def cluster_check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A `ray up` file, manifests, or Prometheus rules.")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(help="A run's config, whose workers must fit on the nodes.")] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE=DOLLARS", help="Hourly price of a node type; may be repeated."),
    ] = None,
) -> None:
    """Check a cluster file without access to any cloud, and print what would be launched."""
    from raytrain.config.io import load_config
    from raytrain.config.shipped import find_cluster_file
    from raytrain.launch.cluster_check import check_cluster_file, read_prices

    if overrides and not config:
        raise ConfigError(f"{overrides[0]} overrides a config, and no config is given: add --config CONFIG")
    loaded = load_config(config, overrides) if config else None
    report = check_cluster_file(find_cluster_file(file), loaded, read_prices(price or []))
    for line in report.lines():
        typer.echo(line)
    raise typer.Exit(2 if report.problems else 0)


def _check_doctor(parameters: Mapping[str, Any]) -> None:
    config = parameters["config"]
    if "=" in config:
        raise ConfigError(
            f"{config} overrides a CONFIG, and no CONFIG is given; add one, or use --address and --storage instead"
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
        typer.Option(metavar="PATH", help="Folder or URI to test instead of the config's storage_path."),
        Sent.FOLDER,
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Examine a cluster, or this machine: versions, GPUs, clocks, memory, disks, storage and the network between nodes.

    Takes about a minute, and reserves no CPU or GPU in Ray. Exit code 1: a problem was found; 2: nothing could be
    examined.
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
