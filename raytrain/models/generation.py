"""Continuing texts with a language model.

What a text is continued with depends on the model, the text and the row's number alone, not on the rows beside it: rows
are batched with others of exactly their length, so there is no padding, and random numbers are drawn by row and token.
"""

import copy
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

TOKENS_PER_BATCH = 4096  # prompts and what follows them
_STREAM = 5  # first in the seed of a token's random numbers; `raytrain.tasks.base` has 4


def continue_prompts(
    model: Any,
    prompts: Sequence[list[int]],
    numbers: Sequence[int],
    stop_ids: list[int],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[list[int]]:
    """The tokens that follow each prompt, without the one that ends the text.

    Args:
        model: One of Transformers, in eval mode.
        prompts: Token ids, at least one each.
        numbers: What random numbers are drawn by besides `seed` and the prompt, such as the rows' places in their file.
        stop_ids: Tokens that end a text.
        temperature: Divides the logits before a token is drawn; 0: always the most probable token.
    """
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=stop_ids, pad_token_id=stop_ids[0]
    )
    model = copy.copy(model)  # with the same weights
    model.generation_config = config  # the model's own fills in what is not said, such as a penalty for repetitions
    found: list[list[int]] = [[]] * len(prompts)
    for places in _of_one_length(prompts, max_new_tokens):
        ids = torch.tensor([prompts[place] for place in places], device=model.device)
        noise = [_Noise(ids, [numbers[place] for place in places], temperature, seed)] if temperature else []
        with torch.inference_mode():
            whole = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=LogitsProcessorList(noise),
            )
        for place, tokens in zip(places, whole[:, ids.shape[1] :].tolist(), strict=True):
            ends = [i for i, token in enumerate(tokens) if token in stop_ids]
            found[place] = tokens[: ends[0]] if ends else tokens
    return found


def _of_one_length(prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[list[int]]:
    """Places of prompts with the same number of tokens."""
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    for length, places in sorted(by_length.items()):
        most = max(1, TOKENS_PER_BATCH // (length + max_new_tokens))
        for begin in range(0, len(places), most):
            yield places[begin : begin + most]


class _Noise(LogitsProcessor):
    """Adds Gumbel noise, with which the most probable token is a draw from the softmax."""

    def __init__(self, prompts: Tensor, numbers: list[int], temperature: float, seed: int):
        self._length, self._temperature = prompts.shape[1], temperature
        checks = [zlib.crc32(np.array(row, np.int64).tobytes()) for row in prompts.tolist()]
        self._seeds = [(_STREAM, seed, number, check) for number, check in zip(numbers, checks, strict=True)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Transformers calls this with the logits of the next token, shape (num_rows, vocabulary)."""
        place = input_ids.shape[1] - self._length
        noise = [np.random.default_rng((*row, place)).gumbel(size=scores.shape[1]) for row in self._seeds]
        return scores.float() / self._temperature + torch.tensor(np.array(noise, np.float32), device=scores.device)
