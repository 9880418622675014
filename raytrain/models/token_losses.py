"""The loss of a model that predicts tokens, without an fp32 copy of its logits, which are its largest tensor.

The head runs at the targets alone. What autograd keeps are the logits in the model's precision; their softmax is
computed again, a chunk at a time, where the gradient needs it. A plain cross-entropy keeps two more copies in fp32.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raytrain.tasks.base import IGNORED

CHUNK_ELEMENTS = 1 << 22  # of logits that are in fp32 at a time, 16 MiB


def losses_at_targets(
    model: Any, inputs: dict[str, Tensor], labels: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each target.

    Args:
        model: A model of Transformers with a language-modeling head, or an engine around it.
        inputs: What it is called with; `input_ids` of shape (num_samples, seq_len).
        labels: The token to be predicted at each position, IGNORED where there is none; shape (num_samples, seq_len).
        smoothing: Share of each target that is spread evenly over the vocabulary.

    Returns:
        (losses, fp32, 0 where a label is IGNORED; logits; labels), of shape (num_targets,), (num_targets, vocabulary),
        (num_targets,), in the order of the samples and their positions. A batch without a target has one at its first
        position, which is IGNORED: every worker has to run the head.
    """
    flat = labels.flatten()
    places = (flat != IGNORED).nonzero().flatten()
    if not len(places):
        places = torch.zeros(1, dtype=torch.long, device=flat.device)
    logits = _logits_at(model, inputs, places)
    wanted = flat.index_select(0, places)
    losses: Tensor = _TokenLosses.apply(logits, wanted, smoothing)
    return losses, logits, wanted


def log_probabilities(losses: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each target, and of the most probable other token; shape (num_targets, 2), fp32.

    Args: what `losses_at_targets` returns.
    """
    others = torch.empty_like(losses)
    for rows in _chunks(logits):
        part, wanted = logits[rows].float(), labels[rows].clamp_min(0)[:, None]
        normalizer = losses[rows] + part.gather(1, wanted)[:, 0]
        others[rows] = part.scatter(1, wanted, -torch.inf).amax(-1) - normalizer
    return torch.stack([-losses, others], dim=-1)


def without_cache(model: Any) -> dict[str, bool]:
    """Keyword arguments that keep a model from storing keys and values for a generation, which training has no use
    for."""
    forward = getattr(getattr(model, "module", model), "forward", None)  # an exported graph has none
    has_option = forward is not None and "use_cache" in inspect.signature(forward).parameters
    return {"use_cache": False} if has_option else {}


def _logits_at(model: Any, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
    """Logits at some positions, shape (num_places, vocabulary). `places`: in the flattened batch."""
    shape, is_selected = inputs["input_ids"].shape, False

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal is_selected
        hidden = args[0]
        if hidden.shape[:2] != shape:  # a head that is called otherwise than on a batch
            return None
        is_selected = True
        return (hidden.flatten(0, 1).index_select(0, places)[None], *args[1:])

    core = getattr(model, "module", model)
    head = core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None
    handle = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits: Tensor = model(**inputs, **without_cache(model)).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[0] if is_selected else logits.flatten(0, 1).index_select(0, places)


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
    return [slice(begin, begin + rows) for begin in range(0, len(logits), rows)]


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy of each row of logits, in fp32. With smoothing, targets are (1 - smoothing) of the label's one-hot
    vector and smoothing / vocabulary everywhere."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        normalizers = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        losses = torch.empty_like(normalizers)
        for rows in _chunks(logits):
            part, wanted = logits[rows].float(), labels[rows]
            normalizers[rows] = torch.logsumexp(part, -1)
            true = part.gather(1, wanted.clamp_min(0)[:, None])[:, 0]
            found = normalizers[rows] - (torch.lerp(true, part.mean(-1), smoothing) if smoothing else true)
            losses[rows] = found.masked_fill(wanted == IGNORED, 0.0)
        ctx.save_for_backward(logits, labels, normalizers)
        ctx.smoothing = smoothing
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, normalizers = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            wanted = labels[rows]
            part = (logits[rows].float() - normalizers[rows][:, None]).exp_()
            if ctx.smoothing:
                part -= ctx.smoothing / logits.shape[1]
            one = torch.full_like(normalizers[rows], ctx.smoothing - 1.0)[:, None]
            part.scatter_add_(1, wanted.clamp_min(0)[:, None], one)
            part.mul_(gradients[0][rows].masked_fill(wanted == IGNORED, 0.0)[:, None])
            gradient[rows] = part
        return gradient, None, None
