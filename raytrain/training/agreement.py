"""How the workers of a group agree: one small all-reduce a step, and now and then a gathered value.

It runs over gloo on the CPU, also beside NCCL, so that agreeing never waits for the GPU's queue. The objects that
travel here go from one of our own workers to another; nothing that comes from storage passes through pickle.
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
    """What each worker adds to a step's all-reduce; the result holds the sums over all workers."""

    loss_sum: float = 0.0
    """Loss of this step, summed over its targets."""
    num_samples: float = 0.0
    num_tokens: float = 0.0
    """Tokens without padding."""
    num_padded_tokens: float = 0.0
    """Tokens with padding: what was computed."""
    next_weight: float = 0.0
    """Sum of the weights of the next step's targets, which its loss is a mean over."""
    saved: float = 0.0
    """1 when this worker's part of the checkpoint in flight is written."""
    failed: float = 0.0
    """1 when this worker could not write its part."""
    wants_stop: float = 0.0
    """1 when this worker was told to stop."""
    busy: float = 0.0
    """1 when this worker can't take a snapshot now."""
    may_report: float = 0.0
    """1 when this worker can report to Ray Train; on rank 0: and a report is due."""
    committed: float = 0.0
    """Rank 0: step of a checkpoint that is committed and has not been reported; 0: none."""


class Control:
    """The control group of one worker group."""

    def __init__(self, world: World, timeout_s: float = 1800.0):
        """Collective: every worker makes its own. torch.distributed is initialized already.

        `timeout_s`: the others are waited for so long.
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
        """Do something that may fail on one worker only; when it does, all raise that worker's error.

        Otherwise the others would wait in their next collective for a worker that has left. `work` itself must not
        hold a collective.

        Raises:
            RaytrainError: The first worker's, on every worker: of the same class and code.
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
