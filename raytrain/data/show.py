"""Prepared samples in a form that a person can read."""

from typing import Any

from raytrain.config import ModelConfig
from raytrain.data.prepared import PreparedStore
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks.base import IGNORED


def decode_samples(store: PreparedStore, model: ModelConfig, split: str, num_samples: int) -> list[dict[str, Any]]:
    """The first samples of a split: the text that their tokens give back, the tokens, and the labels by name; other
    columns as they are stored.

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
            ids, labels = row.pop("input_ids"), row.pop("labels", None)
            tokens = tokenizer.convert_ids_to_tokens(ids)
            shown = {"text": tokenizer.decode(ids, skip_special_tokens=True), "tokens": tokens}
            samples.append({**shown, "labels": _named(labels, store.manifest.labels, tokens), **row})
    return samples


def _named(labels: Any, names: list[str], tokens: list[str]) -> Any:
    """Label ids as names: one a sample, 0 or 1 for each name (multi_label, floats), or one a token."""
    if not isinstance(labels, list):
        return None if labels is None else names[labels]
    if labels and isinstance(labels[0], float):
        return [name for name, is_on in zip(names, labels, strict=True) if is_on]
    return [f"{token}/{names[i]}" for token, i in zip(tokens, labels, strict=True) if i != IGNORED]
