"""Evaluations of trained models on data that a user names: `raytrain eval MODEL --data FILE`.

The rows go through the machinery of predictions: pieces, actors with a model each (`batch`, `pool`). What an actor
finds out about the rows of a piece (`judging`) is added up here (`totals`) as the pieces come, and the answers are kept
only if `--predictions` names a file. No worker group of a training is needed, so any model that predicts can be
evaluated: an export, an ONNX graph, a model of which nothing but best/ is left.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.data.bad_rows import Tally
from raytrain.data.encode import cannot_prepare
from raytrain.data.given import tables_of
from raytrain.data.readers.base import ROW, BadRow, ReadTask
from raytrain.data.stages.counts import RowCounts, check_shares
from raytrain.errors import ConfigError, DataError, FailureCode, did_you_mean
from raytrain.inference.batch import Predictions, Request, finish, predict_pieces
from raytrain.inference.card import JUDGING, ModelCard, find_model, read_card
from raytrain.inference.judging import JUDGED_COLUMNS, Judging, judge_rows
from raytrain.inference.output import target_of
from raytrain.inference.pieces import PIECE_ROWS, Done
from raytrain.inference.predictor import Predictor, output_columns, predicting_task
from raytrain.inference.significance import Difference
from raytrain.inference.source import absolute, check_source, check_target
from raytrain.inference.thresholds import ThresholdCounts
from raytrain.inference.totals import JudgedTotals, Slice, WorstRow
from raytrain.models.card import BEST
from raytrain.runs.evaluation import Evaluation
from raytrain.runs.folder import CONFIG
from raytrain.runs.observer import Observer
from raytrain.storage import Storage
from raytrain.tasks.base import Metrics, Task
from raytrain.tasks.predicting import Decoding, Predicting
from raytrain.tasks.referenced import refuse_without_reference
from raytrain.training.records import JsonlWriter
from raytrain.training.run_log import EVALS

IN_MEMORY = "data"
"""What rows are called that a program has given, in place of a path."""


@dataclass(frozen=True)
class DataEvaluation(Evaluation):
    """The metrics of a model on data that was named. `run_path` is the folder of the model, `split` the path of the
    data."""

    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As in evals.jsonl, such as per_class and confusion."""
    notes: tuple[str, ...] = ()
    num_refused: int = 0
    """Rows that can't be used; they are in no number."""
    reasons: list[str] = field(default_factory=list)
    """A line for each kind of reason why rows were refused."""
    num_truncated: int = 0
    """Rows of which the model did not see the end."""
    by: str | None = None
    """The column of the slices."""
    slices: list[Slice] = field(default_factory=list)
    worst: list[WorstRow] = field(default_factory=list)
    """The rows with the largest losses, the worst first."""
    other: Evaluation | None = None
    """The second model, on the same rows."""
    differences: list[Difference] = field(default_factory=list)
    """Between the two models, for each metric."""
    predictions: Predictions | None = None
    """The file of the answers, if one was asked for."""
    page: str | None = None
    """Path of the report page, if one was asked for."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate a model on, and what to tell of it."""

    data: Any
    """A path, or rows in memory: see `data.given`."""
    overrides: tuple[str, ...] = ()
    against: str | None = None
    """A second model."""
    by: str | None = None
    predictions: str = ""
    """File to write, as for a prediction; "": none."""
    threshold: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class _Asked:
    """A request that was checked."""

    request: EvaluationRequest
    cards: list[ModelCard]
    config: RunConfig
    tasks: list[Task]
    decoding: Decoding
    judging: Judging
    path: str
    """Of the data."""

    @property
    def added(self) -> list[str]:
        """Columns that a file of predictions has beside those of the source."""
        return [*output_columns(self.tasks[0], self.cards[0], self.decoding, judged=True), *JUDGED_COLUMNS]

    @property
    def needed(self) -> list[str]:
        """Columns of the source that the models need."""
        return list(dict.fromkeys(name for task in self.tasks for name in task.required_columns()))


@dataclass
class _Found:
    """What is known so far."""

    totals: JudgedTotals
    thresholds: ThresholdCounts | None
    tally: Tally = field(default_factory=Tally)
    num_truncated: int = 0

    def take(self, file: str, key: int, done: Done) -> None:
        """Add a piece."""
        assert done.judged is not None
        self.totals.add(file, key, done.judged)
        if self.thresholds is not None:
            self.thresholds.add(done.judged)
        self.tally.merge(done.tally)
        self.num_truncated += done.num_truncated


def evaluate_data(
    model: str,
    request: EvaluationRequest,
    observer: Observer | None = None,
    thresholds: ThresholdCounts | None = None,
) -> DataEvaluation:
    """Evaluate a model on data with targets, and append the metrics to evals.jsonl if it is the best of a run.

    Args:
        model: A run's folder or name, a sweep's folder (its best trial), a best/ or the folder of an export.
        thresholds: Counts that are filled, to choose a threshold by.

    Raises:
        ConfigError: A model or an option can't be used; nothing was started.
        DataError: The data can't be read, or more of its rows can't be used than data.max_quarantined allows.
        TrainingError: Workers died, or there was no room for one.
    """
    observer, began_s = observer or Observer(), time.monotonic()
    observer.phase("checking")
    asked = _checked(model, request, wants_probabilities=thresholds is not None)
    models = [(task, card.judging_state) for task, card in zip(asked.tasks, asked.cards, strict=True)]
    found = _Found(JudgedTotals(models, is_sliced=request.by is not None), thresholds)
    if isinstance(request.data, str):
        predictions = _judge_files(asked, found, observer, began_s)
    else:
        predictions = None
        _judge_given(asked, found, observer)
    told = _told(asked, found, predictions)
    if request.against is None and request.threshold is None and isinstance(request.data, str):
        _record(asked.cards[0], asked.path, found.totals.totals[0].metrics())
    return told


def _checked(model: str, request: EvaluationRequest, *, wants_probabilities: bool) -> _Asked:
    given = [model, *([request.against] if request.against is not None else [])]
    cards = [read_card(find_model(one)) for one in given]
    if len(cards) > 1 and cards[0].folder == cards[1].folder:
        raise ConfigError(f"{cards[0].folder} is given twice; a comparison needs two models")
    path = absolute(request.data) if isinstance(request.data, str) else IN_MEMORY
    configs = [card.config(request.overrides, path, JUDGING) for card in cards]
    if len({config.task.kind for config in configs}) > 1:
        kinds = " and ".join(config.task.kind for config in configs)
        raise ConfigError(f"models of different tasks can't be compared on the same rows: {kinds}")
    tasks = [predicting_task(config) for config in configs]
    for task in tasks:
        refuse_without_reference(task)
    decoding = cards[0].decoding(Decoding(threshold=request.threshold), tasks[0])
    judging = Judging(tuple(cards[1:]), request.by, wants_probabilities, request.threshold)
    return _Asked(request, cards, configs[0], tasks, decoding, judging, path)


def _judge_files(asked: _Asked, found: _Found, observer: Observer, began_s: float) -> Predictions | None:
    """Judge the rows of files, by actors on Ray."""
    request, target = asked.request, None
    kept = None if request.predictions else ()
    judged = asked.config, asked.tasks[0], kept, asked.added, observer.checked, asked.needed, request.by
    files = check_source(*judged)
    if request.predictions:
        target = target_of(request.predictions)
        check_target(target, files, overwrite=request.overwrite)
    order = Request(
        asked.path,
        request.predictions,
        request.overrides,
        kept,
        asked.decoding,
        overwrite=request.overwrite,
        judging=asked.judging,
    )

    def take(task: ReadTask, done: Done) -> None:
        found.take(task.file.path, task.file_of_split, done)

    try:
        progress = predict_pieces(asked.cards[0], asked.config, order, target, files, observer, take)
        _check_rows(asked, found)
        if target is None:
            return None
        observer.phase("writing")
        return finish(target, progress, began_s)
    except OSError as error:
        where = asked.path if target is None else target.parent.path_of(target.name)
        raise cannot_prepare(f"the evaluation can't read or write {where}", error) from error


def _judge_given(asked: _Asked, found: _Found, observer: Observer) -> None:
    """Judge rows that are in memory, in this process."""
    if asked.request.predictions:
        raise ConfigError("predictions are written for files: for rows in memory call raytrain.predict(model, data)")
    predictors = [Predictor.load(card, asked.request.overrides, judges=True) for card in asked.cards]
    observer.phase("evaluating")
    row = 1
    for table in tables_of(IN_MEMORY, asked.request.data):
        needed = [*asked.needed, *([asked.judging.by] if asked.judging.by is not None else [])]
        if missing := [name for name in needed if name not in table.column_names]:
            raise ConfigError(_no_column(missing[0], table.column_names))
        for begin in range(0, len(table), PIECE_ROWS):
            piece = table.slice(begin, PIECE_ROWS)
            piece = piece.append_column(ROW, pa.array(range(row, row + len(piece)), pa.int64()))
            row += len(piece)
            judged = judge_rows(predictors, piece, asked.judging, asked.decoding)
            bad = Tally()
            for one in judged.predicted.refused:
                bad.add("test", BadRow(IN_MEMORY, piece[ROW][one.place].as_py(), one.reason, one.code))
            num_truncated = judged.predicted.num_truncated
            done = Done(0, 0, num_truncated=num_truncated, judged=judged.table, tally=bad.report())
            found.take(IN_MEMORY, 0, done)
    _check_rows(asked, found)


def _no_column(name: str, known: list[str]) -> str:
    return f"the data has no column {name!r}; it has {', '.join(map(repr, known))}{did_you_mean(name, known)}"


def _check_rows(asked: _Asked, found: _Found) -> None:
    """Raises DataError when too many rows can't be used, or none is left."""
    num_refused = found.tally.count()
    num_rows = found.totals.totals[0].num_rows
    counts = RowCounts(read=num_rows + num_refused, quarantined=num_refused)
    check_shares(asked.path, [counts], 1.0, asked.config.data.max_quarantined, found.tally.summary())
    if not num_rows:
        raise DataError(f"{asked.path} has no row that can be used", FailureCode.BAD_ROW)


def _threshold(asked: _Asked, card: ModelCard, task: Task) -> float | tuple[float, ...] | None:
    """That of one of the models; each has its own, unless one was given."""
    if not uses_threshold(task):
        return None
    return card.decoding(Decoding(threshold=asked.judging.threshold), task).threshold


def _told(asked: _Asked, found: _Found, predictions: Predictions | None) -> DataEvaluation:
    totals = found.totals
    metrics = [one.metrics() for one in totals.totals]
    evaluations = [
        Evaluation(card.folder, asked.path, card.step, one.num_rows, of.values, _threshold(asked, card, task))
        for card, task, one, of in zip(asked.cards, asked.tasks, totals.totals, metrics, strict=True)
    ]
    notes = metrics[0].notes
    if totals.slices is not None and totals.slices.has_too_many:
        notes += (f"{asked.judging.by} has more values than are told apart; those that came late are among the others",)
    return DataEvaluation(
        **vars(evaluations[0]),
        tables=metrics[0].tables,
        notes=notes,
        num_refused=found.tally.count(),
        reasons=found.tally.summary(),
        num_truncated=found.num_truncated,
        by=asked.judging.by,
        slices=[] if totals.slices is None else totals.slices.found(),
        worst=totals.worst.found(),
        other=evaluations[1] if len(evaluations) > 1 else None,
        differences=[] if totals.pairs is None else totals.pairs.differences(),
        predictions=predictions,
    )


def uses_threshold(task: Task) -> bool:
    """Whether a model gives the labels whose probability is above a threshold."""
    return isinstance(task, Predicting) and task.uses_threshold


def run_of(card: ModelCard) -> Storage | None:
    """The run whose best model a card is of; None: an export, or a best/ without its run."""
    parent, name = Storage(card.folder).place()
    run = Storage(parent or "/")
    return run if name == BEST and run.exists(CONFIG) else None


def _record(card: ModelCard, path: str, metrics: Metrics) -> None:
    """Append a line to the run's evals.jsonl, as an evaluation by its worker group does."""
    run = run_of(card)
    if run is None:
        return
    facts = read_facts(card)
    notes = {"notes": list(metrics.notes)} if metrics.notes else {}
    place = {"step": card.step, "epoch": facts.get("epoch"), "split": path, "time": time.time(), "attempt": 0}
    try:
        writer = JsonlWriter(run, EVALS)
        writer.write({**place, **metrics.values, **notes, "tables": metrics.tables})
        writer.close()
    except OSError as error:
        raise cannot_prepare(f"can't write {run.path_of(EVALS)}", error) from error


def read_facts(card: ModelCard) -> dict[str, Any]:
    """The contents of the model's raytrain.json."""
    return dict(Storage(card.folder).read_json("raytrain.json"))
