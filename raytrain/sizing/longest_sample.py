"""Whether a model can run on the longest sample: too few positions, or shapes that do not fit. Needs no weights."""

from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.config import RunConfig
from raytrain.errors import ConfigError, first_line
from raytrain.tasks.base import Task, TaskState
from raytrain.tasks.text import PretrainedTask, TextTask

if TYPE_CHECKING:
    from torch import Tensor, nn

SHORT = 8  # tokens that any model has positions for
MAX_PARAMETERS_TO_RUN = 30_000_000  # a larger model is not built with weights, only to confirm an error


def check_longest_sample(config: RunConfig, task: Task, state: TaskState, model: "nn.Module", tokenizer: Any) -> None:
    """Raises ConfigError when the model can't run on a sample of data.max_length tokens: it names the largest length
    that the model can run on, or what is wrong with `model.config` at any length. Also when it can't run on an image.
    A user's own tasks are not checked, as the sizes of their inputs are not known.

    Args:
        model: Built on the meta device in a `DryRun`.
    """
    if isinstance(task, PretrainedTask) and (inputs := task.example_inputs(tokenizer)) is not None:
        _check_images(model, inputs)
        return
    if not isinstance(task, TextTask) or tokenizer is None or (longest := task.longest_inputs(tokenizer)) is None:
        return
    model.eval()
    width = longest["input_ids"].shape[1]
    if (error := _error_at(model, longest, width)) is None:
        return
    low = min(SHORT, width)
    if (short_error := _error_at(model, longest, low)) is not None:
        if config.model.config is not None:
            _confirm(config, task, state, longest, low, short_error)
        return  # a pretrained model has run before: the error is one of a run without weights
    high = width
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _error_at(model, longest, middle) is None else (low, middle)
    raise ConfigError(
        f"data.max_length {task.max_length} is more than the {low} positions that the model has: "
        f"lower it to at most {low}"
    ) from error


def _check_images(model: "nn.Module", inputs: "dict[str, Tensor]") -> None:
    """Raises ConfigError when the model can't run on images of the size that they are resized to."""
    from raytrain.models.dry_run import UnknownValue, first_error

    model.eval()
    try:
        error = first_error(model, inputs)
    except UnknownValue:
        return
    if error is not None:
        channels, height, width = next(iter(inputs.values())).shape[1:]
        raise ConfigError(
            f"model.image.size: the model can't run on images of {width} x {height} pixels and {channels} channel(s): "
            f"{type(error).__name__}: {first_line(str(error))}. The size and the number of channels of model.image and "
            "those of the model (image_size, num_channels) have to be equal"
        ) from error


def _error_at(model: "nn.Module", longest: dict[str, np.ndarray], width: int) -> Exception | None:
    """What the model raises for samples of this many tokens; None also where that can't be known."""
    from raytrain.models.dry_run import UnknownValue, first_error

    try:
        return first_error(model, _cut(longest, width))
    except UnknownValue:
        return None


def _cut(longest: dict[str, np.ndarray], width: int) -> "dict[str, Tensor]":
    """The first tokens and the last one, which may be the end of the text that a head looks for."""
    import torch

    return {
        name: torch.from_numpy(np.concatenate([array[:, : width - 1], array[:, -1:]], axis=1))
        for name, array in longest.items()
    }


def _confirm(
    config: RunConfig, task: TextTask, state: TaskState, longest: dict[str, np.ndarray], width: int, error: Exception
) -> None:
    """Raises ConfigError when a new model fails with weights too: some operations differ on the meta device."""
    import torch

    with torch.device("meta"):
        shape = task.build_model(config.model, state, config.training)
    if sum(parameter.numel() for parameter in shape.parameters()) > MAX_PARAMETERS_TO_RUN:
        return
    model = task.build_model(config.model, state, config.training).eval()
    try:
        with torch.no_grad():
            model(**_cut(longest, width))
    except Exception as real:  # whatever a model's code raises for sizes that do not fit
        raise ConfigError(
            f"model.config: a model of these sizes can't run on a text: {type(real).__name__}: "
            f"{first_line(str(real))}. Often the width is not a multiple of the heads, or of twice their number"
        ) from error
