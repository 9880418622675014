"""The losses of pairs of answers, from the log-probabilities that models give them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raytrain.config import PreferenceLoss
from raytrain.models.token_losses import losses_at_targets
from raytrain.tasks.base import IGNORED
from raytrain.tasks.text import model_inputs

MOST_LOG_PROBABILITY = -1e-6
"""A mean log-probability above it counts as this one: the odds of a certain answer are infinite."""


def log_probabilities_of_pairs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(sums of the log-probabilities of the answers' tokens, fp32; their numbers), each of shape (num_samples, 2).

    Args:
        batch: With `labels` of shape (num_samples, 2, seq_len), IGNORED where no token of an answer follows.
    """
    shape = batch["labels"].shape
    labels = batch["labels"].flatten(0, 1)
    is_target = labels != IGNORED
    losses = losses_at_targets(model, model_inputs(batch), labels)[0]
    # Placed and summed in a row of its own, so that the order of the sum does not depend on the other pairs.
    placed = torch.zeros(labels.shape, dtype=losses.dtype, device=losses.device).masked_scatter(is_target, -losses)
    return placed.sum(-1).view(shape[:2]), is_target.sum(-1).view(shape[:2])


def preference_losses(
    kind: PreferenceLoss, beta: float, sums: Tensor, counts: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(losses, of shape (num_samples,); values: the rewards of both answers, and with orpo the log odds ratio, of shape
    (num_samples, 2 or 3)), fp32.

    Args:
        sums, counts: Those of `log_probabilities_of_pairs`.
        reference: The sums that the reference gives; None with orpo.
    """
    counts = counts.clamp_min(1)
    if kind == PreferenceLoss.ORPO:
        means = (sums / counts).clamp_max(MOST_LOG_PROBABILITY)
        odds = means - torch.log(-torch.expm1(means))
        ratios = odds[:, 0] - odds[:, 1]
        losses = -(sums / counts)[:, 0] - beta * logsigmoid(ratios)
        return losses, torch.cat([beta * means, ratios[:, None]], dim=-1)
    if reference is None:
        raise ValueError(f"{kind} needs the log-probabilities of its reference")
    if kind == PreferenceLoss.DPO:
        rewards = beta * (sums - reference)
        return -logsigmoid(rewards[:, 0] - rewards[:, 1]), rewards
    apart = (sums - reference) / counts
    return (apart[:, 0] - apart[:, 1] - 1 / (2 * beta)) ** 2, beta * apart


def reward_losses(rewards: Tensor) -> Tensor:
    """Bradley-Terry: the negative log-probability that the first answer is the better one; shape (num_samples,).

    Args:
        rewards: Shape (num_samples, 2).
    """
    return -logsigmoid(rewards[:, 0] - rewards[:, 1])
