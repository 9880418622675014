"""The commands `raytrain configs`: shipped configs, the meaning of all fields, and the schema for editors."""

from typing import Annotated

import typer

from raytrain.cli.arguments import OptionalConfig, Overrides
from raytrain.errors import ConfigError

configs_app = typer.Typer(help="The shipped configs, and the fields of a config.", no_args_is_help=True)


@configs_app.command("list")
def configs_list() -> None:
    """List the shipped configs, each with a sentence on what it trains."""
    from raytrain.config.shipped import config_names, describe_config

    for name in config_names():
        typer.echo(f"{name:<20} {describe_config(name)}")


@configs_app.command("show")
def configs_show(
    config: OptionalConfig = "",
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option(help="With every default filled in.")] = False,
    fields: Annotated[
        bool,
        typer.Option(
            "--fields",
            help="Print what every field means; with words, only of matching fields.",
        ),
    ] = False,
) -> None:
    """Print a config as written or resolved, or what its fields mean: `raytrain configs show --fields batch`."""
    from raytrain.config.help import describe_fields
    from raytrain.config.io import dump_config, load_config
    from raytrain.config.shipped import config_names, find_config

    if fields:
        typer.echo(describe_fields([word for word in (config, *(overrides or [])) if word]))
    elif not config:
        raise ConfigError(f"show needs a CONFIG: a YAML file, or one of {', '.join(config_names())}; or --fields")
    elif resolved or overrides:
        typer.echo(dump_config(load_config(config, overrides)))
    else:
        with open(find_config(config), encoding="utf-8") as file:
            typer.echo(file.read())


@configs_app.command("schema")
def configs_schema(
    space: Annotated[bool, typer.Option("--space", help="Print the schema of a search space instead.")] = False,
) -> None:
    """Print the JSON schema of a config, which lets an editor complete and check configs."""
    import json

    from raytrain.config import RunConfig
    from raytrain.config.help import json_schema
    from raytrain.tuning.space.space import Space

    typer.echo(json.dumps(json_schema(Space if space else RunConfig), indent=2))
