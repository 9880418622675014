"""A model that is served: its card, its queue, and what is told about it."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from raytrain.config import RunConfig
from raytrain.inference.card import ModelCard, find_model, read_card
from raytrain.inference.completing import Asked, Piece
from raytrain.inference.predictor import predicting_task
from raytrain.serving.batcher import Backend, Batcher
from raytrain.serving.metrics import ServeMetrics
from raytrain.storage import Storage
from raytrain.tasks.base import Task
from raytrain.training.export import check_exported

Speak = Callable[[Asked], AsyncGenerator[Piece]]


@dataclass(frozen=True)
class Model:
    """A trained model, checked."""

    card: ModelCard
    overrides: tuple[str, ...]
    config: RunConfig
    task: Task

    @property
    def hash(self) -> str:
        """Of the hashes of all its files, and of its threshold: the same for models that answer alike."""
        return self.card.hash[:16]

    @property
    def joins(self) -> bool:
        """Whether a row is answered the same whatever rows are beside it."""
        return not getattr(self.config.task, "document_context", False)

    def about(self) -> dict[str, Any]:
        """For GET /model. Has no path."""
        labels = self.card.state.get("labels")
        return {
            "name": self.card.name,
            "step": self.card.step,
            "hash": self.hash,
            "task": self.config.task.kind,
            "format": self.card.format,
            "columns": self.task.input_columns(),
            "max_length": self.config.data.max_length,
            **({} if labels is None else {"labels": list(labels)}),
            **({} if self.card.threshold is None else {"threshold": self.card.threshold}),
        }


def check_model(model: str, overrides: tuple[str, ...]) -> Model:
    """The model that a user names; its files are compared with their hashes when they are on this machine.

    Raises ConfigError or CheckpointError when it can't be served.
    """
    card = read_card(find_model(model))
    config = card.config(overrides)
    task = predicting_task(config)
    folder = Storage(card.folder).local_path()
    if folder is not None:
        check_exported(folder, sorted(card.files), {"files": card.files})
    return Model(card, overrides, config, task)


class Served:
    """A model with its queue."""

    def __init__(self, model: Model, backend: Backend, metrics: ServeMetrics, max_queue: int, speak: Speak):
        """
        Args:
            backend: See `Batcher`.
            speak: Has a replica generate a text, piece by piece. Raises ReplicaLostError, or any error of the model.
        """
        self.model, self.speak = model, speak
        self.batcher = Batcher(backend, metrics, max_queue=max_queue, joins=model.joins)
        self.num_replicas = 1
        self.num_requests = 0

    def set_replicas(self, number: int) -> None:
        """How many replicas there are now."""
        self.num_replicas = number
        self.batcher.set_replicas(number)
