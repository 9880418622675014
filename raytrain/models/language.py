"""Building a language model of Transformers. torch and transformers are imported late."""

import contextlib
from typing import TYPE_CHECKING, Any

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.models.build import for_training, new_or_loaded, override_dropout, read_model_config
from raytrain.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import nn

PROBE_TOKENS = 6
MOST_LEAK = 1e-3
"""Difference of logits, relative to the largest: above rounding, and far below that of a token that is seen."""


def build_causal_lm(model: ModelConfig, training: TrainingConfig) -> "nn.Module":
    """A pretrained (or new) model that predicts the next token, fp32 on the CPU.

    Raises:
        ConfigError: The model can't be found, loaded or built, or its predictions depend on later tokens; names
            `model.path` or `model.config`.
    """
    import torch
    import transformers

    config = read_model_config(model)
    override_dropout(config, training.dropout)
    if getattr(config, "is_decoder", None) is False and _is_encoder(config):
        config.is_decoder = True  # an encoder such as BERT then attends to earlier tokens alone
    if model.path is None:
        _name_special_tokens(config, model)
    try:
        built, _ = new_or_loaded(transformers.AutoModelForCausalLM, model, config)
    except ConfigError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ConfigError(
            f"model.{_option(model)}: Transformers has no causal language model of type {config.model_type!r}. Use "
            "one that generates text, such as gpt2, llama or qwen3"
        ) from None
    if torch.get_default_device().type != "meta":
        _check_causal(built, model)
    return for_training(built, training)


def _option(model: ModelConfig) -> str:
    return "config" if model.path is None else f"path {model.path}"


def _is_encoder(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _name_special_tokens(config: Any, model: ModelConfig) -> None:
    """Give a new model the ids of its tokenizer's special tokens where `model.config` names none: a text that is
    generated ends with one."""
    tokenizer = load_tokenizer(model)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name not in (model.config or {}):
            setattr(config, name, getattr(tokenizer, name, None))
    if config.pad_token_id == config.eos_token_id:  # such an embedding would never be trained
        config.pad_token_id = None


def _check_causal(built: Any, model: ModelConfig) -> None:
    """Raises ConfigError when a prediction depends on a later token: the model would only have to copy it."""
    import torch

    was_training = built.training
    built.eval()
    rows = built.get_input_embeddings().num_embeddings
    first = torch.arange(1, PROBE_TOKENS + 1)[None] % rows
    other = first.clone()
    other[0, -1] = (other[0, -1] + 1) % rows
    with torch.no_grad(), contextlib.suppress(IndexError):
        ours, theirs = (built(input_ids=ids).logits[0, : PROBE_TOKENS - 1].float() for ids in (first, other))
        if (ours - theirs).abs().max() > MOST_LEAK * ours.abs().max():
            raise ConfigError(
                f"model.{_option(model)}: {type(built).__name__} predicts a token with later ones in view, so it can't "
                "be trained as a causal language model. Use one that generates text, such as gpt2, llama or qwen3"
            )
    built.train(was_training)
