"""Building a Transformers model with a head for our labels. torch and transformers are imported late."""

import contextlib
import inspect
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.errors import ConfigError, did_you_mean, first_line
from raytrain.models.adapter import add_adapter
from raytrain.models.attention import choose_attention
from raytrain.models.depths import depths_of
from raytrain.models.files import refuse_adapter, untrusted_code
from raytrain.models.new_tokens import add_rows
from raytrain.models.noise import add_noise
from raytrain.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

# Architectures that compute with the padding of a batch, mask or not, so that a text's result depends on what it is
# batched with: convolutions and Fourier transforms over whole rows; T5Gemma reads another position in the longest row.
READS_PADDING = ("canine", "convbert", "fnet", "funnel", "nystromformer", "t5gemma", "t5gemma2", "yoso")


def build_with_head(
    auto_class: str, model: ModelConfig, labels: list[str], training: TrainingConfig, **changes: Any
) -> "nn.Module":
    """A pretrained (or new) model with a classification head, fp32 on the CPU.

    A pretrained head keeps its weights where its labels have the same names, in whatever order. Under
    `torch.device("meta")` the model has no weights, and none are read: that counts parameters within a second.

    Args:
        auto_class: Name of a Transformers auto class, such as AutoModelForSequenceClassification.
        changes: Further settings of the Transformers config.

    Raises:
        ConfigError: The model can't be found or loaded; names `model.path`.
    """
    import transformers

    factory = getattr(transformers, auto_class)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = read_model_config(model, **names, **changes)
    override_dropout(config, training.dropout)
    fill_pad_token(config, model)
    built, fresh = new_or_loaded(factory, model, config)
    if fresh is not None:
        _adopt_head(built, fresh, model, labels, factory)
    share_pad_token(built, model)
    if config.model_type in READS_PADDING:
        logger.warning(
            "models of type %s compute with the padding of a batch, so losses depend a little on "
            "training.micro_batch_size, and metrics also on the number of workers",
            config.model_type,
        )
    head = head_of(built, factory) if model.adapter is not None else []
    return add_adapter(for_training(built, training), model, head, fresh or ())


def head_of(built: Any, factory: Any) -> list[str]:
    """Names of the modules that turn what the pretrained model computes into the task's answers."""
    inner = built.base_model_prefix
    if hasattr(built, inner):
        return [name for name, part in built.named_children() if name != inner and any(True for _ in part.parameters())]
    from raytrain.models.head import label_dimensions

    return [name.rpartition(".")[0] for name in label_dimensions(built.config, factory)]


def new_or_loaded(factory: Any, model: ModelConfig, config: Any) -> tuple[Any, set[str] | None]:
    """The model, and the names of its weights that no file has; None for a new model, and on the meta device. Raises
    ConfigError."""
    import torch

    choose_attention(factory, model, config)
    if model.path is None or torch.get_default_device().type == "meta":
        try:
            new = factory.from_config(config, trust_remote_code=model.trust_remote_code).float()
        except (ValueError, ArithmeticError, AssertionError) as error:
            raise ConfigError(f"model.{'config' if model.path is None else 'path'}: {first_line(str(error))}") from None
        add_rows(new, model)
        return new, None
    built, fresh = _load(factory, model, config)
    add_rows(built, model)
    if fresh:
        logger.info("new weights, to be trained from scratch: %s", ", ".join(sorted(fresh)))
    return built, fresh


def _load(factory: Any, model: ModelConfig, config: Any) -> tuple[Any, set[str]]:
    """The pretrained model, and the names of its weights that are new: those that the files lack, and those of another
    size, such as a head for another number of labels. Raises ConfigError."""
    import torch
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            loaded, info = factory.from_pretrained(
                model.path,
                config=config,
                revision=model.revision or "main",
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,  # the other format is a pickle
                trust_remote_code=model.trust_remote_code,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(_cannot_load(model, error)) from None
    keys = (*info["missing_keys"], *info["mismatched_keys"])
    return loaded, {key if isinstance(key, str) else key[0] for key in keys}


def _adopt_head(built: Any, fresh: set[str], model: ModelConfig, labels: list[str], factory: Any) -> None:
    """Give a head that was loaded the task's labels. One with another number of labels is new already."""
    from raytrain.models.head import adopt_head, label_dimensions

    saved = read_model_config(model).id2label or {}
    saved_labels = [str(saved[i]) for i in sorted(saved)]
    if len(saved_labels) != len(labels) or saved_labels == labels:
        return
    dims = label_dimensions(built.config, factory, model.trust_remote_code)
    if fresh.isdisjoint(dims):
        adopt_head(built, dims, saved_labels, labels)


def for_training(model: Any, training: TrainingConfig) -> "nn.Module":
    """Apply the options of `training` that the model itself implements. Raises ConfigError when it lacks one."""
    if training.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"training.gradient_checkpointing: Transformers has none for {type(model).__name__}; leave it out"
            )
        # The reentrant form loses gradients where a layer's input has none, as behind frozen embeddings.
        model.activation_checkpointing_enable({"use_reentrant": False})
    add_noise(model, training.neftune_alpha)
    if training.layerwise_lr_decay < 1.0:
        depths_of(model)  # it refuses a model that has none
    return model


def check_vocabulary(model: Any, tokenizer: Any, config: ModelConfig) -> None:
    """Raises ConfigError when the tokenizer gives tokens that the model's embedding has no row for."""
    try:
        rows = model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):  # a custom class does not have to define it
        return
    if len(tokenizer) <= rows:
        return
    if config.path is None:
        raise ConfigError(
            f"model.config.vocab_size {rows} is less than the {len(tokenizer)} tokens of model.tokenizer; set it to at "
            f"least {len(tokenizer)}"
        )
    raise ConfigError(
        f"{'model.tokenizer' if config.tokenizer else 'model.path'} {config.tokenizer_path}: the tokenizer has "
        f"{len(tokenizer)} tokens, and the model's embedding has {rows} rows. Use the tokenizer that the model was "
        "trained with, or add rows with model.resize_token_embeddings and save the model again"
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
    refuse_adapter(model)
    try:
        return transformers.AutoConfig.from_pretrained(
            model.path or "", revision=model.revision or "main", trust_remote_code=model.trust_remote_code, **changes
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ConfigError(_cannot_load(model, error)) from None


def _check_fields(model_type: str, fields: dict[str, Any]) -> None:
    """Refuse unknown fields, which Transformers would ignore. Raises ConfigError."""
    import transformers

    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if model_type not in known:
        hint = did_you_mean(str(model_type), known.keys())
        raise ConfigError(f"model.config.model_type: Transformers has no model type {model_type!r}{hint}")
    try:
        defaults = known[model_type]()
    except Exception:  # a composite config, which checks its own parts
        return
    names = {*defaults.to_dict(), *defaults.attribute_map}
    generation = transformers.GenerationConfig()  # T5 reads decoder_start_token_id, which its config does not have
    for field in fields:
        if field not in names and not hasattr(defaults, field) and not hasattr(generation, field):
            hint = did_you_mean(str(field), names)
            raise ConfigError(f"model.config.{field} is not a field of {type(defaults).__name__}{hint}")


def override_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout rate of a Transformers config; None keeps the model's own rates."""
    if dropout is None:
        return
    for name, value in config.to_dict().items():
        is_rate = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if ("dropout" in name or name.endswith("pdrop")) and is_rate:
            setattr(config, name, dropout)


def fill_pad_token(config: Any, model: ModelConfig) -> None:
    """Give a config without a padding token the one that samples are padded with. Raises ConfigError."""
    if model.image is not None:
        return
    if getattr(config, "pad_token_id", None) is None and (tokenizer := load_tokenizer(model)) is not None:
        config.pad_token_id = tokenizer.pad_token_id


def share_pad_token(built: Any, model: ModelConfig) -> None:
    """Where a head looks for the last token of a text by the padding, as a decoder's does, let it look for what samples
    are padded with: a config may name another token than the tokenizer, and the head would then classify at padding.

    Other models keep theirs. Their attention mask hides the padding, and RoBERTa's positions are counted from its id.
    Raises ConfigError.
    """
    if model.image is not None:
        return
    forwards = (inspect.unwrap(kind.__dict__["forward"]) for kind in type(built).__mro__ if "forward" in kind.__dict__)
    codes = (getattr(forward, "__code__", None) for forward in forwards)
    if not any("pad_token_id" in code.co_names for code in codes if code is not None):
        return
    if (tokenizer := load_tokenizer(model)) is not None:
        for config in (built.config, built.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context without Transformers' progress bar and its table of new and unused weights."""
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
        f"model.path {model.path!r}: neither a local folder nor a model that the hub provides: "
        f"{first_line.rstrip('.')}. Without a network, download the model first and give its folder"
    )
