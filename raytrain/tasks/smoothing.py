"""The loss that is trained, where it is another than the one that is reported."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from raytrain.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class Smoothed(Protocol):
    """A task whose loss is a cross-entropy."""

    def smoothed_loss_sum(self, model: "nn.Module", batch: "dict[str, Tensor]", smoothing: float) -> "Tensor":
        """`Task.loss_sum`, with this share of each target's probability spread evenly over all classes."""


def training_loss(task: Task, smoothing: float) -> "Callable[[nn.Module, dict[str, Tensor]], Tensor]":
    """What the sum of the loss of a micro-batch is in training. `smoothing`: training.label_smoothing."""
    if not smoothing:
        return task.loss_sum
    assert isinstance(task, Smoothed), "the config refuses label smoothing for other tasks"
    return functools.partial(task.smoothed_loss_sum, smoothing=smoothing)
