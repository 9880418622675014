"""Arguments that several commands share, with their shell completion."""

import glob
from typing import Annotated

import typer

from raytrain.launch.arguments import Sent


def complete_config(incomplete: str) -> list[str]:
    """Completes CONFIG: shipped configs, YAML files and folders."""
    from raytrain.config.shipped import config_names

    names = [name for name in config_names() if name.startswith(incomplete)]
    places = sorted(glob.glob(f"{glob.escape(incomplete)}*/") + glob.glob(f"{glob.escape(incomplete)}*.y*ml"))
    return [*names, *places]


def complete_override(incomplete: str) -> list[str]:
    """Completes an override: fields of the config that are not sections, as `dotted.key=`."""
    from raytrain.config.fields import all_fields, is_section

    return [f"{key}=" for key in all_fields() if key.startswith(incomplete) and not is_section(key)]


Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", help="A YAML file, or the name of a shipped config.", autocompletion=complete_config
    ),
    Sent.CONFIG,
]
OptionalConfig = Annotated[
    str,
    typer.Argument(
        metavar="[CONFIG]",
        help="A YAML file, or the name of a shipped config.",
        show_default=False,
        autocompletion=complete_config,
    ),
    Sent.CONFIG,
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Values that override those of the config, or of the model.",
        autocompletion=complete_override,
    ),
    Sent.OVERRIDES,
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, <storage_path>/<name>."), Sent.RUN]
