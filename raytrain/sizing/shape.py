"""What a model looks like, counted on torch's meta device: every parameter, and no memory for any of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raytrain.config import RunConfig
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks.base import Task, TaskState

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Layers:
    """The transformer's layers, for the estimate of activations."""

    count: int
    hidden: int
    """Width of the residual stream."""
    heads: int
    intermediate: int
    """Width inside the feed-forward part."""
    stores_scores: bool
    """Whether attention keeps its (heads, seq_len, seq_len) scores for the backward pass; fused kernels don't."""
    is_gated: bool = False
    """Whether the feed-forward part multiplies two projections, as Llama's does."""
    has_dropout: bool = False


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model."""

    trained: tuple[int, ...]
    """Elements of each parameter that is trained, matrices before vectors, as the optimizer's groups have them; tied
    weights count once."""
    frozen: tuple[int, ...] = ()
    """Elements of each parameter that is not."""
    layers: Layers | None = None
    """None: the config doesn't say it in words that are known."""
    can_checkpoint: bool = True
    """Whether Transformers has gradient checkpointing for it."""

    @property
    def num_trained(self) -> int:
        """Those that are trained, which a checkpoint holds."""
        return sum(self.trained)

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return sum(self.trained) + sum(self.frozen)


def shape_on_meta(config: RunConfig, task: Task, state: TaskState) -> ModelShape:
    """The shape of the model that a run would train.

    Raises ConfigError for what is wrong with it: no such model, a bad `model.config`, too few positions for
    `data.max_length` or none beside special tokens, too few rows for the tokenizer, no token-type embedding for
    `task.case_feature`.
    """
    import torch

    from raytrain.models.build import check_vocabulary
    from raytrain.models.dry_run import DryRun
    from raytrain.sizing.longest_sample import check_longest_sample

    tokenizer = load_tokenizer(config.model)
    no_rows = pa.table({column: pa.array([], pa.string()) for column in task.required_columns()})
    task.encode_inputs(no_rows, tokenizer)  # refuses a data.max_length without room
    with torch.device("meta"), DryRun():
        model = task.build_model(config.model, state, config.training)
    if tokenizer is not None:
        check_vocabulary(model, tokenizer, config.model)
    shape = shape_of(model)
    check_longest_sample(config, task, state, model, tokenizer)
    return shape


def refuse_unfit(config: RunConfig, task: Task, state: TaskState) -> None:
    """Raises ConfigError for what `shape_on_meta` finds. Does not check the model of a user's own task, whose code may
    not run without weights; only `plan` requires that."""
    if config.task.kind != "python":
        shape_on_meta(config, task, state)


def shape_of(model: "nn.Module") -> ModelShape:
    """The shape of a model, on any device."""
    parameters = list(model.parameters())
    return ModelShape(
        trained=tuple(p.numel() for p in sorted(parameters, key=lambda p: p.ndim <= 1) if p.requires_grad),
        frozen=tuple(p.numel() for p in parameters if not p.requires_grad),
        layers=_layers_of(model, getattr(model, "config", None)),
        can_checkpoint=bool(getattr(model, "supports_gradient_checkpointing", False)),
    )


def _layers_of(model: "nn.Module", config: Any) -> Layers | None:
    count, hidden, heads = (
        getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    if not (isinstance(count, int) and isinstance(hidden, int) and isinstance(heads, int)):
        return None
    names = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim")
    widths = [width for name in names if isinstance(width := getattr(config, name, None), int)]
    intermediate = widths[0] if widths else 4 * hidden  # GPT-2 leaves it out
    is_eager = getattr(config, "_attn_implementation", None) in (None, "eager")
    is_gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
    dropouts = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    has_dropout = any(getattr(config, name, 0.0) for name in dropouts)
    return Layers(count, hidden, heads, intermediate, is_eager, is_gated, has_dropout)
