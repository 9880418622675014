"""The implementation of a Transformers model's attention."""

import importlib.util
from typing import Any

from raytrain.config import ModelConfig
from raytrain.errors import ConfigError

SUPPORT = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
"""Implementation -> attribute of a Transformers class that says whether it has it. All have eager."""


def choose_attention(factory: Any, model: ModelConfig, config: Any) -> None:
    """Set the attention of a Transformers config as `model.attention` says; nothing for auto. Raises ConfigError.

    Args:
        factory: A Transformers auto class.
        config: Of the model that is built next.
    """
    import torch
    from transformers.utils import is_flash_attn_2_available

    wanted = model.attention
    if wanted == "auto":
        return
    built = factory._model_mapping.get(type(config), None)
    if wanted in SUPPORT and built is not None and not getattr(built, SUPPORT[wanted], False):
        raise ConfigError(f"model.attention={wanted}: {built.__name__} has no such attention: set model.attention=auto")
    if wanted == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise ConfigError(
                "model.attention=flash_attention_2 needs the package flash-attn, which is not installed: pip install "
                "flash-attn on every node, or set model.attention=sdpa"
            )
        if torch.get_default_device().type == "meta":  # a machine without a GPU may start the run
            return
        if not is_flash_attn_2_available():
            raise ConfigError(
                "model.attention=flash_attention_2: Transformers can't use the package flash-attn here, which takes a "
                "GPU and a version of it that it knows: set model.attention=sdpa"
            )
    config._attn_implementation = wanted
