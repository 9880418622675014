"""The command `raytrain eval`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from raytrain.cli.arguments import complete_override
from raytrain.cli.group import leave
from raytrain.errors import ConfigError
from raytrain.inference.formats import TunedFor
from raytrain.launch.arguments import Sent, can_be_submitted

NEEDS_DATA = ("by", "predictions", "report", "overwrite", "threshold")
EVALUATION = "evaluation.html"


def _check(parameters: Mapping[str, Any]) -> None:
    """Raises ConfigError for options that exclude each other, or need another one."""
    tunes, has_data = parameters["tune_threshold"], bool(parameters["data"])
    models = [word for word in parameters["overrides"] or () if "=" not in word]
    if len(models) > 1:
        raise ConfigError(f"eval takes two models at most; {models[1]!r} is neither one of them nor KEY=VALUE")
    if models and not has_data:
        raise ConfigError(f"{models[0]!r} is not KEY=VALUE; to compare two models, name the rows with --data FILE")
    given = [name for name in NEEDS_DATA if parameters[name] not in (None, "", False)]
    if given and not has_data:
        raise ConfigError(f"--{given[0]} needs --data FILE")
    if tunes and (given or models):
        what = f"--{given[0]}" if given else "a second model"
        raise ConfigError(f"--tune-threshold excludes {what}: choose the threshold first, then evaluate")
    if has_data and parameters["split"] is not None:
        raise ConfigError("--split is for the data of the run; --data names other rows, all of which are evaluated")
    if tunes and parameters["split"] not in (None, "validation"):
        raise ConfigError("--tune-threshold goes by the validation split; the test split is for measuring")


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run's folder; with --data also a run's name, a sweep's folder, a best/ folder or an export.",
    ),
    Sent.RUN,
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL2] [KEY=VALUE]...",
        help="With --data: a second model to compare with. Values that override the run's.",
        autocompletion=complete_override,
    ),
    Sent.OVERRIDES,
]
Data = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="Rows with targets: a file, a folder or a glob, in a format that training reads."
    ),
    Sent.FOLDER,
]
Out = Annotated[
    str,
    typer.Option(
        metavar="OUT", help="With --data: write each row with its answer, true value and loss, as predict does."
    ),
    Sent.FOLDER,
]
Threshold = Annotated[
    float | None,
    typer.Option(help="With --data, and several labels per row: the probability from which on a label is given."),
]
Tunes = Annotated[
    bool,
    typer.Option(
        "--tune-threshold",
        help="Choose that probability on the validation split, or on --data, and keep it in the model's card.",
    ),
]
Page = Annotated[
    str,
    typer.Option(metavar="PAGE", help=f"With --data: the page to write; default: {EVALUATION}."),
    Sent.FOLDER,
]


@can_be_submitted(check=_check)
def evaluate(
    model: Model,
    overrides: Words = None,
    split: Annotated[
        str | None, typer.Option(help="Which split of the run's data: validation or test; default: test.")
    ] = None,
    data: Data = "",
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="With --data: the metrics by value of this column, too.")
    ] = None,
    predictions: Out = "",
    threshold: Threshold = None,
    tune_threshold: Tunes = False,
    tune_for: Annotated[
        TunedFor, typer.Option(help="By micro_f1 or macro_f1; or labels: one for each label, by its F1.")
    ] = TunedFor.MACRO_F1,
    report: Page = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Evaluate a model: a run's best on a split, or any on rows of your own; or compare two on the same rows."""
    _check(locals())
    words = overrides or []
    others, changes = [word for word in words if "=" not in word], tuple(word for word in words if "=" in word)
    try:
        if tune_threshold:
            _tune(model, changes, data or None, tune_for)
        elif data:
            from raytrain.inference.evaluation import EvaluationRequest

            against = others[0] if others else None
            request = EvaluationRequest(data, changes, against, by, predictions, threshold, overwrite)
            _evaluate_data(model, request, report)
        else:
            _evaluate_split(model, list(changes), split or "test")
    except KeyboardInterrupt:
        leave("interrupted; with --predictions the same command continues with what is not done yet")


def _evaluate_split(run: str, overrides: list[str], split: str) -> None:
    from raytrain.runs.run import evaluate_run
    from raytrain.terminal.evaluate import print_threshold
    from raytrain.terminal.run import RunDisplay, print_metrics

    with RunDisplay() as display:
        found = evaluate_run(run, split, display, overrides)
    print_metrics(display.console, found.metrics, title=f"{found.split} of the best model")
    print_threshold(display.console, found)


def _evaluate_data(model: str, request: Any, report: str) -> None:
    from dataclasses import replace

    from raytrain.inference.evaluation import evaluate_data
    from raytrain.inference.evaluation_page import write_page
    from raytrain.terminal.evaluate import print_evaluation
    from raytrain.terminal.run import RunDisplay

    with RunDisplay() as display:
        found = evaluate_data(model, request, display)
    print_evaluation(display.console, replace(found, page=write_page(found, report or EVALUATION)))


def _tune(model: str, overrides: tuple[str, ...], data: str | None, tune_for: TunedFor) -> None:
    from raytrain.inference.card import find_model
    from raytrain.inference.tuning_threshold import tune_threshold
    from raytrain.terminal.evaluate import print_tuned
    from raytrain.terminal.run import RunDisplay

    with RunDisplay() as display:
        tuned = tune_threshold(model, tune_for, display, overrides, data)
    print_tuned(display.console, tuned, find_model(model).path_of("raytrain.json"))
