"""The loss of a model that predicts tokens, without an fp32 copy of its logits, which are its largest tensor.

The head runs at the targets alone. What autograd keeps are the logits in the model's precision; their softmax is
computed again, a chunk at a time, where the gradient needs it. A plain cross-entropy keeps two more copies in fp32.
Where even one copy is large, head and loss run together, a chunk at a time, and each chunk's gradient is formed at
once. Checkpointing the chunks instead would compute the head twice, and keep a gradient of its weights for each.
"""

import inspect
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raytrain.tasks.base import IGNORED

CHUNK_ELEMENTS = 1 << 22  # of logits that are in fp32 at a time, 16 MiB
LARGE_ELEMENTS = 1 << 25  # more logits than these are not computed at once
HEAD_ELEMENTS = 1 << 24  # of them that are computed at once then
_HAS_LAST_WORD: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()
"""Whether what a head gives are the model's logits: some models scale or cap them afterwards."""


def loss_sum_at_targets(model: Any, inputs: dict[str, Tensor], labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum of `losses_at_targets`, a scalar; many logits are computed a chunk at a time, if a gradient is wanted."""
    places = _target_places(labels)
    head = _head_of(model)
    if head is not None and _can_be_chunked(head, len(places)):
        hidden = _hidden_at(model, head, inputs, places)
        if hidden is not None:
            wanted = labels.flatten().index_select(0, places)
            loss: Tensor = _HeadLosses.apply(hidden, wanted, head, smoothing, *head.parameters())
            return loss
    return losses_at_targets(model, inputs, labels, smoothing)[0].sum()


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
    places = _target_places(labels)
    logits = _logits_at(model, inputs, places)
    wanted = labels.flatten().index_select(0, places)
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


def _target_places(labels: Tensor) -> Tensor:
    """Places of the targets in the flattened batch; the first place where there are none."""
    places = (labels.flatten() != IGNORED).nonzero().flatten()
    return places if len(places) else torch.zeros(1, dtype=torch.long, device=labels.device)


def _head_of(model: Any) -> Any:
    core = getattr(model, "module", model)
    return core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None


def _can_be_chunked(head: Any, num_targets: int) -> bool:
    """Whether there are many logits, and the head may be called outside the model's own call.

    ZeRO-3, which has the weights only during that call, and `training.exactness: bitwise`, which fixes the order in
    which gradients are added, both put hooks around it. In fp16 a gradient before loss scaling would underflow.
    """
    weights = list(head.parameters())
    return (
        torch.is_grad_enabled()
        and num_targets * getattr(head, "out_features", 0) > LARGE_ELEMENTS
        and _HAS_LAST_WORD.get(head, True)
        and not any(part._forward_pre_hooks or part._forward_hooks for part in head.modules())
        and all(weight.dtype in (torch.float32, torch.bfloat16) for weight in weights)
    )


def _hidden_at(model: Any, head: Any, inputs: dict[str, Tensor], places: Tensor) -> Tensor | None:
    """What the head is given at some positions, shape (num_places, width); None when its output is not the logits.
    The head runs at the first position alone."""
    shape = inputs["input_ids"].shape
    given: list[Tensor] = []
    gives: list[Tensor] = []

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args[0].shape[:2] != shape:
            return None
        given.append(args[0].flatten(0, 1).index_select(0, places))
        return (given[-1][None, :1], *args[1:])

    handles = [
        head.register_forward_pre_hook(select),
        head.register_forward_hook(lambda _, __, output: gives.append(output.detach())),
    ]
    try:
        logits = model(**inputs, **without_cache(model)).logits
    finally:
        for handle in handles:
            handle.remove()
    if head not in _HAS_LAST_WORD:
        is_alone = len(given) == len(gives) == 1 and logits.numel() == gives[0].numel()
        _HAS_LAST_WORD[head] = is_alone and torch.equal(logits.flatten().float(), gives[0].flatten().float())
    return given[0] if _HAS_LAST_WORD[head] else None


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

    head = _head_of(model)
    handle = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits: Tensor = model(**inputs, **without_cache(model)).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[0] if is_selected else logits.flatten(0, 1).index_select(0, places)


def _chunks(logits: Tensor) -> list[slice]:
    return _slices(len(logits), CHUNK_ELEMENTS // logits.shape[1])


def _slices(number: int, size: int) -> list[slice]:
    return [slice(begin, begin + max(1, size)) for begin in range(0, number, max(1, size))]


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


class _HeadLosses(torch.autograd.Function):
    """Sum of the cross-entropies of a head's logits, in fp32. Its gradients are formed with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Any, smoothing: float, *weights: Tensor) -> Tensor:
        """`hidden`: what the head is given, shape (num_targets, width); `weights`: the head's."""
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if needed[0] else None
        sums = [
            torch.zeros_like(weight, dtype=torch.float32) if is_needed else None
            for weight, is_needed in zip(weights, needed[1:], strict=True)
        ]
        # Leaves of their own: hooks of the engine wait for the gradients of the real ones.
        leaves = [weight.detach().requires_grad_(one is not None) for weight, one in zip(weights, sums, strict=True)]
        named = {name: leaf for (name, _), leaf in zip(head.named_parameters(), leaves, strict=True)}
        for rows in _slices(len(hidden), HEAD_ELEMENTS // head.out_features):
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_(needed[0])
                logits = torch.func.functional_call(head, named, (part[None],))[0]
                loss = _TokenLosses.apply(logits, labels[rows], smoothing).sum()
                del logits
                wanted = [leaf for leaf in (part, *leaves) if leaf.requires_grad]
                found = iter(torch.autograd.grad(loss, wanted, materialize_grads=True))
            total += loss.detach()
            if of_hidden is not None:
                of_hidden[rows] = next(found)
            for one in sums:
                if one is not None:
                    one += next(found)
        ctx.gradients, ctx.dtypes = [of_hidden, *sums], [hidden.dtype, *(weight.dtype for weight in weights)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            None if one is None else one.mul_(gradients[0]).to(dtype)
            for one, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        del ctx.gradients  # the loss may outlive the backward pass
        return found[0], None, None, None, *found[1:]
