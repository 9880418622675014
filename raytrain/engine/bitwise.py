"""Gradients whose bits do not depend on the number of workers (training.exactness=bitwise), at each ZeRO stage.

DeepSpeed's own reduction is turned off. After each backward pass the gradient of the micro-batch is added here as
fixed-point numbers; before the update their sums over all workers are handed to DeepSpeed's optimizer as the mean
gradient, already clipped. What it then does, AdamW and the gathering of weights, is elementwise. No Ray.

Stages 0 to 2 hold the sums of all parameters on each worker (8 bytes each), and reduce once per step. Stage 3 reduces
in each backward pass, as DeepSpeed does, and holds the sums of its own share.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain.engine.exact_sums import (
    add_fixed_point,
    exponent_for,
    global_norm,
    largest_of,
    largest_sum,
    reduce_to_owners,
    to_fixed_point,
    to_float,
)
from raytrain.errors import ConfigError, FailureCode, TrainingError


class _Slot(NamedTuple):
    """The place of a parameter in a flat tensor."""

    parameter: nn.Parameter
    start: int
    stop: int


class ExactGradients(ABC):
    """The exact sum of the gradients of one step after the other."""

    def __init__(self, deepspeed: Any, epsilon: float, num_micro_batches: int):
        """Args:
        deepspeed: DeepSpeed's engine.
        epsilon: Of AdamW; it decides the resolution.
        num_micro_batches: Of a full step, over all workers.
        """
        self._optimizer = deepspeed.optimizer
        self._device = torch.device(deepspeed.device)
        self._exponent = exponent_for(epsilon)
        self._largest_allowed = largest_sum(self._exponent) / num_micro_batches
        self._scale = 2.0**self._exponent
        self._largest = torch.zeros((), device=self._device)
        self.norm = math.inf
        """Of the last step's gradient before clipping."""

    def begin(self, loss_scale: float) -> None:
        """Begin a step whose losses are multiplied by `loss_scale`."""
        self._scale = 2.0**self._exponent / loss_scale
        self._largest.zero_()
        self._clear()

    @abstractmethod
    def add_micro_batch(self) -> None:
        """Add the gradient of the backward pass that has just ended."""

    @abstractmethod
    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add a gradient that all workers have alike, in the parameter's whole shape, after the backward passes. It
        counts once. At most one for each parameter, before `added`."""

    @abstractmethod
    def added(self) -> None:
        """Called after the last `add` of a step."""

    def finish(self, clip: float, changed_buffer: str | None) -> float:
        """Hand the clipped gradient of the step to the optimizer. Collective.

        Args:
            changed_buffer: A buffer that has changed on this worker, see `BufferWatch`.

        Returns:
            The norm before clipping, inf if a gradient was not finite; nothing is handed over then.

        Raises:
            ConfigError: A buffer has changed on any worker.
            TrainingError: A gradient is too large for fixed-point numbers.
        """
        found = torch.stack([self._largest, torch.tensor(float(changed_buffer is not None), device=self._device)])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        largest, is_changed = found.tolist()
        if is_changed:
            raise ConfigError(
                f"training.exactness=bitwise: the model's buffer {changed_buffer or '(of another worker)'} changes in "
                "training, as statistics of BatchNorm do. They depend on the micro-batches that a worker is dealt: use "
                "another norm, freeze the statistics, or leave out training.exactness"
            )
        if not math.isfinite(largest):
            self.norm = math.inf
            return self.norm
        if largest * self._scale * 2.0**-self._exponent > self._largest_allowed:
            raise TrainingError(
                f"a gradient of {largest:.3g} is too large for training.exactness=bitwise, which adds up gradients of "
                f"at most {self._largest_allowed:.3g} per micro-batch: lower training.optimizer.learning_rate, scale "
                "the loss down, or raise training.optimizer.epsilon, on which that limit depends",
                FailureCode.DIVERGED,
            )
        shares = self._reduce()
        self.norm = global_norm(shares, self._device)
        if clip and self.norm > clip:
            self._multiply(clip / (self.norm + 1e-6))
        self._hand_over()
        return self.norm

    @abstractmethod
    def _clear(self) -> None:
        """Forget the sums of the step before."""

    @abstractmethod
    def _reduce(self) -> list[Tensor]:
        """Sum over all workers. Returns this worker's share as fp32; each element is in one worker's share."""

    @abstractmethod
    def _multiply(self, factor: float) -> None:
        """Multiply everything that `_hand_over` will hand over."""

    @abstractmethod
    def _hand_over(self) -> None:
        """Put the gradient where the optimizer expects it."""

    def _note_largest(self, gradients: list[Tensor]) -> None:
        torch.maximum(self._largest, largest_of(gradients, self._device), out=self._largest)

    def _own_norm(self) -> Tensor:
        """The norm as DeepSpeed computes it, of the gradient times the loss scale: it skips the update if it is inf."""
        return torch.tensor(self.norm * float(self._optimizer.loss_scale), device=self._device)


class _Flat(ExactGradients):
    """Stages 0 to 2: flat tensors with the sums of all parameters."""

    def __init__(
        self, deepspeed: Any, epsilon: float, num_micro_batches: int, groups: list[list[_Slot]], sizes: list[int]
    ):
        """Args:
        groups: The parameters of each flat tensor.
        sizes: Elements of each flat tensor.
        """
        super().__init__(deepspeed, epsilon, num_micro_batches)
        self._groups = groups
        self._totals = [torch.zeros(size, dtype=torch.int64, device=self._device) for size in sizes]
        self._shares: list[Tensor] = []
        self._is_first = True

    def add_micro_batch(self) -> None:
        gradients = [slot.parameter.grad for slots in self._groups for slot in slots]
        self._note_largest([gradient for gradient in gradients if gradient is not None])
        for slots, total in zip(self._groups, self._totals, strict=True):
            for parameter, start, stop in slots:
                place = total[start:stop]
                if parameter.grad is None:
                    if self._is_first:
                        place.zero_()
                elif self._is_first:
                    to_fixed_point(parameter.grad, self._scale, place)
                else:
                    add_fixed_point(place, parameter.grad, self._scale)
                parameter.grad = None
        self._is_first = False

    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        if dist.get_rank() == 0:
            parameter.grad = gradient.to(parameter.dtype)

    def added(self) -> None:
        if dist.get_rank() == 0:
            self.add_micro_batch()

    def _clear(self) -> None:
        self._is_first = True

    def _multiply(self, factor: float) -> None:
        for share in self._shares:
            share.mul_(factor)


class _Unsharded(_Flat):
    """Stage 0: each worker needs the whole gradient. A worker adds up its share and all gather the shares, which sends
    less, in fp32, than an all-reduce of the sums does."""

    def __init__(self, deepspeed: Any, epsilon: float, num_micro_batches: int):
        start, slots = 0, []
        for parameter in deepspeed.module.parameters():
            if parameter.requires_grad:
                slots.append(_Slot(parameter, start, start + parameter.numel()))
                start += parameter.numel()
        world_size = dist.get_world_size()
        width = -(-start // world_size)
        super().__init__(deepspeed, epsilon, num_micro_batches, [slots], [width * world_size])
        # Kept, since new memory takes longer than what is done in it.
        self._whole = torch.zeros(width * world_size, device=self._device)
        deepspeed.allreduce_no_retain = _nothing

    def _reduce(self) -> list[Tensor]:
        (total,) = self._totals
        own = reduce_to_owners(total.view(dist.get_world_size(), -1))
        share = self._whole.view(dist.get_world_size(), -1)[dist.get_rank()]
        to_float(own, self._exponent, share)
        self._shares = [share]
        return self._shares

    def _hand_over(self) -> None:
        (share,), (slots,) = self._shares, self._groups
        if dist.get_world_size() > 1:
            dist.all_gather_into_tensor(self._whole, share.clone())
        for parameter, start, stop in slots:
            parameter.grad = self._whole[start:stop].view(parameter.shape)
        self._shares = []


class _Partitioned(_Flat):
    """Stages 1 and 2: the optimizer of each worker has a partition of each flattened parameter group."""

    def __init__(self, deepspeed: Any, epsilon: float, num_micro_batches: int):
        optimizer = deepspeed.optimizer
        groups = [
            [_slot_of(parameter, flat) for parameter in group]
            for group, flat in zip(optimizer.bit16_groups, optimizer.bit16_groups_flat, strict=True)
        ]
        sizes = [int(size) * dist.get_world_size() for size in optimizer.partition_size]
        super().__init__(deepspeed, epsilon, num_micro_batches, groups, sizes)
        for name in ("process_gradients", "reduce_gradients", "overlapping_partition_gradients_reduce_epilogue"):
            setattr(optimizer, name, _nothing)
        optimizer.scaled_global_norm = self._own_norm
        optimizer.unscale_and_clip_grads = _nothing

    def _reduce(self) -> list[Tensor]:
        self._shares = []
        for total in self._totals:
            own = reduce_to_owners(total.view(dist.get_world_size(), -1))
            share = torch.empty(len(own), device=self._device)
            to_float(own, self._exponent, share)
            self._shares.append(share)
        return self._shares

    def _hand_over(self) -> None:
        for index, share in enumerate(self._shares):
            self._optimizer.averaged_gradients[index] = [share]
        self._shares = []


class _Stage3(ExactGradients):
    """Stage 3: each parameter is partitioned, and its gradient leaves in the backward pass."""

    def __init__(self, deepspeed: Any, epsilon: float, num_micro_batches: int):
        super().__init__(deepspeed, epsilon, num_micro_batches)
        self._totals: dict[int, Tensor] = {}
        self._seen: set[int] = set()
        """Parameters of this backward pass."""
        self._sent = torch.empty(0, dtype=torch.int64, device=self._device)
        optimizer = self._optimizer
        optimizer._DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads = self._reduce_bucket
        optimizer._get_norm_groups = lambda: [self._own_norm()]
        optimizer.unscale_and_clip_grads = _nothing
        optimizer.check_overflow = _nothing

    def add_micro_batch(self) -> None:
        """The sums are complete: `_reduce_bucket` has been called for all parameters."""
        self._seen.clear()

    def add(self, parameter: Any, gradient: Tensor) -> None:
        width = parameter.partition_numel()
        own = gradient.reshape(-1)[dist.get_rank() * width :][:width]
        if (total := self._totals.get(parameter.ds_id)) is not None and own.numel():
            self._note_largest([own])
            add_fixed_point(total[: own.numel()], own, self._scale)

    def added(self) -> None:
        """Nothing is left to do."""

    @torch.no_grad()
    def _reduce_bucket(self, communication_data_type: torch.dtype) -> None:
        """Replaces DeepSpeed's function of that name: called in the backward pass whenever a bucket is full."""
        bucket = self._optimizer.ipg_buckets[communication_data_type]
        parameters = sorted(bucket.params, key=lambda parameter: parameter.ds_id)
        if not parameters:
            return
        names = [parameter.ds_id for parameter in parameters]
        if len(self._seen.union(names)) < len(self._seen) + len(names):
            raise ConfigError(
                "training.exactness=bitwise: a parameter's gradient comes in several pieces, as it does with reentrant "
                "checkpointing of a layer that is used twice: set use_reentrant=False, or training.zero_stage to at "
                "most 2"
            )
        self._seen.update(names)
        if self._device.type == "cuda":  # on which DeepSpeed copies gradients into the bucket
            torch.cuda.current_stream(self._device).wait_stream(self._optimizer.reduce_and_partition_stream)
        self._note_largest([parameter.grad for parameter in parameters])
        world_size = dist.get_world_size()
        widths = [parameter.partition_numel() for parameter in parameters]
        # (world_size, sum of widths): DeepSpeed pads each parameter, and cuts it into equal parts
        if self._sent.numel() < world_size * sum(widths):  # kept, since new memory takes longer than what is done here
            self._sent = torch.empty(world_size * sum(widths), dtype=torch.int64, device=self._device)
        rows = self._sent[: world_size * sum(widths)].view(world_size, -1)
        start = 0
        for parameter, width in zip(parameters, widths, strict=True):
            parts = parameter.grad.reshape(-1).split(width)
            for row, part in itertools.zip_longest(rows, parts, fillvalue=parameter.grad.new_empty(0)):
                to_fixed_point(part, self._scale, row[start : start + len(part)])
                row[start + len(part) : start + width] = 0
            parameter.grad = None
            start += width
        for parameter, own in zip(parameters, reduce_to_owners(rows).split(widths), strict=True):
            if parameter.ds_id in self._totals:
                self._totals[parameter.ds_id].add_(own)
            else:
                self._totals[parameter.ds_id] = own.clone()
        bucket.params.clear()
        bucket.elements, bucket.process_group = 0, None

    def _clear(self) -> None:
        for total in self._totals.values():
            total.zero_()

    def _gradients(self) -> Iterator[tuple[Any, Tensor]]:
        """Trained parameters, and where the optimizer expects this worker's part of their gradients."""
        for index, group in enumerate(self._optimizer.fp16_groups):
            for parameter, gradient in zip(group, self._optimizer.averaged_gradients[index], strict=True):
                if parameter.requires_grad:
                    yield parameter, gradient.view(-1)

    def _reduce(self) -> list[Tensor]:
        for parameter, gradient in self._gradients():
            total = self._totals.get(parameter.ds_id)
            if total is None:  # the parameter is not used
                gradient.zero_()
            else:
                to_float(total, self._exponent, gradient)
        return [gradient for _, gradient in self._gradients()]

    def _multiply(self, factor: float) -> None:
        for _, gradient in self._gradients():
            gradient.mul_(factor)

    def _hand_over(self) -> None:
        """Nothing is left to do: the sums are where the optimizer expects them."""


def exact_gradients(deepspeed: Any, zero_stage: int, epsilon: float, num_micro_batches: int) -> ExactGradients:
    """The exact sums for a DeepSpeed engine; see `ExactGradients`. From now on its backward passes reduce nothing."""
    kinds: dict[int, type[Any]] = {0: _Unsharded, 1: _Partitioned, 2: _Partitioned, 3: _Stage3}
    return kinds[zero_stage](deepspeed, epsilon, num_micro_batches)


def _slot_of(parameter: Any, flat: Tensor) -> _Slot:
    """The place of a parameter that is a view of a flattened group."""
    start = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
    return _Slot(parameter, start, start + parameter.numel())


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing: replaces what DeepSpeed would do by itself."""
