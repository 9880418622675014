"""The command `raytrain predict`."""

from typing import Annotated

import typer

from raytrain.cli.arguments import Overrides
from raytrain.cli.group import leave
from raytrain.launch.arguments import Sent, can_be_submitted


@can_be_submitted()
def predict(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run's folder or name, a sweep's folder, or a best/ folder."),
        Sent.FOLDER,
    ],
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="A file, a folder or a glob, in a format that training reads."),
        Sent.FOLDER,
    ],
    overrides: Overrides = None,
    out: Annotated[
        str,
        typer.Option(metavar="OUT", help="File to write: .parquet, .jsonl, .csv, or FOLDER/ of Parquet files."),
        Sent.FOLDER,
    ] = "",
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,...", help='Columns of INPUT to keep; default: all. "": none.')
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write each label's probability.")] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="With several labels per row: the probability from which on a label is given; default: the model's, "
            "which `raytrain eval --tune-threshold` chooses, else 0.5."
        ),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Write a vector for each row instead of its label.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Predict the rows of files with a trained model. The same command again continues one that was killed."""
    from raytrain.errors import ConfigError
    from raytrain.inference.batch import Request, predict_source
    from raytrain.tasks.predicting import Decoding
    from raytrain.terminal.predict import PredictDisplay, print_predictions

    if not out:
        raise ConfigError("predict needs --out OUT: a file that ends in .parquet, .jsonl or .csv, or a folder with a /")
    kept = None if columns is None else tuple(name.strip() for name in columns.split(",") if name.strip())
    decoding = Decoding(probabilities, threshold)
    request = Request(source, out, tuple(overrides or ()), kept, decoding, embeddings, overwrite)
    try:
        with PredictDisplay() as display:
            found = predict_source(model, request, display)
    except KeyboardInterrupt:
        leave("interrupted; the same command continues with what is not predicted yet")
    print_predictions(display.console, found)
