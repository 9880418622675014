"""Errors of a task class of the user's own, told as its mistakes: which method failed, of what, at which line."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from raytrain.errors import ConfigError, ForeignMessage, RaytrainError, first_line, says
from raytrain.tasks.base import Task

BEFORE_TRAINING = (
    "declared_state",
    "survey",
    "state_from",
    "remarks",
    "assumed_state",
    "input_columns",
    "compared_texts",
    "target_columns",
    "text_columns",
    "word_columns",
    "check_inputs",
    "check_targets",
    "check_before_survey",
    "encode_inputs",
    "encode_targets",
    "sizes",
    "count_labels",
    "describe",
    "build_model",
    "load_model",
)
"""Methods that are called before the first step. An error in the others is one of a worker that trains."""
PREDICTING = ("output_columns", "collate_inputs", "infer", "decode")
"""Methods that are called when a trained model is asked."""


def guard(task: Task, target: str, file: str | None) -> Task:
    """Make the methods of BEFORE_TRAINING and PREDICTING raise a ConfigError for whatever the user's code raises
    in them.

    Errors of raytrain pass, and so does a lack of memory, after which a worker group may be tried again.

    Args:
        file: The user's file, whose lines are named.
    """
    for name in (*BEFORE_TRAINING, *(name for name in PREDICTING if hasattr(task, name))):
        object.__setattr__(task, name, _guarded(getattr(task, name), name, target, file))  # it may be frozen
    return task


def _guarded(method: Callable[..., Any], name: str, target: str, file: str | None) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except RaytrainError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(f"task.target {target}: {name} failed: {told(error, file)}") from error

    return call


def told(error: BaseException, file: str | None) -> str:
    """An error of the user's code in one line, with the innermost place in it.

    Args:
        file: The user's file; files beside it are taken for the user's too, but not installed packages.
    """
    text = first_line(str(error))
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = _place_in(error, file)
    return f"{what} ({place})" if place else what


def _place_in(error: BaseException, file: str | None) -> str | None:
    if file is None:
        return None
    folder = os.path.dirname(os.path.abspath(file)) + os.sep
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = os.path.abspath(frame.filename)
        is_beside = path.startswith(folder) and f"{os.sep}site-packages{os.sep}" not in path
        if path == os.path.abspath(file) or is_beside:
            return f"{frame.filename}, line {frame.lineno}"
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there was no memory, whatever the code that it was raised in."""
    torch = sys.modules.get("torch")
    is_torchs = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return is_torchs or isinstance(error, MemoryError) or says(error, ForeignMessage.NO_CPU_MEMORY)
