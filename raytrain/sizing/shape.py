"""The sizes of a model, counted on torch's meta device, which allocates no memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.errors import ConfigError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks.base import Task, TaskState
from raytrain.tasks.text import PretrainedTask, TextTask

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Layers:
    """The dimensions of a transformer's layers, from which activations are estimated."""

    count: int
    hidden: int
    """Width of the residual stream."""
    heads: int
    intermediate: int
    """Inner width of the feed-forward network."""
    stores_scores: bool
    """Whether attention keeps its (heads, seq_len, seq_len) scores for the backward pass; fused kernels do not."""
    is_gated: bool = False
    """Whether the feed-forward network multiplies two projections, as in Llama."""
    has_dropout: bool = False
    patches: int = 0
    """Positions of each image: its patches, and those that stand for the whole image; 0: a sample is tokens."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model."""

    trained: tuple[int, ...]
    """Number of elements of each trained parameter, matrices before vectors as in the optimizer's groups; tied weights
    count once."""
    frozen: tuple[int, ...] = ()
    """Number of elements of each frozen parameter."""
    layers: Layers | None = None
    """None: the model has no config with the known field names."""
    can_checkpoint: bool = True
    """Whether the model supports gradient checkpointing."""
    averages: int = 0
    """fp32 numbers that a worker keeps for each trained element that it owns, beside weight and moments: AdaLoRA's."""
    vocabulary: int = 0
    """Logits of each token of a language model; 0: the model has no such head."""
    head_trained: int = 0
    """Trained elements of that head, tied ones included."""
    head_is_last: bool = True
    """Whether what that head gives are the logits, which then can be computed a part at a time: models/token_losses.py.
    Some models scale or cap them."""

    @property
    def num_trained(self) -> int:
        """Number of trained parameters, which checkpoints contain."""
        return sum(self.trained)

    @property
    def num_parameters(self) -> int:
        """Number of all parameters."""
        return sum(self.trained) + sum(self.frozen)


def shape_on_meta(config: RunConfig, task: Task, state: TaskState) -> ModelShape:
    """The shape of the model that a run would train.

    Raises ConfigError if the model can't be built or run: it does not exist, `model.config` is invalid, it has too few
    positions for `data.max_length`, too few embedding rows for the tokenizer, or no token-type embedding for
    `task.case_feature`; also if `data.max_length` has no room beside the special tokens.
    """
    import torch

    from raytrain.models.build import check_vocabulary
    from raytrain.models.dry_run import DryRun
    from raytrain.sizing.longest_sample import check_longest_sample

    tokenizer = load_tokenizer(config.model)
    if isinstance(task, TextTask):
        no_rows = pa.table({column: pa.array([], pa.string()) for column in task.required_columns()})
        task.encode_inputs(no_rows, tokenizer)  # raises if data.max_length is too small
    with torch.device("meta"), DryRun():
        model = task.build_model(config.model, state, config.training)
    check_adapted(config, task, model)
    if tokenizer is not None:
        check_vocabulary(model, tokenizer, config.model)
    shape = shape_of(model)
    check_longest_sample(config, task, state, model, tokenizer)
    return shape


def check_adapted(config: RunConfig, task: Task, model: "nn.Module") -> None:
    """Raises ConfigError when the config asks for an adapter, and the task builds its model without it, or does not
    save and load one as `PretrainedTask` does."""
    from raytrain.models.adapter import has_adapter

    if config.model.adapter is not None and not (has_adapter(model) and isinstance(task, PretrainedTask)):
        raise ConfigError(
            f"model.adapter: {getattr(config.task, 'target', config.task.kind)} builds its model without one. Leave it "
            "out, or let the class inherit from raytrain.tasks.TextTask and build its model with "
            "raytrain.models.build.build_with_head"
        )


def refuse_unfit(config: RunConfig, task: Task, state: TaskState) -> None:
    """Raises ConfigError for what `shape_on_meta` finds. Does not check the model of a user's own task, whose code may
    not run without weights; only `plan` requires that."""
    if config.task.kind != "python":
        shape_on_meta(config, task, state)


def shape_of(model: "nn.Module") -> ModelShape:
    """The shape of a model on any device."""
    parameters = list(model.parameters())
    return ModelShape(
        trained=tuple(p.numel() for p in sorted(parameters, key=lambda p: p.ndim <= 1) if p.requires_grad),
        frozen=tuple(p.numel() for p in parameters if not p.requires_grad),
        layers=_layers_of(model, getattr(model, "config", None)),
        can_checkpoint=bool(getattr(model, "supports_gradient_checkpointing", False)),
        averages=_averages_of(model),
        **_head_of(model),
    )


def _averages_of(model: Any) -> int:
    """Two averages of AdaLoRA's importance, and the gradient of the step."""
    kinds = (getattr(config, "peft_type", None) for config in getattr(model, "peft_config", {}).values())
    return 3 if "ADALORA" in kinds else 0


def _head_of(model: Any) -> dict[str, Any]:
    """The fields of a language model's head; {}: there is none."""
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # not a model of Transformers
        return {}
    if not (vocabulary := int(getattr(head, "out_features", 0))):
        return {}
    changes = (
        getattr(model.config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    return {
        "vocabulary": vocabulary,
        "head_trained": sum(weight.numel() for weight in head.parameters() if weight.requires_grad),
        "head_is_last": all(change in (None, 1) for change in changes),
    }


def _layers_of(model: "nn.Module", config: Any) -> Layers | None:
    count, hidden, heads = (
        getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    if not (isinstance(count, int) and isinstance(hidden, int) and isinstance(heads, int)):
        return None
    names = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim")
    widths = [width for name in names if isinstance(width := getattr(config, name, None), int)]
    intermediate = widths[0] if widths else 4 * hidden  # GPT-2 has null
    is_eager = getattr(config, "_attn_implementation", None) in (None, "eager")
    is_gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
    dropouts = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    has_dropout = any(getattr(config, name, 0.0) for name in dropouts)
    return Layers(count, hidden, heads, intermediate, is_eager, is_gated, has_dropout, _patches_of(config))


def _patches_of(config: Any) -> int:
    """Positions of an image in a vision transformer; 0: the model reads tokens."""
    if getattr(config, "vocab_size", None) is not None:
        return 0
    image, patch = (_sides(getattr(config, name, None)) for name in ("image_size", "patch_size"))
    if image is None or patch is None:
        return 0
    return (image[0] // patch[0]) * (image[1] // patch[1]) + 1


def _sides(size: Any) -> tuple[int, int] | None:
    """(height, width) of a size, which is one number for a square."""
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    return (
        (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else None
    )
