"""The command `raytrain watch`."""

from typing import Annotated

import typer

from raytrain.cli.arguments import Overrides
from raytrain.cli.group import leave

WEBHOOK_VARIABLE = "RAYTRAIN_WEBHOOK"


def watch(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run's folder or name, a sweep's folder, a best/ or an export.")
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder in which .jsonl and .txt files appear, one such file, or http://HOST:PORT to listen on.",
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of predictions, alerts, page and state; required.")
    ] = "",
    alert: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Such as 'negative > 30% of 500', or of 15m; may be repeated."),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL", envvar=WEBHOOK_VARIABLE, show_envvar=True, help="Is sent each alert as JSON; https."
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="Texts of which the shares are shown.")] = 500,
    threshold: Annotated[
        float | None,
        typer.Option(
            show_default=False,
            help="With several labels per text: the probability from which on a label is given; default: the model's, "
            "which `raytrain eval --tune-threshold` chooses, else 0.5.",
        ),
    ] = None,
    interval_s: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks for new texts.")] = 1.0,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Over HTTP: file with the token of clients; it is made if it is not there."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when all that is there has been read.")] = False,
) -> None:
    """Predict texts as they arrive, and tell when the share of a label passes a limit. Runs until Ctrl-C.

    The same command continues where it was, also after a kill: no text is counted twice or missed.
    """
    from raytrain.errors import ConfigError
    from raytrain.terminal.watch import WatchDisplay, print_watched
    from raytrain.watching.watch import WatchRequest, watch_source

    if not out:
        raise ConfigError("watch needs --out DIR, the folder of what it writes")
    words = tuple(overrides or ())
    rules = tuple(alert or ())
    request = WatchRequest(source, out, rules, words, webhook, window, threshold, interval_s, once, token_file)
    try:
        with WatchDisplay() as display:
            found = watch_source(model, request, display)
    except KeyboardInterrupt:
        leave("interrupted; the same command continues where it was")
    print_watched(display.console, found)
