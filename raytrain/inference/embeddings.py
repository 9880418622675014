"""The vector of a text or an image: the mean of the encoder's last hidden state over its tokens or places."""

from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.errors import ConfigError
from raytrain.tasks.base import Task
from raytrain.tasks.text import PretrainedTask

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "embedding"


def embed(task: Task, model: Any, batch: "dict[str, Tensor]") -> list[np.ndarray]:
    """A vector for each sample, special tokens counted in, float32, shape (hidden_size,). Raises ConfigError when the
    model has no encoder of Transformers'."""
    encoder = getattr(model, "base_model", None)
    is_pair = "input_ids" in batch and batch["input_ids"].ndim > 2
    if encoder is None or encoder is model or not isinstance(task, PretrainedTask) or is_pair:
        raise ConfigError("embeddings need an encoder of Transformers with a head for single texts, which this is not")
    hidden = encoder(**task.model_inputs(batch)).last_hidden_state.float()
    if "attention_mask" not in batch:  # an image, as tokens or as (channels, height, width)
        return list((hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)).cpu().numpy())
    mask = batch["attention_mask"].unsqueeze(-1).float()
    return list(((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy())
