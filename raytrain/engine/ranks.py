"""AdaLoRA beside DeepSpeed: which ranks of an adapter are kept, at any number of workers and any ZeRO stage. No Ray.

PEFT's own allocation reads whole gradients after the update, which are gone then, and writes to the working copy, which
the master weights overwrite. Here each worker has the importance of the elements whose masters it owns. What is added
up over a layer is assembled one layer at a time, the same on all workers, and masks go to masters, moments, average and
working copy at once.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain.checkpoint.ranges import SENSITIVITY, UNCERTAINTY
from raytrain.engine.bitwise import ExactGradients
from raytrain.engine.gradients import gradient_of
from raytrain.engine.own_optimizer import ADAMW
from raytrain.engine.shards import Shard, inner_optimizer, shards
from raytrain.models.rank_schedule import RankSchedule

DECAY = 0.85  # of both averages, as in the paper
VALUES = ".lora_E."
"""In the name of a layer's parameter with the factor of each rank, shape (rank, 1)."""


class _Layer(NamedTuple):
    """Names of the matrices of a layer, whose weight gets B @ diag(E) @ A added."""

    right: str
    """A: (rank, in)."""
    values: str
    """E: (rank, 1)."""
    left: str
    """B: (out, rank)."""


class AdaptiveRanks:
    """The importance of each rank, and the ranks that are kept."""

    num_updates = 0
    """Applied updates, by which the schedule goes."""

    def __init__(self, engine: Any, schedule: RankSchedule):
        self._engine, self._schedule = engine, schedule
        self._parameters: dict[str, nn.Parameter] = dict(engine.module.named_parameters())
        self._layers = [
            _Layer(name.replace(VALUES, ".lora_A."), name, name.replace(VALUES, ".lora_B."))
            for name in self._parameters
            if VALUES in name
        ]
        self._names = {name for layer in self._layers for name in layer}
        own = {shard.name: shard for shard in self._shards()}
        self._averages = {
            kind: {name: torch.zeros_like(shard.master) for name, shard in own.items()}
            for kind in (SENSITIVITY, UNCERTAINTY)
        }
        self._gradients: dict[str, Tensor] = {}
        self._last_masks: dict[str, Tensor] | None = None

    @property
    def left(self) -> int:
        """Ranks that the schedule leaves after the updates so far, over all layers. Not collective."""
        return self._schedule.left(self.num_updates, len(self._layers))

    @property
    def first(self) -> int:
        """Ranks at the beginning, over all layers."""
        return self._schedule.first_rank * len(self._layers)

    def averages_of(self, shard: Shard) -> dict[str, Tensor]:
        """Kind -> the average of a shard's elements, 1-D, fp32; writing to it changes it. {} for what is not part of
        a rank. Not collective."""
        return {kind: averages[shard.name] for kind, averages in self._averages.items() if shard.name in averages}

    def restored(self, num_updates: int) -> None:
        """Called after `averages_of` all shards was loaded from a state after that many updates. Not collective."""
        self.num_updates, self._last_masks = num_updates, None

    @torch.no_grad()
    def add_penalty(self, exact: ExactGradients | None, loss_scale: float) -> None:
        """Add the gradient of the orthogonality penalty, once a step: the mean over all A and B of the Frobenius norm
        of A @ A.T - 1 and B.T @ B - 1. Collective at stage 3, where the matrices of one layer at a time are
        gathered."""
        if not self._schedule.orthogonality:
            return
        gradients = self._penalties(loss_scale * self._schedule.orthogonality / (2 * len(self._layers)))
        if exact is not None:
            exact.add((self._parameters[name], gradient) for name, gradient in gradients)
            return
        own = {shard.name: shard for shard in self._shards()}
        for name, gradient in gradients:
            parameter = self._parameters[name]
            if self._engine.zero_stage == 0:
                assert parameter.grad is not None
                parameter.grad.add_(gradient)
            elif (shard := own.get(name)) is not None:
                part = gradient.reshape(-1)[shard.start : shard.start + shard.length]
                gradient_of(self._engine, shard, parameter).add_(part)

    def _penalties(self, factor: float) -> Iterator[tuple[str, Tensor]]:
        """Names of all A and B, and the gradients of their norms times a factor. Collective at stage 3."""
        for layer in self._layers:
            with self._gathered(layer.right, layer.left):
                right = _penalty_gradient(self._parameters[layer.right].float())
                left = _penalty_gradient(self._parameters[layer.left].float().T).T
            yield layer.right, right * factor
            yield layer.left, left * factor

    @torch.no_grad()
    def note_gradients(self, *, is_exact: bool) -> None:
        """Copy this worker's part of the gradients, just before an update. Not collective.

        `is_exact`: `ExactGradients` has handed them over.
        """
        self._gradients = {
            shard.name: gradient_of(self._engine, shard, self._parameters[shard.name], is_exact=is_exact).to(
                shard.master.device, torch.float32, copy=True
            )
            for shard in self._shards()
        }

    @torch.no_grad()
    def updated(self, factor: float) -> None:
        """Take an applied update into account, and remove ranks if that is due. Collective.

        Args:
            factor: What the gradients that were noted have been multiplied by in the update.
        """
        self.num_updates += 1
        if self.num_updates < self._schedule.end:
            self._add_importance(factor)
        self._gradients = {}
        budget = self._schedule.budget(self.num_updates, len(self._layers))
        if self.num_updates >= self._schedule.end:
            if self._last_masks is None:  # the importance stays as it is from now on, and so do the masks
                self._last_masks = self._masks(self._schedule.last_rank * len(self._layers))
            self._remove(self._last_masks)
        elif budget is not None:
            self._remove(self._masks(budget))

    @torch.no_grad()
    def kept(self) -> int:
        """Ranks whose factor is not 0 in the master weights, over all layers. Collective."""
        count = torch.zeros((), dtype=torch.int64, device=self._engine.device)
        for shard in self._shards():
            if VALUES in shard.name:
                count += torch.count_nonzero(shard.master).to(count.device)
        dist.all_reduce(count)
        return int(count)

    def _shards(self) -> Iterator[Shard]:
        return (shard for shard in shards(self._engine) if shard.name in self._names)

    def _add_importance(self, factor: float) -> None:
        for shard in self._shards():
            importance = (shard.master * self._gradients[shard.name]).mul_(factor).abs_()
            smooth, deviation = self._averages[SENSITIVITY][shard.name], self._averages[UNCERTAINTY][shard.name]
            # Products and sums, which are rounded alike wherever in a tensor an element lies.
            smooth.mul_(DECAY).add_(importance * (1 - DECAY))
            deviation.mul_(DECAY).add_((importance - smooth).abs_().mul_(1 - DECAY))

    def _masks(self, budget: int) -> dict[str, Tensor]:
        """Name of each layer's E -> which of its ranks are removed, bool, shape (rank,). Collective."""
        products = {
            name: smooth * self._averages[UNCERTAINTY][name] for name, smooth in self._averages[SENSITIVITY].items()
        }
        own = {shard.name: shard for shard in self._shards()}
        scores = [self._scores(layer, own, products) for layer in self._layers]
        # A stable order, so that exactly as many are removed also where scores are equal.
        order = torch.cat(scores).argsort(stable=True)
        is_removed = torch.zeros(len(order), dtype=torch.bool)
        is_removed[order[: len(order) - budget]] = True
        parts = is_removed.split([len(score) for score in scores])
        return {layer.values: part for layer, part in zip(self._layers, parts, strict=True)}

    def _scores(self, layer: _Layer, own: dict[str, Shard], products: dict[str, Tensor]) -> Tensor:
        """The importance of each rank of a layer: shape (rank,), on the CPU, the same on all workers. Collective."""
        shapes = [getattr(self._parameters[name], "ds_shape", self._parameters[name].shape) for name in layer]
        whole = torch.zeros(sum(shape.numel() for shape in shapes), device=self._engine.device)
        parts = whole.split([shape.numel() for shape in shapes])
        for name, part in zip(layer, parts, strict=True):
            if (shard := own.get(name)) is not None:
                part[shard.start : shard.start + shard.length] = products[name]
        dist.all_reduce(whole)  # each element is 0 on all workers but one, so the sum is exact
        right, values, left = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return (values.view(-1) + (right.mean(1) + left.mean(0))).cpu()

    def _remove(self, masks: dict[str, Tensor]) -> None:
        """Set the factors of removed ranks, and what the optimizer keeps for them, to 0. Not collective."""
        engine, own = self._engine, {shard.name: shard for shard in self._shards()}
        moments = engine.state_layout.kinds if engine.state_layout is ADAMW else ()
        for name, mask in masks.items():
            parameter: Any = self._parameters[name]
            tensors: list[tuple[Tensor, Tensor]] = []
            if parameter.numel() == len(mask):  # the working copy, which ZeRO-3 may have partitioned
                tensors.append((parameter.detach().view(-1), mask))
            if engine.zero_stage == 0:
                state = inner_optimizer(engine).state[parameter]
                tensors += [(state[kind].view(-1), mask) for kind in moments]
            if (shard := own.get(name)) is not None:
                part = mask[shard.start : shard.start + shard.length]
                tensors.append((shard.master, part))
                if engine.zero_stage == 3:
                    tensors.append((parameter.ds_tensor.detach().view(-1)[: shard.length], part))
                if engine.average is not None:
                    tensors.append((engine.average.of(shard), part))
                if engine.zero_stage:
                    state = inner_optimizer(engine).state[shard.flat]
                    stop = shard.flat_start + shard.length
                    tensors += [(state[kind].view(-1)[shard.flat_start : stop], part) for kind in moments]
            for tensor, removed in tensors:
                tensor.masked_fill_(removed.to(tensor.device), 0.0)

    def _gathered(self, *names: str) -> contextlib.AbstractContextManager[None]:
        """Context in which the working copies of these parameters are whole."""
        if self._engine.zero_stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        context: contextlib.AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
            [self._parameters[name] for name in names]
        )
        return context


def _penalty_gradient(matrix: Tensor) -> Tensor:
    """The gradient of the Frobenius norm of matrix @ matrix.T - 1."""
    difference = matrix @ matrix.T
    difference.diagonal().sub_(1.0)
    return (2.0 / difference.norm().clamp_min(1e-30)) * (difference @ matrix)
