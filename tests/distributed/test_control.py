"""What the workers of a group agree on."""

import torch.distributed as dist
from launcher import run_workers

from raytrain.errors import DataError, RaytrainError
from raytrain.steps.batches import World
from raytrain.training.agreement import Control, StepSums


def test_sums_and_gathers() -> None:
    for rank, (sums, gathered, first) in enumerate(run_workers(_agree, 3)):
        assert sums == StepSums(loss_sum=6.0, num_tokens=30.0, wants_stop=1.0)
        assert gathered == [0, 1, 2]
        assert first == ([0, 1, 2] if rank == 0 else None)


def _agree() -> tuple[StepSums, list[int], list[int] | None]:
    control, rank = _control()
    sums = control.sum(StepSums(loss_sum=rank + 1, num_tokens=10.0, wants_stop=float(rank == 2)))
    return sums, control.gather(rank), control.gather_to_first(rank)


def test_an_error_on_one_worker_ends_all_of_them() -> None:
    """P17: nobody waits for a worker that has left, and the message is that worker's."""
    expected = (DataError, "worker 1: data/x: no such folder")
    assert run_workers(_fail_on_one, 3, timeout_s=60) == [expected] * 3


def _fail_on_one() -> tuple[type[RaytrainError], str]:
    control, rank = _control()

    def work() -> int:
        if rank == 1:
            raise DataError("data/x: no such folder")
        return rank

    try:
        control.all_succeed(work)
    except RaytrainError as error:
        return type(error), str(error)
    raise AssertionError("nothing was raised")


def _control() -> tuple[Control, int]:
    world = World(dist.get_rank(), dist.get_world_size())
    return Control(world, timeout_s=30), world.world_rank
