"""The command `raytrain data`. It imports heavy modules in its bodies; see `main`."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raytrain.cli.arguments import Config, Overrides
from raytrain.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from raytrain.config import RunConfig
    from raytrain.data.prepared import PreparedStore

data_app = typer.Typer(help="Prepare data, and show it.", no_args_is_help=True)


@data_app.command("prepare")
def data_prepare(config: Config, overrides: Overrides = None) -> None:
    """Prepare a config's data, unless it is prepared already."""
    from raytrain.config.io import load_config

    _prepared(load_config(config, overrides))


@data_app.command("show")
def data_show(
    config: Config,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Which split: train, validation or test.")] = "train",
    rows: Annotated[int, typer.Option(min=0, help="Samples to show; 0: none.")] = 5,
    row: Annotated[str | None, typer.Option(metavar="FILE:ROW", help="Tell what became of this source row.")] = None,
    sample: Annotated[int | None, typer.Option(metavar="ID", help="Show this sample, and where it is from.")] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Show pairs of duplicates, with both texts.")] = None,
    html: Annotated[bool, typer.Option("--html", help="Write a page instead: all of this in one file.")] = False,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --html: file to write; default: <name>-data.html.")
    ] = None,
) -> None:
    """Show what became of the rows at each stage, with examples, and samples as the model sees them.

    Or trace a row to its sample or back.
    """
    from raytrain.config.io import load_config
    from raytrain.data import lineage
    from raytrain.data.show import decode_sample, decode_samples, source_texts
    from raytrain.data.summary import summarize
    from raytrain.runs.preflight import resolve
    from raytrain.terminal.data import print_lines, print_pairs, print_samples, print_summary

    options = (("--row", row), ("--sample", sample), ("--pairs", pairs), ("--html", html or None))
    given = [name for name, value in options if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are given: give one of them")
    if output is not None and not html:
        raise ConfigError("--output names the file of --html: give --html too")
    parsed = resolve(load_config(config, overrides))
    if row is not None:
        lineage.parse_place(row)
    store, console = _prepared(parsed)
    if pairs is not None:
        found = list(lineage.pairs(store, pairs))
        print_pairs(console, found, source_texts(parsed, {place for one in found for place in one.places}))
        return
    if html:
        shown = decode_samples(store, parsed, split, rows)
        _write_page(parsed, store, output or f"{parsed.name}-data.html", shown, split)
        return
    if row is None and sample is None:
        print_summary(console, summarize(parsed, store))
        print_samples(console, decode_samples(store, parsed, split, rows))
        return
    lines, sources = lineage.fate_of(store, row) if row is not None else ([], [])
    if sample is not None:
        sources = [lineage.source_of(store, split, sample)]
        lines = [str(source) for source in sources]
    print_lines(console, lines)
    samples = {source.sample: decode_sample(store, parsed, source.split, source.sample) for source in sources}
    print_samples(console, samples.values(), list(samples))


def _write_page(
    config: "RunConfig", store: "PreparedStore", output: str, samples: list[dict[str, Any]], split: str
) -> None:
    from raytrain.data.summary import summarize
    from raytrain.reports.data_page import write_data_page
    from raytrain.storage import Storage

    folder, name = os.path.split(output)
    if not name or os.path.isdir(output):
        raise ConfigError(f"--output {output}: this is a folder; give the name of a file in it, such as data.html")
    try:
        path = write_data_page(
            Storage(folder or "."), name, config.name, store.root, summarize(config, store), samples, split
        )
    except OSError as error:
        raise ConfigError(f"--output {output}: the page can't be written: {error.strerror or error}") from error
    typer.echo(f"page    {path}")


def _prepared(config: "RunConfig") -> "tuple[PreparedStore, Console]":
    """Prepare the data and print its counts."""
    from raytrain.data.commit import removed_logger
    from raytrain.data.copies import describe_epoch
    from raytrain.runs.run import prepare_data
    from raytrain.terminal.data import print_store
    from raytrain.terminal.run import RunDisplay

    removed_logger.disabled = True  # print_store says it
    try:
        with RunDisplay() as display:
            store = prepare_data(config, display)
    finally:
        removed_logger.disabled = False
    print_store(display.console, store, describe_epoch(config, store.manifest))
    return store, display.console
