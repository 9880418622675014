"""The command `raytrain predict`."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from raytrain.cli.arguments import Overrides
from raytrain.cli.group import leave
from raytrain.launch.arguments import Sent, can_be_submitted


def _check_input(parameters: Mapping[str, Any]) -> None:
    """Raises ConfigError for a second INPUT, as the shell makes of a glob."""
    from raytrain.errors import ConfigError

    words = [word for word in parameters["overrides"] or () if "=" not in word]
    if words:
        kind = os.path.splitext(words[0])[1]
        raise ConfigError(
            f"predict has one INPUT, and {words[0]} is given after {parameters['source']}. Give a folder, or a glob in "
            f"quotes so that the shell leaves it alone: '*{kind}'"
        )


@can_be_submitted(check=_check_input)
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
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="Language models: continue each text by up to N tokens.")
    ] = 0,
    temperature: Annotated[
        float, typer.Option(help="Of these tokens: 0 takes the most probable one, more draws others too.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws; what is drawn depends on it, the text and its row.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Predict the rows of files with a trained model. The same command again continues one that was killed."""
    from raytrain.errors import ConfigError
    from raytrain.inference.batch import Request, predict_source
    from raytrain.tasks.predicting import Decoding
    from raytrain.terminal.predict import print_predictions
    from raytrain.terminal.run import RunDisplay

    _check_input({"source": source, "overrides": overrides})
    if not out:
        raise ConfigError("predict needs --out OUT: a file that ends in .parquet, .jsonl or .csv, or a folder with a /")
    kept = None if columns is None else tuple(name.strip() for name in columns.split(",") if name.strip())
    decoding = Decoding(probabilities, threshold, max_new_tokens, temperature, seed)
    request = Request(source, out, tuple(overrides or ()), kept, decoding, embeddings, overwrite)
    try:
        with RunDisplay() as display:
            found = predict_source(model, request, display)
    except KeyboardInterrupt:
        leave("interrupted; the same command continues with what is not predicted yet")
    print_predictions(display.console, found)
