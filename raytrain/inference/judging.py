"""The rows of a piece beside their targets: what a worker of an evaluation finds out about each.

The driver adds these tables up (see `totals`), so that neither predictions nor texts are ever gathered whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.readers.base import ROW
from raytrain.inference.card import ModelCard
from raytrain.inference.predictor import Predicted, Predictor, Refused
from raytrain.tasks.predicting import Decoding, Judged, Predicting

WORST = 20  # rows with the largest loss that are kept, of a piece and of all
MOST_TEXT = 2000  # characters of such a row's text
LOSS = "loss"
JUDGED_COLUMNS = ("true_label", "true_labels", "true_tags", LOSS)
"""Names of columns that a file of predictions has beside the answers, with rows that were judged."""
BY, TEXT, TRUE, PREDICTED = "by", "text", "true", "predicted"
NULL = "(null)"


@dataclass(frozen=True)
class Judging:
    """How the answers for a source are compared with its targets."""

    others: tuple[ModelCard, ...] = ()
    """Further models, which answer for the same rows."""
    by: str | None = None
    """A column of the source whose values divide the rows into slices."""
    probabilities: bool = False
    """Whether the probabilities of all labels are needed."""
    threshold: float | None = None
    """That of the further models; None: their own."""

    def fingerprint(self) -> list[Any]:
        """What decides about what is judged; JSON-able."""
        others = [[other.files, other.step, other.raw["data"], other.threshold] for other in self.others]
        return [self.by, self.probabilities, self.threshold, others]


@dataclass(frozen=True)
class JudgedRows:
    """What is known of the rows of a piece."""

    table: pa.Table
    """A line for each row that every model can judge: ROW; for each model, by its number, losses, weights, predictions
    and targets; slices; and for those with the largest losses their texts."""
    predicted: Predicted
    """The answers of the first model for the same rows; with the rows that can't be used."""
    added: pa.Table
    """Columns that a file of predictions has beside the answers: the true values, and the mean loss of the targets."""


def judge_rows(predictors: Sequence[Predictor], rows: pa.Table, how: Judging, decoding: Decoding) -> JudgedRows:
    """Judge source rows, which have the columns of the task's inputs and targets, and ROW.

    A row that one model can't judge, such as one whose label it does not know, is refused for all.
    """
    decodings = [decoding, *(replace(decoding, threshold=how.threshold) for _ in predictors[1:])]
    pairs = list(zip(predictors, decodings, strict=True))
    found = [one.judge_rows(rows, decoded) for one, decoded in pairs]
    refused: dict[int, Refused] = {}
    for number, (predicted, _) in enumerate(found):
        for one in predicted.refused:
            reason = one.reason if not number else f"{one.reason} (of {predictors[number].card.folder})"
            refused.setdefault(one.place, replace(one, reason=reason))
    usable = np.setdiff1d(np.arange(len(rows)), list(refused))
    if any(len(predicted.table) != len(usable) for predicted, _ in found):
        rows = rows.take(pa.array(usable))
        found = [one.judge_rows(rows, decoded) for one, decoded in pairs]
        good = rows
    else:
        good = rows.take(pa.array(usable)) if refused else rows
    first, judged = found[0]
    columns: dict[str, Any] = {ROW: good[ROW]}
    for number, (_, of_model) in enumerate(found):
        columns |= _columns_of(number, of_model)
    if how.by is not None:
        columns[BY] = _slices(good[how.by])
    if how.probabilities and judged.probabilities is not None:
        columns["probabilities"] = _lists(list(judged.probabilities))
    losses = mean_losses(judged.losses, judged.weights)
    columns |= _worst(good, first.table, judged, losses, predictors[0])
    added = {} if judged.true is None else dict(zip(judged.true.column_names, judged.true.columns, strict=True))
    if LOSS not in first.table.column_names:  # a language model tells it anyway
        added[LOSS] = pa.array(losses)
    ordered = sorted(refused.values(), key=lambda one: one.place)
    return JudgedRows(pa.table(columns), replace(first, refused=ordered), pa.table(added))


def mean_losses(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The loss of a row per target, 0 for one without targets; shape (num_rows,)."""
    return np.divide(losses, weights, out=np.zeros(len(losses)), where=weights > 0)


def _columns_of(number: int, judged: Judged) -> dict[str, pa.Array]:
    return {
        f"losses_{number}": pa.array(judged.losses),
        f"weights_{number}": pa.array(judged.weights),
        **_packed(f"predictions_{number}", judged.predictions),
        **_packed(f"targets_{number}", judged.targets),
    }


def judged_of(table: pa.Table, number: int) -> Judged:
    """What `judge_rows` has said about a model in its table."""
    losses, weights = (table[f"{name}_{number}"].to_numpy() for name in ("losses", "weights"))
    predictions, targets = (_unpacked(table, f"{name}_{number}") for name in ("predictions", "targets"))
    return Judged(predictions, targets, losses, weights)


def _packed(name: str, arrays: list[np.ndarray]) -> dict[str, pa.Array]:
    """Arrays as a column of lists; of several dimensions with a column of their shapes."""
    columns = {name: _lists([one.reshape(-1) for one in arrays])}
    if any(one.ndim != 1 for one in arrays):
        columns[f"{name}.shape"] = pa.array([list(one.shape) for one in arrays], pa.list_(pa.int64()))
    return columns


def _lists(arrays: list[np.ndarray]) -> pa.Array:
    """Arrays of one dimension as a column of lists."""
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def _unpacked(table: pa.Table, name: str) -> list[np.ndarray]:
    arrays = unlisted(table[name])
    if f"{name}.shape" not in table.column_names:
        return arrays
    return [one.reshape(shape) for one, shape in zip(arrays, table[f"{name}.shape"].to_pylist(), strict=True)]


def unlisted(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of lists of numbers as arrays."""
    lists = column.combine_chunks()
    ends = np.cumsum([len(one) for one in lists])
    return np.split(lists.flatten().to_numpy(zero_copy_only=False), ends[:-1]) if len(lists) else []


def _slices(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column as text."""
    return pa.array([NULL if value is None else str(value) for value in column.to_pylist()], pa.string())


def _worst(
    rows: pa.Table, answers: pa.Table, judged: Judged, losses: np.ndarray, predictor: Predictor
) -> dict[str, pa.Array]:
    """The texts, true values and answers of the rows with the largest losses; null for the others, and for texts that
    are their own targets."""
    names = TEXT, TRUE, PREDICTED
    found: dict[str, list[str | None]] = {name: [None] * len(rows) for name in names}
    order = np.argsort(-np.where(np.isfinite(losses), losses, np.inf), kind="stable")[:WORST]
    chosen = rows.take(pa.array(order))
    assert isinstance(predictor.task, Predicting)
    texts = predictor.task.shown_texts(chosen) or predictor.task.compared_texts(chosen)
    cells: tuple[Iterable[str | None], ...] = (texts, [None] * len(order), [None] * len(order))
    if answers.column_names[0] != LOSS:  # a language model tells nothing else
        true = chosen.select(predictor.task.target_columns()) if judged.true is None else judged.true.take(order)
        cells = texts, _first_column(true), _first_column(answers.take(order))
    for name, values in zip(names, cells, strict=True):
        for place, value in zip(order.tolist(), values, strict=True):
            found[name][place] = None if value is None else value[:MOST_TEXT]
    return {name: pa.array(values, pa.string()) for name, values in found.items()}


def _first_column(table: pa.Table) -> Iterator[str]:
    """The values of the first column as text; lists joined."""
    for value in table[0].to_pylist():
        yield " ".join("-" if one is None else str(one) for one in value) if isinstance(value, list) else str(value)
