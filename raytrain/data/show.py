"""Prepared samples in a form that people can read."""

from typing import Any

from raytrain.config import RunConfig
from raytrain.data.prepared import PreparedStore
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks import make_task


def decode_samples(store: PreparedStore, config: RunConfig, split: str, num_samples: int) -> list[dict[str, Any]]:
    """The first samples of a split, as the task describes them.

    Raises ConfigError when the split was not prepared.
    """
    if not store.has_split(split):
        raise ConfigError(f"there is no split {split!r}; allowed: {', '.join(store.manifest.splits)}")
    task, tokenizer = make_task(config.task, config.data.max_length), load_tokenizer(config.model)
    samples: list[dict[str, Any]] = []
    for row_group in range(len(store.row_group_starts(split)) - 1):
        for row in store.read_row_group(split, row_group).to_pylist():
            if len(samples) == num_samples:
                return samples
            samples.append(task.describe(row, tokenizer, store.manifest.task_state))
    return samples
