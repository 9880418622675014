"""Prepared samples in a form that a person can read."""

from typing import Any

from raytrain.config import ModelConfig
from raytrain.data.prepared import PreparedStore
from raytrain.errors import ConfigError
from raytrain.tokenizer import load_tokenizer


def decode_samples(store: PreparedStore, model: ModelConfig, split: str, num_samples: int) -> list[dict[str, Any]]:
    """The first samples of a split: their tokens as text, and the task's columns as they are stored.

    Raises ConfigError when the split was not prepared.
    """
    if not store.has_split(split):
        raise ConfigError(f"no split {split!r}; there are: {', '.join(store.manifest.splits)}")
    tokenizer = load_tokenizer(model)
    samples: list[dict[str, Any]] = []
    for row_group in range(len(store.row_group_starts(split)) - 1):
        for row in store.read_row_group(split, row_group).to_pylist():
            if len(samples) == num_samples:
                return samples
            ids = row.pop("input_ids")
            samples.append({"tokens": tokenizer.convert_ids_to_tokens(ids), **row})
    return samples
