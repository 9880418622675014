"""Noise on the embeddings of tokens (Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", 2023)."""

import functools
import math
from typing import TYPE_CHECKING, Any

from raytrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def add_noise(model: Any, alpha: float) -> None:
    """Let the model's embeddings of tokens be noisy in training mode, from torch's generator, which is seeded for each
    micro-batch: the noise is the same at any number of workers. The weights have none. Raises ConfigError."""
    from torch import nn

    if not alpha:
        return
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise ConfigError(
            f"training.neftune_alpha is for embeddings of tokens, which {type(model).__name__} does not have: leave it "
            "out"
        )
    embeddings.register_forward_hook(functools.partial(_noisy, alpha=alpha))


def _noisy(module: Any, _: Any, embedded: "Tensor", *, alpha: float) -> "Tensor":
    """`embedded`: shape (num_samples, seq_len, width). The noise's norm is about alpha / sqrt(3) a sample."""
    import torch

    if not module.training:
        return embedded
    bound = alpha / math.sqrt(math.prod(embedded.shape[-2:]))
    return embedded + torch.empty_like(embedded).uniform_(-bound, bound)
