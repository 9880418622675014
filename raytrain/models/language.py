"""Building a language model of Transformers. torch and transformers are imported late."""

import contextlib
from typing import TYPE_CHECKING, Any

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.models.adapter import add_adapter
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

    config = _config_of(model, training)
    if getattr(config, "is_decoder", None) is False and _is_encoder(config):
        config.is_decoder = True  # an encoder such as BERT then attends to earlier tokens alone
    advice = "generates text, such as gpt2, llama or qwen3"
    built, fresh = _build("AutoModelForCausalLM", "causal", advice, model, config)
    if torch.get_default_device().type != "meta":
        _check_causal(built, model)
    return add_adapter(for_training(built, training), model, fresh=fresh)


def build_masked_lm(model: ModelConfig, training: TrainingConfig) -> "nn.Module":
    """A pretrained (or new) model that predicts masked tokens, fp32 on the CPU. Its head is new where the files have
    none.

    Raises:
        ConfigError: The model can't be found, loaded or built; names `model.path` or `model.config`.
    """
    config = _config_of(model, training)
    advice = "is an encoder, such as bert, roberta or modernbert"
    built, fresh = _build("AutoModelForMaskedLM", "masked", advice, model, config)
    return add_adapter(for_training(built, training), model, fresh=fresh)


def _config_of(model: ModelConfig, training: TrainingConfig) -> Any:
    config = read_model_config(model, **(_special_tokens(model) if model.path is None else {}))
    override_dropout(config, training.dropout)
    return config


def _build(auto_class: str, kind: str, advice: str, model: ModelConfig, config: Any) -> tuple[Any, set[str]]:
    """(the model, its weights that no file has). Raises ConfigError."""
    import transformers

    factory = getattr(transformers, auto_class)
    own_class = auto_class in (getattr(config, "auto_map", None) or {})  # code that the model brings with it
    if not own_class and type(config) not in factory._model_mapping:
        raise ConfigError(
            f"model.{_option(model)}: Transformers has no {kind} language model of type {config.model_type!r}. Use one "
            f"that {advice}"
        )
    built, fresh = new_or_loaded(factory, model, config)
    return built, fresh or set()


def _option(model: ModelConfig) -> str:
    return "config" if model.path is None else f"path {model.path}"


def _is_encoder(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _special_tokens(model: ModelConfig) -> dict[str, int | None]:
    """The ids of a new model's special tokens where `model.config` names none: those of its tokenizer, so that a text
    that is generated ends. An embedding for padding is never trained, so one that ends texts too is none."""
    tokenizer = load_tokenizer(model)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name, None) for name in names}
    if ids["pad_token_id"] in (ids["bos_token_id"], ids["eos_token_id"]):
        ids["pad_token_id"] = None
    return {name: token for name, token in ids.items() if name not in (model.config or {})}


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
