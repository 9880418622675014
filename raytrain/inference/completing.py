"""A language model's answer as it comes: pieces of text, why it ended, and how many tokens it took."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytrain.errors import ConfigError
from raytrain.inference.formats import Format
from raytrain.models.prompts import Prompt
from raytrain.tasks.base import Task
from raytrain.tasks.predicting import Generating, room_for_prompt, stop_ids

if TYPE_CHECKING:
    from raytrain.inference.predictor import Predictor

HALF = "\ufffd"
"""What a decoder writes for a character whose last bytes are in the next token."""


@dataclass(frozen=True)
class Asked:
    """A text to continue, or turns to answer."""

    prompt: str | list[dict[str, Any]]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    number: int = 0
    """Of several answers to one prompt, which differ where they are drawn."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""


@dataclass(frozen=True)
class Piece:
    """Text that follows the pieces before it."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    """Up to now."""
    finish_reason: str | None = None
    """In the last piece: stop, or length when there are max_new_tokens."""


def complete(predictor: "Predictor", asked: Asked) -> Iterator[Piece]:
    """The answer, piece by piece; the last one says why it ended. Closing the iterator ends the work.

    Raises ConfigError for a prompt that can't be used, or that leaves the model no room for an answer.
    """
    from raytrain.models.generation import next_tokens

    task: Any = generating_task(predictor.task, predictor.card.format)
    ids = task.prompt_ids(asked.prompt, predictor.tokenizer)
    positions = getattr(predictor.model.config, "max_position_embeddings", None)
    room = room_for_prompt(positions, asked.max_new_tokens)
    if room is not None and len(ids) > room:
        raise ConfigError(
            f"the prompt has {len(ids):,} tokens and the answer up to {asked.max_new_tokens:,}, more than the "
            f"{positions:,} positions of the model: shorten it, or ask for fewer tokens"
        )
    prompt = Prompt(ids, asked.max_new_tokens, asked.temperature, asked.top_p, asked.seed, asked.number)
    stops = stop_ids(predictor.model, predictor.tokenizer)
    told, tokens, reason = "", list[int](), "length"
    for (token,) in next_tokens(predictor.model, [prompt], stops):
        if token is None:
            reason = "stop" if len(tokens) < asked.max_new_tokens else "length"
            break
        tokens.append(token)
        whole = predictor.tokenizer.decode(tokens, skip_special_tokens=True)
        if (end := _stopped(whole, asked.stop)) is not None:
            yield Piece(whole[len(told) : end], len(ids), len(tokens), "stop")
            return
        safe = _safe(whole, asked.stop)
        if safe > len(told):
            yield Piece(whole[len(told) : safe], len(ids), len(tokens))
            told = whole[:safe]
    whole = predictor.tokenizer.decode(tokens, skip_special_tokens=True)
    yield Piece(whole[len(told) :], len(ids), len(tokens), reason)


def generating_task(task: Task, kind: str) -> Task:
    """The task of a model that continues texts. Raises ConfigError for another one, and for an ONNX graph."""
    if not isinstance(task, Generating):
        raise ConfigError("this model generates no text: only those of task.kind chat, causal_lm and preference do")
    if kind == Format.ONNX:
        raise ConfigError("an ONNX graph generates no text: use the trained model")
    return task


def _stopped(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first of `stops` begins; None: none is there."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return min(places) if places else None


def _safe(text: str, stops: tuple[str, ...]) -> int:
    """Characters that what follows can't change: before half a character, and before what may become a stop text."""
    end = len(text.rstrip(HALF))
    for stop in stops:
        for size in range(min(len(stop) - 1, end), 0, -1):
            if text[:end].endswith(stop[:size]):
                end -= size
                break
    return end
