"""The vector of a text: the mean of the encoder's last hidden state over its tokens."""

from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.errors import ConfigError
from raytrain.tasks.text import model_inputs

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "embedding"


def embed(model: Any, batch: "dict[str, Tensor]") -> list[np.ndarray]:
    """A vector for each sample, special tokens counted in, float32, shape (hidden_size,). Raises ConfigError when the
    model has no encoder of Transformers'."""
    encoder = getattr(model, "base_model", None)
    if encoder is None or encoder is model or "input_ids" not in batch or batch["input_ids"].ndim > 2:
        raise ConfigError("embeddings need an encoder of Transformers with a head for single texts, which this is not")
    hidden = encoder(**model_inputs(batch)).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1).float()
    return list(((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy())
