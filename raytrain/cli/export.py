"""The command `raytrain export`."""

from typing import Annotated

import typer

from raytrain.cli.arguments import Overrides
from raytrain.inference.formats import DType, Format


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run's folder or name, a sweep's folder, or a best/ folder.")
    ],
    out: Annotated[str, typer.Argument(metavar="DIR", help="The folder to write.")],
    overrides: Overrides = None,
    kind: Annotated[
        Format, typer.Option("--format", help="hf: files of Transformers; onnx: a graph; gguf: for llama.cpp; adapter.")
    ] = Format.HF,
    dtype: Annotated[DType, typer.Option(help="Of the weights; int8 for onnx alone.")] = DType.FP32,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rows to compare on; default: the model's validation data.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to compare on.")] = 256,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Largest difference of a logit that is allowed; with int8 the largest share of other labels.",
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="License that the model card names, such as apache-2.0.")
    ] = None,
    language: Annotated[str | None, typer.Option(metavar="CODE", help="Language of the texts, such as en.")] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload to this repository of the Hub, with HF_TOKEN; private."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: a new repository is public.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR if it is an export.")] = False,
) -> None:
    """Write a trained model in another form, and compare its answers with those of the trained one."""
    from raytrain.errors import ConfigError
    from raytrain.inference.export import ExportRequest, export_model
    from raytrain.terminal.export import print_export

    if public and push is None:
        raise ConfigError("--public is about the repository of --push: give --push OWNER/NAME too")
    words = tuple(overrides or ())
    request = ExportRequest(out, kind, dtype, data, rows, words, overwrite, tolerance, license, language, push, public)
    print_export(export_model(model, request))
