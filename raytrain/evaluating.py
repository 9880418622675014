"""`raytrain.evaluate`: a run's best model on a split, or any trained model on rows that are named or given.

Importing this module is cheap, as `api` is.
"""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from raytrain.api import AnyPath, Override
from raytrain.errors import ConfigError

if TYPE_CHECKING:
    from raytrain.inference.evaluation import DataEvaluation, EvaluationRequest
    from raytrain.inference.thresholds import Tuned
    from raytrain.runs.evaluation import Evaluation


class OnRows(TypedDict, total=False):
    """Further options of an evaluation on rows that are named or given; see `evaluate`."""

    by: str | None
    predictions: AnyPath | None
    threshold: float | None
    report: AnyPath | None
    overwrite: bool


def evaluate(
    model: AnyPath,
    *overrides: Any,
    data: Any = None,
    against: AnyPath | None = None,
    split: str | None = None,
    progress: bool = False,
    **options: "Unpack[OnRows]",
) -> "Evaluation":
    """Evaluate a model, as `raytrain eval` does: the best of a run on a split, or any on other rows.

    Args:
        model: The folder of a run; with `data` also a run's name, a sweep's folder, a best/ folder or an export.
        overrides: As for `train`. `{"data.test.path": FILE}` evaluates on a file that the run's config does not name.
        data: Rows with targets: a file, a folder or a glob, local or a URI; or a pandas DataFrame, a
            `datasets.Dataset`, an Arrow table, a Ray Dataset or a list of dicts, which are evaluated in this process.
            It may also be given as the second argument. None: a split of the run.
        against: With `data`: a second model, to compare with on the same rows.
        split: test or validation; None: test. Not with `data`.
        progress: As for `train`.
        options: With `data`. `by`: a column by whose values the metrics are told, too. `predictions`: for data in
            files, a file to write with each row, its answer, its true value and its loss; `overwrite=True` replaces
            it. `threshold`: where rows may have several labels, the probability from which on a label is given.
            `report`: the page to write.

    Returns:
        The metrics; with `data` a `DataEvaluation`, which has tables, slices and the worst rows too.

    Raises:
        ConfigError: The model, an option or an override can't be used, or there is no such split.
        DataError: The data can't be used, or more rows than data.max_quarantined allows.
        TrainingError: The workers failed.
    """
    from raytrain.config.from_python import words_of

    if data is None and overrides and not _is_override(overrides[0]):
        data, overrides = overrides[0], overrides[1:]
    words = words_of(overrides)
    if unknown := sorted(options.keys() - OnRows.__annotations__):
        raise TypeError(f"evaluate() has no argument {unknown[0]!r}")
    if data is None:
        from raytrain.runs.run import evaluate_run
        from raytrain.terminal.run import RunDisplay

        if given := [name for name, value in {"against": against, **options}.items() if value]:
            raise ConfigError(f"{given[0]} needs data: without it, a split of the run is evaluated")
        with RunDisplay() if progress else nullcontext() as observer:
            return evaluate_run(os.fspath(model), split or "test", observer, words)
    if split is not None:
        raise ConfigError("split is for the data of the run; all rows of data are evaluated")
    request = _request(data, words, against, options)
    return _evaluate_data(os.fspath(model), request, options.get("report"), progress=progress)


def tune_threshold(
    model: AnyPath, *overrides: Override, data: Any = None, tune_for: str = "macro_f1", progress: bool = False
) -> "Tuned":
    """Choose the probability from which on a model with several labels per row gives a label, and keep it in its card,
    as `raytrain eval --tune-threshold` does.

    Args:
        model, overrides, progress: As for `evaluate`.
        data: As for `evaluate`; None: the validation split of the run.
        tune_for: micro_f1 or macro_f1, one threshold for all labels; or labels, one for each.

    Raises: as `evaluate`; ConfigError too where the model gives one label per row.
    """
    from raytrain.config.from_python import words_of
    from raytrain.inference.formats import TunedFor
    from raytrain.inference.tuning_threshold import tune_threshold as tune
    from raytrain.terminal.run import RunDisplay

    if tune_for not in list(TunedFor):
        raise ConfigError(f"tune_for {tune_for!r}: allowed are {', '.join(TunedFor)}")
    with RunDisplay() if progress else nullcontext() as observer:
        return tune(os.fspath(model), TunedFor(tune_for), observer, words_of(overrides), _path_or_rows(data))


def _is_override(value: Any) -> bool:
    """Whether it is an override and no data: KEY=VALUE, or a mapping of dotted keys."""
    return isinstance(value, Mapping) or (isinstance(value, str) and "=" in value)


def _path_or_rows(data: Any) -> Any:
    return os.fspath(data) if isinstance(data, os.PathLike) else data


def _request(data: Any, words: list[str], against: AnyPath | None, options: OnRows) -> "EvaluationRequest":
    from raytrain.inference.evaluation import EvaluationRequest

    return EvaluationRequest(
        _path_or_rows(data),
        tuple(words),
        None if against is None else os.fspath(against),
        options.get("by"),
        os.fspath(options.get("predictions") or ""),
        options.get("threshold"),
        options.get("overwrite", False),
    )


def _evaluate_data(
    model: str, request: "EvaluationRequest", report: AnyPath | None, *, progress: bool
) -> "DataEvaluation":
    from dataclasses import replace

    from raytrain.inference.evaluation import evaluate_data
    from raytrain.inference.evaluation_page import write_page
    from raytrain.terminal.run import RunDisplay

    with RunDisplay() if progress else nullcontext() as observer:
        found = evaluate_data(model, request, observer)
    return found if report is None else replace(found, page=write_page(found, os.fspath(report)))
