"""A trained model in the memory of this process: `raytrain.load`.

Importing this module is cheap: torch is imported when a model is loaded.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raytrain.errors import ConfigError, DataError, FailureCode, counted

if TYPE_CHECKING:
    import pyarrow as pa

    from raytrain.inference.predictor import Predictor

AnyPath = str | os.PathLike[str]
MOST_LABELS = 10  # that repr names


class LoadedModel:
    """A trained model in memory: `model = raytrain.load("runs/reviews")`, then `model("a fine film")`."""

    def __init__(self, predictor: "Predictor"):
        self._predictor = predictor

    def __repr__(self) -> str:
        """The model, its task, its labels and where it computes."""
        asked = self._predictor
        labels = ", ".join(map(repr, self.labels[:MOST_LABELS])) + ", ..." * (len(self.labels) > MOST_LABELS)
        told = f", labels: {labels}" if self.labels else ""
        return f"<LoadedModel {asked.card.folder}: {asked.config.task.kind}{told}, on {asked.device}>"

    @property
    def labels(self) -> list[str]:
        """The labels, or tags, in the order of their ids; empty for a task that has none."""
        return list(self._predictor.card.state.get("labels", []))

    @property
    def max_length(self) -> int:
        """Tokens at which an input is cut, as in training."""
        return self._predictor.config.data.max_length

    def __call__(self, texts: Any, **options: Any) -> Any:
        """The prediction for one text, a dict, or for a list of them, a list of dicts; options as for `predict`."""
        if isinstance(texts, (str, Mapping)):
            return self.predict([texts], **options)[0]
        return self.predict(texts, **options)

    def predict(
        self,
        data: Any,
        *,
        probabilities: bool = False,
        threshold: float | None = None,
        embeddings: bool = False,
        **generation: Any,
    ) -> Any:
        """Predict rows that are in memory. For files, and on a cluster: `raytrain.predict_files`.

        Args:
            data: Texts (for a model that tags words also lists of words), images (of Pillow, arrays of uint8, bytes of
                files, or paths), a list of dicts with the columns that the
                model was trained on, a pandas DataFrame or an Arrow table.
            probabilities: Give the probability of each label too.
            threshold: With several labels per row, the probability from which on a label is given; None: the one that
                `raytrain eval --tune-threshold` has chosen for the model, else 0.5.
            embeddings: Instead of labels, give the mean of the encoder's last hidden states as a vector.
            generation: Of a language model: `max_new_tokens`, by which it continues each text at most; `temperature`,
                0 for the most probable token; `seed`.

        Returns:
            For texts and dicts a list of dicts with the predictions; for a DataFrame or an Arrow table the same with
            their columns added.

        Raises:
            ConfigError: A column is missing, or the model can't do what is asked.
            DataError: A row can't be used; nothing is returned, so that no row is missed.
        """
        from raytrain.inference.predictor import output_columns
        from raytrain.tasks.predicting import Decoding

        asked = self._predictor
        decoding = asked.card.decoding(Decoding(probabilities, threshold, **generation), asked.task)
        rows, kind = _rows_of(data, asked.task)
        _check_columns(rows, asked)
        added = output_columns(asked.task, asked.card, decoding, embeddings=embeddings)
        if kind != "list" and (clash := [name for name in added if name in rows.column_names]):
            raise ConfigError(f"the data has a column {clash[0]!r} already, which the prediction would add: rename it")
        found = asked.predict_rows(rows, decoding, embeddings=embeddings)
        if found.refused:
            first = found.refused[0]
            raise DataError(
                f"data[{first.place}]: {first.reason} ({counted(len(found.refused), 'row')} of {len(rows):,} can't be "
                "used). Leave such rows out, or predict a file with raytrain.predict_files(model, source, out), which "
                "quarantines them",
                FailureCode.BAD_ROW,
            )
        if kind == "list":
            return found.table.to_pylist()
        if kind == "frame":
            return data.assign(**{name: found.table[name].to_pylist() for name in found.table.column_names})
        for name in found.table.column_names:
            data = data.append_column(name, found.table[name])
        return data


def load(model: AnyPath, *, device: str | None = None) -> LoadedModel:
    """Load a trained model to predict with.

    Args:
        model: A run's folder or its name, a sweep's folder (its best trial), or a best/ folder; local or a URI.
        device: As torch names it, such as cuda:1; None: a GPU if there is one.

    Raises:
        ConfigError: There is no such model, or a newer raytrain has written it.
        CheckpointError: A file of the model is missing or was changed.
    """
    from raytrain.inference.card import find_model, read_card
    from raytrain.inference.predictor import Predictor

    return LoadedModel(Predictor.load(read_card(find_model(os.fspath(model))), device=device))


def _check_columns(rows: "pa.Table", asked: "Predictor") -> None:
    from raytrain.inference.texts import needed_columns, takes_texts

    missing = [name for name in needed_columns(asked.task, rows.column_names) if name not in rows.column_names]
    if missing and not takes_texts(asked.task, rows.column_names):
        has = ", ".join(map(repr, rows.column_names)) or "none"
        raise ConfigError(f"the data has no column {missing[0]!r}, which the model was trained on; it has {has}")


def _rows_of(data: Any, task: Any) -> "tuple[pa.Table, str]":
    """(rows, what they were: list, frame or table). Raises ConfigError, and DataError for a text that is none."""
    import pyarrow as pa

    if isinstance(data, pa.Table):
        return data, "table"
    if type(data).__module__.partition(".")[0] == "pandas":
        import pandas as pd

        if isinstance(data, pd.DataFrame):
            names = [name for name in data.columns if isinstance(name, str)]
            return pa.table({name: _column(data[name].tolist()) for name in names}), "frame"
        data = data.tolist()  # a series
    if isinstance(data, (str, bytes)) or not isinstance(data, Sequence):
        raise ConfigError(
            f"data is a list of texts, a list of dicts, a pandas DataFrame or an Arrow table, not "
            f"{type(data).__name__}; for files call raytrain.predict_files(model, source, out)"
        )
    if any(isinstance(row, Mapping) for row in data):
        rows = [dict(row) if isinstance(row, Mapping) else {} for row in data]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: _column([row.get(name) for row in rows]) for name in names}), "list"
    words = task.word_columns()
    column = (task.input_columns() or ["text"])[0]
    if (words or task.stand_ins()) and all(isinstance(row, str) for row in data):
        column = "text"  # its words are found, or it is a question
    values = [task.value_from_python(value) for value in data]
    return pa.table({column: _column(values)}), "list"


def _column(values: list[Any]) -> "pa.Array":
    import numpy as np

    from raytrain.data.readers.base import as_column
    from raytrain.tasks.nested import HALF_CHARACTER, is_unicode, texts_in

    plain = [None if isinstance(value, float) and value != value else value for value in values]  # pandas' missing
    plain = [value.tolist() if isinstance(value, np.ndarray | np.generic) else value for value in plain]
    try:
        return as_column(plain)
    except UnicodeEncodeError:
        bad = next((place for place, value in enumerate(plain) if not all(map(is_unicode, texts_in(value)))), 0)
        raise DataError(f"data[{bad}]: {HALF_CHARACTER}", FailureCode.BAD_ROW) from None
