"""The command `raytrain report`."""

from typing import Annotated

import typer


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or the folder of one sweep.")],
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="File to write with several runs; default: comparison.html.")
    ] = None,
) -> None:
    """Write a run's report.html and its plots, a sweep's sweep.html, or one page that compares several runs."""
    import raytrain

    typer.echo(raytrain.report(*runs, output=output))
