"""Continuing texts with a language model, token by token.

What a text is continued with depends on the model, the text, its seed and its number alone, not on the rows beside it:
rows are batched with others of exactly their length, so there is no padding, and random numbers are drawn by row and
token. The loop is raytrain's own, since `model.generate` stops where each worker's texts end: with ZeRO stage 3 each
forward pass gathers weights from all workers, so that all must make the same number of them.
"""

import inspect
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raytrain.models.prompts import Prompt

LEAST_TEMPERATURE = 1e-4
"""Below it the most probable token is taken, which it would be anyway: logits divided by less may not be finite."""
TOKENS_PER_BATCH = 4096  # prompts and what follows them
_STREAM = 5  # first in the seed of a token's random numbers; `raytrain.tasks.base` has 4


def continue_prompts(
    model: Any, prompts: Sequence[Prompt], stop_ids: Sequence[int], *, is_fixed: bool = False
) -> list[list[int]]:
    """The tokens that follow each prompt, without the one that ends the text.

    Args:
        model: One of Transformers, in eval mode.
        stop_ids: Tokens that end a text.
        is_fixed: Whether the number of forward passes depends on the prompts alone, and not on where texts end.
    """
    found: list[list[int]] = [[] for _ in prompts]
    for places in _of_one_length(prompts):
        for tokens in next_tokens(model, [prompts[place] for place in places], stop_ids, is_fixed=is_fixed):
            for place, token in zip(places, tokens, strict=True):
                if token is not None:
                    found[place].append(token)
    return found


def next_tokens(
    model: Any, prompts: Sequence[Prompt], stop_ids: Sequence[int], *, is_fixed: bool = False
) -> Iterator[list[int | None]]:
    """For each step the next token of each prompt; None: its text has ended. Closing the iterator ends the work.

    Args:
        model: See `continue_prompts`.
        prompts: All with the same number of tokens.
        is_fixed: See `continue_prompts`.
    """
    device = getattr(model, "device", None) or next(model.parameters()).device
    whole = torch.tensor([prompt.ids for prompt in prompts], device=device)
    draws, stops = [_Draws(prompt) for prompt in prompts], frozenset(stop_ids)
    is_done = [False] * len(prompts)
    last = _Last(model)
    for step in range(max(prompt.max_new_tokens for prompt in prompts)):
        logits = last.logits(whole)
        tokens = [draw(one, step) for draw, one in zip(draws, logits, strict=True)]
        is_done = [
            done or token in stops or step >= prompt.max_new_tokens
            for done, token, prompt in zip(is_done, tokens, prompts, strict=True)
        ]
        yield [None if done else token for done, token in zip(is_done, tokens, strict=True)]
        if all(is_done) and not is_fixed:
            return
        whole = torch.cat([whole, torch.tensor(tokens, device=device)[:, None]], dim=1)


def _of_one_length(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Places of prompts with the same number of tokens."""
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.ids), []).append(place)
    for length, places in sorted(by_length.items()):
        longest = length + max(prompts[place].max_new_tokens for place in places)
        most = max(1, TOKENS_PER_BATCH // longest)
        for begin in range(0, len(places), most):
            yield places[begin : begin + most]


class _Last:
    """The logits of the last token. A model with a cache of keys and values reads only the tokens that are new."""

    def __init__(self, model: Any):
        self._model, self._cache, self._num_read = model, None, 0
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @torch.no_grad()
    def logits(self, whole: Tensor) -> Tensor:
        """Shape (num_rows, vocabulary), of tokens of shape (num_rows, num_tokens), which begin with those before."""
        output = self._model(
            input_ids=whole[:, self._num_read :],
            attention_mask=torch.ones_like(whole),
            past_key_values=self._cache,
            use_cache=True,
            **self._options,
        )
        self._cache = getattr(output, "past_key_values", None)
        self._num_read = 0 if self._cache is None else whole.shape[1]
        logits: Tensor = output.logits[:, -1]
        return logits


class _Draws:
    """Draws the tokens of one text. Gumbel noise is added, with which the most probable token is a draw from the
    softmax."""

    def __init__(self, prompt: Prompt):
        self._prompt = prompt
        self._seed = (_STREAM, prompt.seed, prompt.number, zlib.crc32(np.array(prompt.ids, np.int64).tobytes()))

    def __call__(self, logits: Tensor, step: int) -> int:
        """The next token, from logits of shape (vocabulary,)."""
        if self._prompt.temperature < LEAST_TEMPERATURE:
            return int(logits.argmax())
        scores = logits.float() / self._prompt.temperature
        if self._prompt.top_p < 1.0:
            ordered, order = scores.softmax(-1).sort(descending=True)
            is_left_out = ordered.cumsum(-1) - ordered >= self._prompt.top_p
            is_left_out[0] = False  # with top_p 0, too
            scores = scores.masked_fill(torch.zeros_like(is_left_out).scatter(0, order, is_left_out), -torch.inf)
        noise = np.random.default_rng((*self._seed, step)).gumbel(size=len(scores))
        return int((scores + torch.tensor(noise.astype(np.float32), device=scores.device)).argmax())
