"""The state that a worker group resumes from."""

from dataclasses import dataclass
from typing import Any

from raytrain.checkpoint.index import RangeIndex
from raytrain.checkpoint.ranges import Files
from raytrain.training.progress import Progress


@dataclass(frozen=True)
class SavedState:
    """The state that a group resumes from: a checkpoint in storage, or a snapshot in memory."""

    source: str
    step: int
    state: dict[str, Any]
    """The contents of state.json."""
    files: Files
    """The safetensors files with the workers' ranges."""
    index: RangeIndex
    """What is in them."""


def progress_of(state: dict[str, Any]) -> Progress:
    """The progress that a state.json records."""
    return Progress.from_dict({k: v for k, v in state.items() if k in Progress.__dataclass_fields__})
