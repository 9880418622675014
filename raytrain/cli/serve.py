"""The command `raytrain serve`."""

from typing import Annotated

import typer

from raytrain.cli.arguments import Overrides
from raytrain.cli.group import leave
from raytrain.launch.arguments import Sent, can_be_submitted


@can_be_submitted()
def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run's folder or name, a sweep's folder, a best/ folder or an export."),
        Sent.FOLDER,
    ],
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    replicas: Annotated[
        str, typer.Option(metavar="MIN[:MAX]", help="Copies of the model; between MIN and MAX as requests ask for.")
    ] = "1",
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File with the token of clients; it is made if it is not there."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="host:port of a Ray cluster to run the replicas on; default: this machine."),
        Sent.NEVER,
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Hand MODEL to the server that runs on --port of this machine, and end.")
    ] = False,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 1000,
    max_body_mb: Annotated[float, typer.Option(min=0.001, max=256.0, help="Size of a request in MB.")] = 8.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Rows that may wait; above it, requests get a 503.")] = 4096,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=4096, help="Tokens that a language model generates for a row at most.")
    ] = 256,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds until a request is answered.")] = 30.0,
) -> None:
    """Serve a trained model over HTTP until Ctrl-C or SIGTERM. --host other than loopback asks clients for a token."""
    from raytrain.serving.limits import Limits, Replicas
    from raytrain.serving.server import ServeRequest, serve_model
    from raytrain.serving.update import ask_for_update
    from raytrain.terminal.serve import ServeDisplay, print_update

    words = tuple(overrides or ())
    if update:
        from raytrain.serving.served import check_model

        print_update(ask_for_update(port, check_model(model, words).card.folder, words))
        return
    limits = Limits(max_rows, max_body_mb, timeout_s, max_queue, max_new_tokens)
    request = ServeRequest(host, port, Replicas.parse(replicas), words, token_file, address, limits)
    try:
        with ServeDisplay() as display:
            serve_model(model, request, display)
    except KeyboardInterrupt:
        leave("interrupted before the model was served")
