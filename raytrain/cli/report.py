"""The command that writes pages about runs and sweeps."""

from typing import Annotated

import typer

from raytrain.errors import ConfigError


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or the folder of one sweep.")],
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="With several runs: the page; default: comparison.html.")
    ] = None,
) -> None:
    """Write a run's report.html and its plots, a sweep's sweep.html, or one page that compares several runs."""
    from raytrain.runs.run import read_run_config
    from raytrain.storage import Storage
    from raytrain.tuning.best_trial import is_sweep

    folders = [Storage(run) for run in runs]
    if len(folders) == 1 and output is not None:
        raise ConfigError("--output names the page that compares several runs; a single report lies in its own folder")
    if len(folders) == 1 and is_sweep(folders[0]):
        from raytrain.tuning.report import build_sweep_report

        typer.echo(build_sweep_report(folders[0]))
        return
    for folder in folders:
        if is_sweep(folder):
            raise ConfigError(
                f"{folder.path_of()} is a sweep, which has a page of its own; to compare its trials, name their "
                f"folders, {folder.path_of('trials')}/..."
            )
        read_run_config(folder)
    # These draw with matplotlib, for which a mistyped folder need not wait.
    if len(folders) == 1:
        from raytrain.report.html import build_report

        typer.echo(build_report(folders[0]))
        return
    from raytrain.report.compare import COMPARISON, build_comparison

    typer.echo(build_comparison(folders, output or COMPARISON))
