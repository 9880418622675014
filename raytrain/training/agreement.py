"""How the workers of a group agree: one small all-reduce per step, and occasionally a gathered value.

It uses gloo on the CPU, even beside NCCL, so that an agreement never waits for the GPU's queue. The objects sent here
go from one of our own workers to another; nothing that comes from storage is unpickled.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from raytrain.errors import RaytrainError
from raytrain.steps.batches import World

T = TypeVar("T")


@dataclass(frozen=True)
class StepSums:
    """What each worker contributes to a step's all-reduce; the result holds the sums over all workers."""

    loss_sum: float = 0.0
    """Loss of this step, summed over its targets."""
    num_samples: float = 0.0
    num_tokens: float = 0.0
    """Tokens, padding excluded."""
    num_padded_tokens: float = 0.0
    """Tokens, padding included: what was computed."""
    next_weight: float = 0.0
    """Sum of the weights of the next step's targets, the denominator of its mean loss."""
    saved: float = 0.0
    """1 when this worker has written its part of the pending checkpoint."""
    failed: float = 0.0
    """1 when this worker could not write its part."""
    wants_stop: float = 0.0
    """1 when this worker was told to stop."""
    busy: float = 0.0
    """1 when this worker can't take a snapshot now."""
    may_report: float = 0.0
    """1 when this worker can report to Ray Train; on rank 0 only if a report is also due."""
    committed: float = 0.0
    """Rank 0: step of a committed checkpoint that has not been reported yet; 0: none."""
    checksum_high: float = 0.0
    """With training.exactness=bitwise: the upper 32 bits of the checksum of this worker's weights."""
    checksum_low: float = 0.0
    """The lower 32 bits."""


class Control:
    """The control process group of one worker group."""

    def __init__(self, world: World, timeout_s: float = 1800.0):
        """Collective: every worker creates its own instance. torch.distributed must be initialized.

        `timeout_s`: how long to wait for the other workers.
        """
        self.world = world
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def sum(self, sums: StepSums) -> StepSums:
        """The sums over all workers; one all-reduce of a few float64."""
        vector = torch.tensor(astuple(sums), dtype=torch.float64)
        dist.all_reduce(vector, group=self._group)
        return StepSums(*vector.tolist())

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in rank order."""
        values: list[Any] = [None] * self.world.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_to_first(self, value: Any) -> Sequence[Any] | None:
        """Every worker's value on rank 0, None elsewhere."""
        is_first = self.world.world_rank == 0
        values: list[Any] | None = [None] * self.world.world_size if is_first else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values

    def all_succeed(self, work: Callable[[], T]) -> T:
        """Run work that may fail on one worker only; if it does, all workers raise that worker's error.

        Otherwise the others would wait in their next collective for a worker that has left. `work` itself must not
        hold a collective.

        Raises:
            RaytrainError: The first failed worker's error, raised on every worker with the same class and code.
        """
        result, failure = None, None
        try:
            result = work()
        except RaytrainError as error:
            failure = (type(error), f"worker {self.world.world_rank}: {error}", error.code)
        first = next((f for f in self.gather(failure) if f is not None), None)
        if first is not None:
            kind, message, code = first
            raise kind(message, code)
        return cast(T, result)

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every worker."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]
