"""Building a Transformers model with a head for our labels. torch and transformers are imported late."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.errors import ConfigError, did_you_mean, first_line
from raytrain.models.files import untrusted_code
from raytrain.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def build_with_head(
    auto_class: str, model: ModelConfig, labels: list[str], training: TrainingConfig, **changes: Any
) -> "nn.Module":
    """A pretrained (or new) model with a classification head, fp32 on the CPU.

    Under `torch.device("meta")` it has no weights, and none are read: that counts parameters in a moment.

    Args:
        auto_class: Name of a Transformers auto class, such as AutoModelForSequenceClassification.
        changes: Further settings of the Transformers config.

    Raises:
        ConfigError: The model can't be found or loaded; names `model.path`.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    factory = getattr(transformers, auto_class)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = read_model_config(model, **names, **changes)
    override_dropout(config, training.dropout)
    fill_pad_token(config, model)
    common = {"trust_remote_code": model.trust_remote_code}
    if model.path is None or torch.get_default_device().type == "meta":
        try:
            return for_training(factory.from_config(config, **common).float(), training)
        except (ValueError, ArithmeticError) as error:
            raise ConfigError(f"model.{'config' if model.path is None else 'path'}: {first_line(str(error))}") from None
    try:
        with _quiet():
            loaded, info = factory.from_pretrained(
                model.path,
                config=config,
                revision=model.revision or "main",
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,  # the other format is a pickle
                **common,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(_cannot_load(model, error)) from None
    # Weights of another size, such as a head for other labels, are replaced: that is said like those that are missing.
    fresh = {key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])}
    if fresh:
        logger.info("new weights, to be trained from scratch: %s", ", ".join(sorted(fresh)))
    return for_training(loaded, training)


def for_training(model: Any, training: TrainingConfig) -> "nn.Module":
    """Turn on what `training` asks of the model itself. Raises ConfigError when it has no such thing."""
    if training.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"training.gradient_checkpointing: Transformers has none for {type(model).__name__}; leave it out"
            )
        # The other form loses gradients where a layer's input has none, as behind frozen embeddings.
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def check_positions(model: "nn.Module", max_length: int) -> None:
    """Raises ConfigError when samples of `max_length` tokens have more positions than the model learned."""
    import torch

    tables = (getattr(module, name, None) for module in model.modules() for name in ("position_embeddings", "wpe"))
    for table in tables:
        if not isinstance(table, torch.nn.Embedding):
            continue  # positions that are computed have no end
        # RoBERTa and its kin count positions from the one after padding.
        num_positions = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        if max_length > num_positions:
            raise ConfigError(
                f"data.max_length {max_length} is more than the {num_positions} positions that the model knows; "
                f"lower it to at most {num_positions}"
            )


def check_vocabulary(model: Any, tokenizer: Any, config: ModelConfig) -> None:
    """Raises ConfigError when the tokenizer of a new model gives tokens that its embedding has no row for."""
    try:
        rows = model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):  # a class of the user's own, which need not say
        return
    if config.path is None and len(tokenizer) > rows:
        raise ConfigError(
            f"model.config.vocab_size {rows} is less than the {len(tokenizer)} tokens of model.tokenizer; set it to at "
            f"least {len(tokenizer)}"
        )


def read_model_config(model: ModelConfig, **changes: Any) -> Any:
    """The Transformers config of a model, with changes applied. Raises ConfigError."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError  # a value of the wrong type

    if model.config is not None:
        raw = dict(model.config)
        try:
            model_type = raw.pop("model_type")
            _check_fields(model_type, raw)
            return transformers.AutoConfig.for_model(model_type, **{**raw, **changes})
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ConfigError(f"model.config: {' '.join(str(error).split())}") from None
    try:
        return transformers.AutoConfig.from_pretrained(
            model.path or "", revision=model.revision or "main", trust_remote_code=model.trust_remote_code, **changes
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ConfigError(_cannot_load(model, error)) from None


def _check_fields(model_type: str, fields: dict[str, Any]) -> None:
    """Transformers takes any word for a field, and uses the defaults. Raises ConfigError."""
    import transformers

    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if model_type not in known:
        hint = did_you_mean(str(model_type), known.keys())
        raise ConfigError(f"model.config.model_type: Transformers knows no {model_type!r}{hint}")
    try:
        defaults = known[model_type]()
    except Exception:  # one that is put together from others, and says itself what it needs
        return
    names = {*defaults.to_dict(), *defaults.attribute_map}
    for field in fields:
        if field not in names and not hasattr(defaults, field):
            hint = did_you_mean(str(field), names)
            raise ConfigError(f"model.config.{field} is no field of {type(defaults).__name__}{hint}")


def override_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout of a Transformers config; None leaves the model's own."""
    if dropout is None:
        return
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and (value is None or isinstance(value, (int, float))):
            setattr(config, name, dropout)


def fill_pad_token(config: Any, model: ModelConfig) -> None:
    """Give a config without a padding token the one that samples are padded with: the tokenizer's, else its end.

    A decoder classifies at a text's last token, which it finds by the padding. Raises ConfigError.
    """
    if getattr(config, "pad_token_id", None) is not None:
        return
    config.pad_token_id = load_tokenizer(model).pad_token_id


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' progress bar and its table of new and unused weights; afterwards as before."""
    from transformers.utils import logging as their_logging

    verbosity, has_bar = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(verbosity)
        if has_bar:
            their_logging.enable_progress_bar()


def _cannot_load(model: ModelConfig, error: Exception) -> str:
    if said := untrusted_code("model.path", model.path, model):
        return said
    first_line = str(error).strip().splitlines()[0]
    if os.path.isdir(model.path or ""):
        return f"model.path {model.path}: this folder holds no model that can be loaded: {first_line}"
    return (
        f"model.path {model.path!r}: neither a local folder nor a model that can be had from the hub: "
        f"{first_line.rstrip('.')}. Without a network, download the model first and give its folder"
    )
