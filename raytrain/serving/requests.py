"""What a request says, checked: the rows and how they are to be answered."""

import json
from dataclasses import dataclass
from typing import Any

from raytrain.errors import ConfigError, did_you_mean
from raytrain.inference.card import ModelCard
from raytrain.inference.predictor import output_columns
from raytrain.inference.texts import TEXT, needed_columns, stand_in
from raytrain.serving.image_rows import IMAGE_INPUTS, row_of_image, takes_images
from raytrain.serving.limits import GROUP_CHARS, Limits
from raytrain.serving.replica import How, Row
from raytrain.tasks.base import Task
from raytrain.tasks.nested import HALF_CHARACTER, is_unicode
from raytrain.tasks.predicting import ASKED, Decoding, Generating, Predicting
from raytrain.tasks.token_prediction import TokenPrediction

DOCUMENT = "document"
INPUTS = ("text", "texts", "rows")
OPTIONS = ("probabilities", "threshold", "embeddings", "max_new_tokens")
SURROGATE = b"\\ud"
"""In the JSON of a text that may hold half of a character, which no tokenizer takes."""


class HttpError(Exception):
    """A request that is not answered. The message is for people and says what to do."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


@dataclass(frozen=True)
class Asked:
    """A request."""

    rows: list[Row | str]
    """Those that can be used, with the columns that the task reads; of the others what is wrong."""
    how: How
    is_one: bool
    """Whether one text was given, and not a list."""


def parse(body: bytes, task: Task, card: ModelCard, limits: Limits) -> Asked:
    """Read the body of a request. Raises HttpError 400 when it is not JSON, 413 for too many rows, 422 for what the
    model can't answer."""
    example = '{"image": "iVBORw0KGgo..."}, in base64' if takes_images(task) else '{"text": "a fine film"}'
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        message = f"the body is not JSON ({error}): send an object such as {example}"
        raise HttpError(400, "not_json", message) from None
    if not isinstance(found, dict):
        raise wrong(f"the body is a JSON {_kind(found)}: send an object such as {example}")
    inputs = IMAGE_INPUTS if takes_images(task) else INPUTS
    if unknown := [name for name in found if name not in (*inputs, *OPTIONS)]:
        known = ", ".join((*inputs, *OPTIONS))
        raise wrong(f"unknown key {unknown[0]!r}: a request has {known}{did_you_mean(unknown[0], (*inputs, *OPTIONS))}")
    given = [name for name in inputs if name in found]
    if len(given) != 1:
        one, many, rows_key = inputs
        told = " and ".join(given) or "none of them"
        raise wrong(f"a request has one of {one}, {many} and {rows_key}; this one has {told}")
    how = _how(found, task, card, limits)
    rows = [_of_a_fair_size(row, task) for row in _rows(given[0], found[given[0]], task, limits)]
    if SURROGATE in body.lower():
        rows = [_without_surrogates(row) for row in rows]
    return Asked(rows, how, is_one=given[0] == inputs[0])


def wrong(message: str, code: str = "wrong_request") -> HttpError:
    """The error for content that can't be answered."""
    return HttpError(422, code, message)


def _how(found: dict[str, Any], task: Task, card: ModelCard, limits: Limits) -> How:
    for name in ("probabilities", "embeddings"):
        if not isinstance(found.get(name, False), bool):
            raise wrong(f"{name} is true or false, not {json.dumps(found[name])[:40]}")
    threshold = found.get("threshold")
    if threshold is not None:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise wrong(f"threshold {json.dumps(threshold)[:40]}: give a probability between 0 and 1, such as 0.5")
        threshold = float(threshold)
    embeddings = found.get("embeddings", False)
    most = _max_new_tokens(found, task, limits, embeddings=embeddings)
    how = How(Decoding(found.get("probabilities", False), threshold, most), embeddings)
    try:
        card.decoding(how.decoding, task)
    except ConfigError as error:
        raise wrong(str(error)) from None
    try:
        output_columns(task, card, how.decoding, embeddings=how.embeddings)
    except ConfigError:  # its message has the folder of the model
        name = "embeddings" if embeddings else "max_new_tokens"
        raise wrong(f"{name}: this model is an ONNX graph, which has none; leave the key out") from None
    return how


def _max_new_tokens(found: dict[str, Any], task: Task, limits: Limits, *, embeddings: bool) -> int:
    """Tokens that are generated for each row at most; 0: none."""
    most, given = limits.max_new_tokens, found.get("max_new_tokens")
    if given is None:
        default = task.default_new_tokens if isinstance(task, Generating) and not embeddings else 0
        return min(default, most)
    if not isinstance(task, Generating):
        raise wrong("max_new_tokens is for a model that generates text; leave the key out")
    if embeddings:
        raise wrong("embeddings and max_new_tokens are two things: ask for them one after the other")
    least = 1 if task.default_new_tokens else 0
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        told = json.dumps(given)[:40]
        raise wrong(f"max_new_tokens {told}: this server takes an integer from {least} to {most} (--max-new-tokens)")
    return given


def _rows(key: str, given: Any, task: Task, limits: Limits) -> list[Row | str]:
    if key in ("text", "image"):
        return [_row_of_text(given, key, task)]
    if not isinstance(given, list):
        raise wrong(f"{key} is a list, not a JSON {_kind(given)}")
    if len(given) > limits.max_rows:
        raise HttpError(
            413,
            "too_many_rows",
            f"{key} has {len(given):,} rows, and a request at most {limits.max_rows:,}: send several requests, or "
            "predict a file with `raytrain predict`",
        )
    if key in ("texts", "images"):
        return [_row_of_text(one, key.removesuffix("s"), task) for one in given]
    return [_row_of(one, task) for one in given]


def _row_of_text(text: Any, name: str, task: Task) -> Row | str:
    columns = task.input_columns()
    if takes_images(task):
        return row_of_image(text, name, task)
    if _stand_ins(task):
        return {ASKED: text} if isinstance(text, str) else f"{name} must be a string, not a JSON {_kind(text)}"
    if len(columns) != 1:
        told = ", ".join(columns)
        raise wrong(f'this model reads {told}: send {{"rows": [{{...}}]}} with these keys instead of a text')
    if isinstance(text, list) and task.word_columns():
        return {columns[0]: text}
    if not isinstance(text, str):
        return f"{name} must be a string, not a JSON {_kind(text)}"
    return {TEXT if task.word_columns() else columns[0]: text}


def _row_of(row: Any, task: Task) -> Row | str:
    if not isinstance(row, dict):
        return f"a row is an object, not a JSON {_kind(row)}"
    needed = needed_columns(task, list(row))
    for name in needed:
        if name not in row:
            has = ", ".join(map(repr, row)) or "nothing"
            return f"there is no {name}, which the model was trained on; the row has {has[:200]}"
    if takes_images(task):
        return row_of_image(row[needed[0]], needed[0], task)
    if _stand_ins(task):
        return _row_of_turns(row, task)
    extra = [] if needed == task.input_columns() else [TEXT]
    return {name: row[name] for name in (*needed, *extra, DOCUMENT) if name in row}


def _stand_ins(task: Task) -> list[str]:
    return task.stand_ins() if isinstance(task, Predicting) else []


def _row_of_turns(row: Row, task: Task) -> Row:
    """The columns of a conversation. What stands for them is told row by row, since rows of several requests are
    answered together; and lists are JSON, since objects in one column of Arrow have the keys of each other."""
    assert isinstance(task, Predicting)
    columns, name = task.input_columns(), stand_in(task, list(row))
    found = {one: row[one] for one in dict.fromkeys([*columns, *task.also_read()]) if one in row and one != ASKED}
    if name is not None and name not in columns:
        found[ASKED] = row[name]
    texts = task.text_columns()
    return {
        one: json.dumps(value) if isinstance(value, list) and one not in texts else value
        for one, value in found.items()
    }


def _of_a_fair_size(row: Row | str, task: Task) -> Row | str:
    """A row, or why it would make others wait: a language model leaves out nothing of a row."""
    if isinstance(row, str) or not isinstance(task, TokenPrediction):
        return row
    size = sum(len(value) for value in row.values() if isinstance(value, str))
    if size <= GROUP_CHARS:
        return row
    return (
        f"it has {size:,} characters, and this model, which reads all of a row, is asked for at most {GROUP_CHARS:,} "
        "at a time: send parts of it, or predict a file with `raytrain predict`"
    )


def _without_surrogates(row: Row | str) -> Row | str:
    if isinstance(row, str) or any(isinstance(value, bytes) for value in row.values()):
        return row
    return row if is_unicode(json.dumps(row, ensure_ascii=False)) else HALF_CHARACTER


def _kind(value: Any) -> str:
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")
