"""Prepared samples, and the source rows that they are made of, in a form that people can read."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config import SPLITS, RunConfig
from raytrain.data.listing import list_split
from raytrain.data.prepared import PreparedStore
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, ReadTask
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks import make_task

MOST_CHARACTERS = 200  # of a text in a list of pairs


def decode_samples(store: PreparedStore, config: RunConfig, split: str, num_samples: int) -> list[dict[str, Any]]:
    """The first samples of a split, as the task describes them.

    Raises ConfigError when the split was not prepared.
    """
    if not store.has_split(split):
        raise ConfigError(f"there is no split {split!r}; allowed: {', '.join(store.manifest.splits)}")
    count = min(num_samples, store.manifest.splits[split].num_samples)
    return [decode_sample(store, config, split, sample) for sample in range(count)]


def decode_sample(store: PreparedStore, config: RunConfig, split: str, sample: int) -> dict[str, Any]:
    """A sample as the task describes it. `sample`: its id, which the split has."""
    task, tokenizer = make_task(config.task, config.data.max_length), load_tokenizer(config.model)
    starts = store.row_group_starts(split)
    group = int(np.searchsorted(starts, sample, side="right")) - 1
    row = store.read_row_group(split, group).slice(sample - int(starts[group]), 1).to_pylist()[0]
    return task.describe(row, tokenizer, store.manifest.task_state)


def source_texts(config: RunConfig, places: Collection[str]) -> dict[str, str]:
    """The texts by which rows are compared, cut to MOST_CHARACTERS. Reads each file up to the last of its rows.

    Args:
        places: FILE:ROW, as a prepared store names them.

    Returns:
        By place. Rows that are not there any more are left out.
    """
    task = make_task(config.task, config.data.max_length)
    wanted: dict[str, set[int]] = {}
    for place in places:
        path, _, number = place.rpartition(":")
        wanted.setdefault(path, set()).add(int(number))
    texts: dict[str, str] = {}
    for split in SPLITS:
        source = getattr(config.data, split)
        for file in list_split(source, f"data.{split}") if source is not None and source.paths else []:
            rows = wanted.pop(file.path, set())
            for chunk in read_chunks(ReadTask(split, 0, file), task.required_columns()) if rows else []:
                found = [i for i, row in enumerate(chunk.table[ROW].to_pylist()) if row in rows]
                table = chunk.table.take(pa.array(found, pa.int64()))
                for row, text in zip(table[ROW].to_pylist(), task.compared_texts(table), strict=True):
                    texts[f"{file.path}:{row}"] = _cut(" ".join(text.split()))
                    rows.discard(row)
                if not rows:
                    break
    return texts


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
