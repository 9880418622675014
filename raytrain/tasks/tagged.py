"""Tags of words as answers: the tags of each row, and the entities that they mark, with their characters."""

import itertools

import numpy as np
import pyarrow as pa

from raytrain.tasks.base import TaskState
from raytrain.tasks.entities import EntityCounts, has_entities
from raytrain.tasks.labels import labels_in
from raytrain.tasks.predicting import SOURCE_TEXT, WORD_STARTS_IN_TEXT, Decoding, softmax

TAGS, ENTITIES, PROBABILITIES = "predicted_tags", "predicted_entities", "tag_probabilities"
ENTITY = pa.struct([("type", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("text", pa.string())])


def tag_columns(state: TaskState, decoding: Decoding) -> list[str]:
    """The columns of `decode_tags`."""
    entities = [ENTITIES] if has_entities(labels_in(state)) else []
    return [TAGS, *entities, *([PROBABILITIES] if decoding.probabilities else [])]


def decode_tags(logits: list[np.ndarray], rows: pa.Table, words: str, state: TaskState, decoding: Decoding) -> pa.Table:
    """The answers for rows of words.

    Args:
        logits: For each row those of its words as far as `max_length` went, shape (num_words, num_labels).
        words: The column of the words.
    """
    labels = labels_in(state)
    words_of = rows[words].to_pylist()
    chosen = [row.argmax(-1) if len(row) else np.zeros(0, np.int64) for row in logits]
    missing = [len(row) - len(ids) for row, ids in zip(words_of, chosen, strict=True)]
    tags = [[*(labels[i] for i in ids), *[None] * more] for ids, more in zip(chosen, missing, strict=True)]
    columns = {TAGS: pa.array(tags, pa.list_(pa.string()))}
    if has_entities(labels):
        columns[ENTITIES] = pa.array(_entities(chosen, rows, words_of, labels), pa.list_(ENTITY))
    if decoding.probabilities:
        sure = [softmax(row).max(-1).round(6).tolist() if len(row) else [] for row in logits]
        padded = [[*values, *[None] * more] for values, more in zip(sure, missing, strict=True)]
        columns[PROBABILITIES] = pa.array(padded, pa.list_(pa.float64()))
    return pa.table(columns)


def _entities(
    chosen: list[np.ndarray], rows: pa.Table, words_of: list[list[str]], labels: list[str]
) -> list[list[dict[str, object]]]:
    """The entities of each row. Characters are counted in the text that the words were found in, else in the words
    joined by blanks."""
    in_text = WORD_STARTS_IN_TEXT in rows.column_names
    texts = rows[SOURCE_TEXT].to_pylist() if in_text else [" ".join(words) for words in words_of]
    starts_of = rows[WORD_STARTS_IN_TEXT].to_pylist() if in_text else [_starts(words) for words in words_of]
    found: list[list[dict[str, object]]] = []
    spans_of = EntityCounts(labels).spans(chosen)
    for spans, words, starts, text in zip(spans_of, words_of, starts_of, texts, strict=True):
        places = [(kind, starts[first], starts[last] + len(words[last])) for first, last, kind in spans]
        found.append([{"type": kind, "start": a, "end": b, "text": text[a:b]} for kind, a, b in places])
    return found


def _starts(words: list[str]) -> list[int]:
    """Where each word begins when they are joined by blanks."""
    return [0, *itertools.accumulate(len(word) + 1 for word in words[:-1])]
