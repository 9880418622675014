"""Requests and answers in the format of OpenAI's API, for clients that are written for it.

Read: `model`, `messages` or `prompt`, `max_tokens`, `max_completion_tokens`, `temperature`, `top_p`, `n`, `seed`,
`stop`, `stream` and `stream_options.include_usage`. Keys that would change the answer and are not
supported are refused, unless they ask for nothing; those that only describe the request are ignored.
"""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from raytrain.errors import ConfigError, did_you_mean
from raytrain.inference.completing import Asked, Piece, generating_task
from raytrain.serving.limits import GROUP_CHARS, Limits
from raytrain.serving.requests import HttpError
from raytrain.serving.served import Model
from raytrain.tasks.nested import HALF_CHARACTER, is_unicode

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
DEFAULT_NEW_TOKENS = 256
MOST_CHOICES, MOST_STOPS = 8, 4
READ = ("model", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream", "stream_options")
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
ASKS_NOTHING: tuple[Any, ...] = (None, False, [], {})
"""Values with which a key that is not supported changes nothing, whatever the key is."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "min_p": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "top_k": (-1, 0),
}
"""Further such values of single keys: `logprobs` of 0 or 1 asks for something, a penalty of 0 does not."""
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    is_chat: bool
    model: str
    choices: list[Asked]
    """One for each answer that is wanted."""
    is_streamed: bool
    has_usage: bool
    """Whether a stream ends with the number of tokens."""
    id: str
    created_s: int


def read_request(body: bytes, model: Model, limits: Limits, *, is_chat: bool) -> Request:
    """Raises HttpError 400 for what can't be answered, 404 for another model's name."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "not_json", f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise refused("the body is not a JSON object")
    own = ("messages", "max_completion_tokens") if is_chat else ("prompt",)
    known = (*READ, *own)
    for name, value in found.items():
        if name not in known and name not in IGNORED and not _asks_nothing(name, value):
            raise refused(f"{name} is not supported by this server{did_you_mean(name, known)}; leave it out", name)
    if found.get("model", model.card.name) != model.card.name:
        named = json.dumps(found["model"])[:80]
        raise HttpError(404, "model_not_found", f"this server has no model {named}; it has {model.card.name!r}")
    prompt = _turns(found.get("messages")) if is_chat else _text(found.get("prompt"))
    try:
        task: Any = generating_task(model.task, model.card.format)
    except ConfigError as error:
        raise refused(str(error)) from None
    if task.answers_turns != is_chat:
        other = COMPLETIONS if is_chat else CHAT
        raise refused(f"this model was trained with task.kind={model.config.task.kind}: ask it by {other}")
    for key, kind, meant in (("stream", bool, "true or false"), ("stream_options", dict, "an object")):
        if not isinstance(found.get(key), kind | None):
            raise refused(f"{key} {json.dumps(found[key])[:40]}: give {meant}", key)
    options = found.get("stream_options") or {}
    name = "max_completion_tokens" if found.get("max_completion_tokens") is not None else "max_tokens"
    most = limits.max_new_tokens
    how: dict[str, Any] = {
        "max_new_tokens": _number(found, name, min(DEFAULT_NEW_TOKENS, most), 1, most, is_integer=True),
        "temperature": _number(found, "temperature", 1.0, 0.0, 2.0),
        "top_p": _number(found, "top_p", 1.0, 0.0, 1.0),
        "seed": _number(found, "seed", secrets.randbelow(2**31), 0, 2**63, is_integer=True),
        "stop": _stops(found.get("stop")),
    }
    choices = int(_number(found, "n", 1, 1, MOST_CHOICES, is_integer=True))
    return Request(
        is_chat,
        model.card.name,
        [Asked(prompt, number=number, **how) for number in range(choices)],
        found.get("stream") is True,
        options.get("include_usage") is True,
        f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
        int(time.time()),
    )


def refused(message: str, param: str | None = None) -> HttpError:
    """The error for content that can't be answered."""
    return HttpError(400, param or "invalid_request", message)


def error_body(status: int, code: str, message: str) -> str:
    """An error as OpenAI's clients read it."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    told = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": told}, ensure_ascii=False)


def models_body(model: Model) -> str:
    """The list of models, which has one."""
    one = {"id": model.card.name, "object": "model", "created": 0, "owned_by": "raytrain"}
    return json.dumps({"object": "list", "data": [one]}, ensure_ascii=False)


def answer_body(request: Request, answers: list[tuple[str, Piece]]) -> str:
    """The whole answer. `answers`: of each choice the text and the last piece."""
    choices = []
    for index, (text, last) in enumerate(answers):
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if request.is_chat else {"text": text}
        )
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": last.finish_reason})
    kind = "chat.completion" if request.is_chat else "text_completion"
    body = {**_head(request, kind), "choices": choices, "usage": _usage([last for _, last in answers])}
    return json.dumps(body, ensure_ascii=False)


def event(request: Request, index: int, piece: Piece, *, is_first: bool) -> bytes:
    """A piece of a choice as a server-sent event."""
    said: dict[str, Any] = {"text": piece.text}
    if request.is_chat:
        role = {"role": "assistant"} if is_first else {}
        said = {"delta": {**role, **({"content": piece.text} if piece.text or is_first else {})}}
    choice = {"index": index, **said, "logprobs": None, "finish_reason": piece.finish_reason}
    return as_event(json.dumps({**_stream_head(request), "choices": [choice]}, ensure_ascii=False))


def last_events(request: Request, lasts: list[Piece]) -> bytes:
    """The end of a stream."""
    end = as_event("[DONE]")
    if not request.has_usage:
        return end
    return as_event(json.dumps({**_stream_head(request), "choices": [], "usage": _usage(lasts)})) + end


def as_event(text: str) -> bytes:
    """A server-sent event."""
    return f"data: {text}\n\n".encode(errors="replace")


def _head(request: Request, kind: str) -> dict[str, Any]:
    return {"id": request.id, "object": kind, "created": request.created_s, "model": request.model}


def _stream_head(request: Request) -> dict[str, Any]:
    return _head(request, "chat.completion.chunk" if request.is_chat else "text_completion")


def _usage(lasts: list[Piece]) -> dict[str, int]:
    prompt, made = lasts[0].prompt_tokens, sum(last.completion_tokens for last in lasts)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _asks_nothing(name: str, value: Any) -> bool:
    values = (*ASKS_NOTHING, *NEUTRAL.get(name, ()))  # for Python 0 is False, and 1 is True
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _turns(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given or not all(isinstance(turn, dict) for turn in given):
        raise refused("messages is a list of objects with role and content, at least one", "messages")
    turns = []
    for place, turn in enumerate(given):
        content = turn.get("content")
        if isinstance(content, list):  # the parts of a text
            texts = [
                part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
            ]
            if not all(isinstance(text, str) for text in texts):
                raise refused(
                    f"messages[{place}].content has a part that is not text; this model reads text", "messages"
                )
            content = "".join(str(text) for text in texts)
        role = "system" if turn.get("role") == "developer" else turn.get("role")
        turns.append({**turn, "role": role, "content": content})
    _check_text(json.dumps(turns, ensure_ascii=False))
    return turns


def _text(given: Any) -> str:
    if isinstance(given, list) and len(given) == 1:
        (given,) = given
    if not isinstance(given, str) or not given:
        raise refused("prompt is one text that is not empty; send several requests for several texts", "prompt")
    _check_text(given)
    return given


def _check_text(text: str) -> None:
    if len(text) > GROUP_CHARS:
        raise refused(f"the prompt has {len(text):,} characters; this server takes at most {GROUP_CHARS:,}")
    if not is_unicode(text):
        raise refused(HALF_CHARACTER)


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise refused(f"stop is a text, or a list of at most {MOST_STOPS} texts that are not empty", "stop")
    return tuple(stops)


def _number(
    found: dict[str, Any], name: str, default: float, least: float, most: float, *, is_integer: bool = False
) -> float:
    value = found.get(name)
    if value is None:
        return default
    kinds = (int,) if is_integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        what = "an integer" if is_integer else "a number"
        limit = " (--max-new-tokens)" if name.endswith("tokens") else ""
        raise refused(f"{name} {json.dumps(value)[:40]}: give {what} from {least:g} to {most:g}{limit}", name)
    return value
