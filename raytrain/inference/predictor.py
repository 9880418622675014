"""A trained model that answers for rows: the card, the inputs as in training, the model, and what its outputs mean."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.data.readers.base import ROW
from raytrain.data.stages.clean import make_cleaner
from raytrain.errors import ConfigError
from raytrain.inference.card import ModelCard
from raytrain.inference.embeddings import EMBEDDING, embed
from raytrain.inference.formats import Format
from raytrain.inference.texts import with_inputs
from raytrain.models.tokenizer import TOKENIZER_FILES, load_tokenizer
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import Batch, Inputs, RowError, Task
from raytrain.tasks.predicting import PLAIN, Decoding, Generating, Predicting
from raytrain.training.export import check_exported

if TYPE_CHECKING:
    from torch import nn

TOKENS_PER_BATCH = 4096  # with padding; more does not make a CPU faster
TOKENS_ON_GPU = 16_384
MOST_SAMPLES_PER_BATCH = 256


@dataclass(frozen=True)
class Refused:
    """A row that has no prediction."""

    place: int
    """Position in the given table, from 0."""
    code: RowError
    reason: str


@dataclass(frozen=True)
class Predicted:
    """The answers for a table of rows."""

    table: pa.Table
    """The columns that the prediction adds, a line for each row that could be used, in their order."""
    refused: list[Refused]
    """The other rows, in their order."""
    num_truncated: int
    """Rows that were longer than max_length, or that left no room for what is generated."""


def predicting_task(config: RunConfig) -> Task:
    """The task of a model. Raises ConfigError when its rows can't be predicted."""
    task = make_task(config.task, config.data.max_length)
    if not isinstance(task, Predicting):
        raise ConfigError(
            f"{getattr(config.task, 'target', config.task.kind)} can't answer for rows without targets: let the class "
            "inherit from raytrain.tasks.Predicting too, and define output_columns, collate_inputs, infer and decode"
        )
    return task


def output_columns(task: Task, card: ModelCard, decoding: Decoding, *, embeddings: bool) -> list[str]:
    """Names of the columns that a prediction adds."""
    if embeddings and card.format != Format.HF:
        raise ConfigError(
            f"{card.folder} is an ONNX graph, which gives logits and no embeddings: use the trained model"
        )
    if embeddings and decoding.max_new_tokens:
        raise ConfigError("embeddings and max_new_tokens are two things: ask for them one after the other")
    if embeddings:
        return [EMBEDDING]
    assert isinstance(task, Predicting)
    if not new_tokens(task, decoding):
        return task.output_columns(card.state, decoding)
    if not isinstance(task, Generating):
        raise ConfigError(
            f"max_new_tokens is for a model that generates text, and {card.folder} was trained with task.kind="
            f"{card.raw['task']['kind']}: leave it out"
        )
    if card.format != "hf":
        raise ConfigError(f"{card.folder} is an ONNX graph, which generates no text: use the trained model")
    return [*task.output_columns(card.state, decoding), task.generated_column]


def new_tokens(task: Task, decoding: Decoding) -> int:
    """Tokens by which each row is continued at most."""
    return decoding.max_new_tokens or (task.default_new_tokens if isinstance(task, Generating) else 0)


class Predictor:
    """A model in memory. `Predictor.load` makes one."""

    def __init__(self, card: ModelCard, config: RunConfig, tokenizer: Any, model: "nn.Module"):
        """`config`: that of `card.config()`. `model`: fp32, on its device."""
        self.card, self.config = card, config
        self.task, self.tokenizer, self.model = predicting_task(config), tokenizer, model.eval()
        self._cleaner = make_cleaner(config.data.clean, self.task)

    @classmethod
    def load(
        cls, card: ModelCard, overrides: Sequence[str] = (), device: str | None = None, copied: str | None = None
    ) -> "Predictor":
        """The model of a card.

        Args:
            overrides: As for `ModelCard.config`.
            device: As torch names it; None: a GPU if there is one.
            copied: A folder of this machine with the model's files, which is left as it is; None: they are copied
                where they are on an object store.

        Raises:
            ConfigError: The model can't be loaded, or its task has no predictions.
            CheckpointError: A file is not the one that was written.
        """
        import torch

        config, stored = card.config(overrides), Storage(card.folder)
        task = predicting_task(config)
        folder = copied or retrying(lambda: stored.local_copy(""), f"reading {card.folder}")
        try:
            check_exported(folder, sorted(card.files), {"files": card.files})
            model = _with_folder(config, folder)
            built = _loaded(task, card, folder, model, config)
            tokenizer = load_tokenizer(model)
        finally:
            if copied is None and stored.local_path() is None:
                shutil.rmtree(folder, ignore_errors=True)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(card, config, tokenizer, built.to(place))

    @property
    def device(self) -> Any:
        """The torch.device on which the model computes."""
        return getattr(self.model, "device", None) or next(self.model.parameters()).device

    def predict_rows(self, rows: pa.Table, decoding: Decoding = PLAIN, *, embeddings: bool = False) -> Predicted:
        """Answer for source rows, which have at least the task's input columns."""
        refused, inputs, good = self._inputs_of(rows)
        outputs = self.outputs(inputs.table, embeddings=embeddings)
        num_truncated = inputs.num_truncated
        if embeddings:
            table = self._vectors(outputs, inputs, good)
        else:
            assert isinstance(self.task, Predicting)
            table = self.task.decode(outputs, inputs.table, good, self.card.state, decoding)
        if len(table) != len(good):
            raise ConfigError(
                f"{type(self.task).__name__}.decode gave {len(table)} lines for {len(good)} rows: one for each is meant"
            )
        if (most := new_tokens(self.task, decoding)) and not embeddings:
            assert isinstance(self.task, Generating)
            decoding = replace(decoding, max_new_tokens=most)
            numbers = good[ROW].to_numpy() if ROW in good.column_names else np.arange(len(good))
            continued = self.task.generate(self.model, inputs.table, numbers, self.tokenizer, decoding)
            table = table.append_column(self.task.generated_column, pa.array(continued.texts, pa.string()))
            num_truncated += continued.num_cut
        return Predicted(table, refused, num_truncated)

    def samples_of(self, rows: pa.Table) -> pa.Table:
        """The samples of those source rows that can be used."""
        return self._inputs_of(rows)[1].table

    def batch_of(self, samples: pa.Table) -> Batch:
        """Samples as a padded micro-batch."""
        assert isinstance(self.task, Predicting)
        return self.task.collate_inputs(samples, 0 if self.tokenizer is None else self.tokenizer.pad_token_id)

    def outputs(self, samples: pa.Table, *, embeddings: bool = False) -> list[np.ndarray]:
        """What the model says of each sample of `encode_inputs`, in their order, such as its logits."""
        import torch

        assert isinstance(self.task, Predicting)
        device: torch.device = self.device
        found: list[np.ndarray] = [np.zeros(0)] * len(samples)
        sizes = self.task.sizes(samples)
        groups = batches_by_size(sizes, TOKENS_ON_GPU if device.type == "cuda" else TOKENS_PER_BATCH)
        with torch.inference_mode():
            for places in groups:
                arrays = self.batch_of(samples.take(pa.array(places)))
                batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
                answers = embed(self.model, batch) if embeddings else self.task.infer(self.model, batch)
                for place, answer in zip(places, answers, strict=True):
                    found[place] = answer
        return found

    def _inputs_of(self, rows: pa.Table) -> tuple[list[Refused], Inputs, pa.Table]:
        """(rows that can't be used, samples of the others, those others as they are in the source)."""
        rows = with_inputs(rows, self.task)
        place = pa.array(range(len(rows)), pa.int64())
        assert isinstance(self.task, Predicting)
        names = dict.fromkeys([*self.task.input_columns(), *self.task.also_read(), "document"])
        inputs = rows.select([name for name in names if name in rows.column_names]).append_column(ROW, place)
        refused = []
        if self._cleaner is not None:
            cleaned = self._cleaner.clean(inputs, "test")
            refused = [Refused(row, RowError.CUSTOM, reason) for row, reason, _ in cleaned.failed]
            inputs = cleaned.table
        places = inputs[ROW].to_pylist()
        rejected: dict[int, Refused] = {}
        for one in self.task.check_inputs(inputs):
            rejected.setdefault(one.row, Refused(places[one.row], one.code, one.reason))
        if rejected:
            inputs = inputs.filter(pa.array([row not in rejected for row in range(len(inputs))], pa.bool_()))
        refused += rejected.values()
        encoded = self.task.encode_inputs(inputs, self.tokenizer)
        if encoded.rejected:
            places = inputs[ROW].to_pylist()
            refused += [Refused(places[one.row], one.code, one.reason) for one in encoded.rejected]
            late = {one.row for one in encoded.rejected}
            inputs = inputs.filter(pa.array([row not in late for row in range(len(inputs))], pa.bool_()))
        good = rows.take(inputs[ROW]) if refused else rows
        return sorted(refused, key=lambda one: one.place), encoded, good

    def _vectors(self, outputs: list[np.ndarray], inputs: Inputs, good: pa.Table) -> pa.Table:
        if len(outputs) != len(good):
            raise ConfigError(
                "embeddings are those of samples, and with task.document_context a sample holds several rows: there is "
                "no vector for a row"
            )
        width = len(outputs[0]) if outputs else 0
        flat = pa.array(np.concatenate(outputs) if outputs else np.zeros(0, np.float32), pa.float32())
        return pa.table({EMBEDDING: pa.FixedSizeListArray.from_arrays(flat, width) if width else pa.nulls(0)})


def batches_by_size(sizes: np.ndarray, most_tokens: int) -> Iterator[np.ndarray]:
    """Places of samples of similar size, the longest first, so that little of a batch is padding.

    Args:
        sizes: In tokens, shape (num_samples,).
        most_tokens: Of a batch, with padding, unless a single sample has more.
    """
    order, begin = np.argsort(-sizes, kind="stable"), 0
    while begin < len(order):
        longest = max(1, int(sizes[order[begin]]))
        count = max(1, min(MOST_SAMPLES_PER_BATCH, most_tokens // longest))
        yield order[begin : begin + count]
        begin += count


def _loaded(task: Task, card: ModelCard, folder: str, model: Any, config: RunConfig) -> Any:
    """The model in a folder; `model`: the section that names it."""
    if card.format == Format.HF:
        return task.load_model(folder, model, card.state, config.training)
    from transformers import AutoConfig

    from raytrain.inference.onnx_model import GRAPH, OnnxModel

    return OnnxModel(f"{folder}/{GRAPH}", AutoConfig.from_pretrained(folder))


def _with_folder(config: RunConfig, folder: str) -> Any:
    """The section on the model, with the files of best/ in place of those that the training started from. Of an
    adapter's base only the tokenizer is there."""
    if config.task.kind != "python" and config.model.adapter is None:
        return config.model.model_copy(update={"path": folder})
    has_tokenizer = any(os.path.exists(os.path.join(folder, name)) for name in TOKENIZER_FILES)
    return config.model.model_copy(update={"tokenizer": folder if has_tokenizer else None})
