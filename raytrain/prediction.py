"""`raytrain.predict`, `watch` and `export`: rows in memory, or what the commands of these names do.

Importing this module is cheap, as `api` is.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from raytrain.api import AnyPath, Override
from raytrain.errors import ConfigError
from raytrain.inference.loaded import LoadedModel, load

if TYPE_CHECKING:
    from threading import Event

    from raytrain.inference.batch import Predictions
    from raytrain.inference.export import Exported
    from raytrain.watching.status import Watched


def predict(model: "AnyPath | LoadedModel", data: Any, **options: Any) -> Any:
    """Predict rows that are in memory with a trained model.

    Args:
        model: As for `load`, or what it has returned.
        data: Texts (for a model that tags words also lists of words), a list of dicts, a pandas DataFrame or an Arrow
            table.
        options: `probabilities`, `threshold`, `embeddings`, `max_new_tokens`, `temperature`, `seed`, as for
            `LoadedModel.predict`.

    Returns:
        For texts and dicts a list of dicts with the predictions; for a DataFrame or an Arrow table the same with their
        columns added.

    Raises:
        ConfigError, DataError, CheckpointError: As for `load` and `LoadedModel.predict`.
    """
    loaded = model if isinstance(model, LoadedModel) else load(model)
    return loaded.predict(data, **options)


def predict_files(
    model: AnyPath,
    source: AnyPath,
    out: AnyPath,
    *overrides: Override,
    columns: Sequence[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> "Predictions":
    """Predict all rows of files on Ray and write them with their predictions, as `raytrain predict` does. The same
    call again continues one that was killed.

    Args:
        model: As for `load`.
        source: A file, a folder or a glob, local or a URI, of the formats that training reads.
        out: File to write: .parquet, .jsonl or .csv, or a folder of Parquet files with a / at its end.
        overrides: As for `train`, of workers.*, ray.*, data.test.* (how files are read) and task.*_column.
        columns: Columns of the source that are kept; None: all.
        progress: True: show the progress on the terminal.
        options: `probabilities`, `threshold`, `embeddings`, `max_new_tokens`, `temperature` and `seed`, as for
            `LoadedModel.predict`; `overwrite=True` replaces what is at `out`.

    Raises:
        ConfigError: The model, an option or `out` can't be used; nothing was started.
        DataError: The source can't be read, or none of its rows can be used.
        TrainingError: Workers died, or there was no room for one.
    """
    from raytrain.config.from_python import words_of
    from raytrain.inference.batch import Request, predict_source
    from raytrain.tasks.predicting import Decoding
    from raytrain.terminal.run import RunDisplay

    names = [field.name for field in fields(Decoding) if field.name in options]
    decoding = Decoding(**{name: options.pop(name) for name in names})
    if unknown := sorted(set(options) - {"embeddings", "overwrite"}):
        raise ConfigError(f"predict_files() has no option {unknown[0]!r}")
    kept = None if columns is None else tuple(columns)
    request = Request(os.fspath(source), os.fspath(out), tuple(words_of(overrides)), kept, decoding, **options)
    with RunDisplay() if progress else nullcontext() as display:
        return predict_source(os.fspath(model), request, display)


def watch(
    model: AnyPath,
    source: AnyPath,
    out: AnyPath,
    *overrides: Override,
    alerts: Sequence[str] = (),
    on_alert: Callable[[dict[str, Any]], None] | None = None,
    ends: "Event | None" = None,
    **options: Any,
) -> "Watched":
    """Predict texts as they arrive and tell when the share of a label passes a limit, as `raytrain watch` does. Returns
    after Ctrl-C, SIGTERM or `ends`; the same call then continues where it was.

    Args:
        model: As for `load`.
        source: A folder, a file, or `http://HOST:PORT` to listen on (needs `raytrain[serve]`).
        out: Folder of predictions, alerts, page and state.
        overrides: As for `predict_files`.
        alerts: Rules such as "negative > 30% of 500".
        on_alert: Called in this thread with each line of alerts.jsonl, after it was written. If it raises, the watch
            ends.
        ends: Ends the watch when another thread sets it.
        options: `webhook`, `window`, `threshold`, `interval_s`, `once` and `token_file`, as the command's options.

    Raises:
        ConfigError: The model, the source, a rule or an option can't be used; nothing was started.
        TrainingError: The folder can't be written any more.
    """
    from raytrain.config.from_python import words_of
    from raytrain.watching.request import WatchRequest
    from raytrain.watching.status import AlertCalls
    from raytrain.watching.watch import watch_source

    if unknown := sorted(set(options) - {"webhook", "window", "threshold", "interval_s", "once", "token_file"}):
        raise ConfigError(f"watch() has no option {unknown[0]!r}")
    options["is_once"] = options.pop("once", False)
    words = tuple(words_of(overrides))
    request = WatchRequest(os.fspath(source), os.fspath(out), tuple(alerts), words, **options)
    return watch_source(os.fspath(model), request, AlertCalls(on_alert), ends)


def export(
    model: AnyPath,
    out: AnyPath,
    *overrides: Override,
    format: str = "hf",
    dtype: str = "fp32",
    data: AnyPath | None = None,
    rows: int = 256,
    **options: Any,
) -> "Exported":
    """Write a trained model in another form and compare its answers with the trained model's, as `raytrain export`.

    Args:
        model: As for `load`.
        out: The folder to write.
        overrides: As for `predict_files`.
        format: hf, files of Transformers; onnx, a graph (needs `raytrain[onnx]`); gguf, for llama.cpp (needs
            `raytrain[gguf]`); or adapter, of a model with `model.adapter` that part alone.
        dtype: Of the weights: fp32, bf16 or fp16; with onnx fp32 or int8.
        data: Files with the rows to compare on; None: those of the model's validation data.
        rows: Number of rows to compare on.
        options: `overwrite=True`: an export in `out` is replaced. `tolerance`: the largest difference of a logit that
            is allowed, or with int8 the largest share of other labels; None: that of the dtype. `license`, `language`:
            for the model card. `push="OWNER/NAME"` uploads to the Hub with HF_TOKEN of the environment, to a private
            repository, with `is_public=True` to a public one.

    Raises:
        ConfigError: The model, an option or the folder can't be used, or the rows can't be read.
        TrainingError: The answers differ by more than is allowed; nothing was written.
    """
    from raytrain.config.from_python import words_of
    from raytrain.inference.export import ExportRequest, export_model
    from raytrain.inference.formats import DType, Format

    for name, value, kind in (("format", format, Format), ("dtype", dtype, DType)):
        if value not in list(kind):
            raise ConfigError(f"{name} {value!r}: allowed are {', '.join(kind)}")
    source = None if data is None else os.fspath(data)
    words = tuple(words_of(overrides))
    known = {"overwrite", "tolerance", "license", "language", "push", "is_public"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"export() has no option {unknown[0]!r}")
    request = ExportRequest(os.fspath(out), Format(format), DType(dtype), source, rows, words, **options)
    return export_model(os.fspath(model), request)
