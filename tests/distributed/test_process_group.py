"""A worker's process outlives process groups: it forms the next one with other neighbours, also when one has died."""

import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import loss_sum, make_batch, make_engine, make_model, my_micro_batches, num_targets

from raytrain.elastic.worker_errors import error_of
from raytrain.engine.process_group import connect, process_group, take_down
from raytrain.engine.rendezvous import address_of, listen
from raytrain.errors import FailureCode
from raytrain.steps.batches import World
from raytrain.training.agreement import Control, StepSums

GROUPS = [(0,), (0, 1), (1, 2), (2, 0, 1), (1,)]
"""The processes of each group, in rank order."""


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_each_group_trains_as_the_first_one_did(zero_stage: int, tmp_path: Path) -> None:
    """Other sizes, other ranks, another rank 0: the same losses and gradient norms."""
    found = [run for runs in run_workers(_train_in_groups, 3, zero_stage, tmp_path) for run in runs]
    assert len(found) == sum(map(len, GROUPS))
    for losses in found:
        assert losses == pytest.approx(found[0], rel=1e-5)


def test_the_neighbours_of_a_dead_worker_form_a_new_group(tmp_path: Path) -> None:
    """They are told by an error, not left waiting, and what they then train is right."""
    results = run_workers(_lose_one, 3, tmp_path)
    assert results[0] is None
    assert results[1] == results[2] == pytest.approx(run_workers(_train_alone, 1)[0], rel=1e-5)


def test_one_whose_group_never_formed_finds_others(tmp_path: Path) -> None:
    """torch counts the groups of a process, also those that failed to form, and meets others by that number."""
    assert run_workers(_fail_to_form, 3, tmp_path)[1:] == [2, 2]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_who_loses_a_peer_says_so(zero_stage: int, tmp_path: Path) -> None:
    """In whichever collective of torch or DeepSpeed it is; gloo raises no type of its own."""
    assert run_workers(_lose_peer, 3, zero_stage, tmp_path)[1:] == [FailureCode.PEER_LOST] * 2


def _lose_peer(zero_stage: int, folder: Path) -> FailureCode | None:
    me = dist.get_rank()
    dist.barrier()  # the launcher's own group has formed everywhere
    take_down()
    try:
        with process_group(World(me, 3), "gloo", _store(World(me, 3), folder / "first")):
            engine = make_engine(zero_stage, model=make_model())
            for step in range(6):
                if me == 0 and step == 3:
                    return None  # this process's connections are closed
                batch = make_batch(8, seed=step)
                engine.train_step(my_micro_batches(batch, 2), loss_sum, num_targets(batch), 1e-2)
    except Exception as error:
        return error_of(error).code
    raise AssertionError("they went on without a peer")


def _fail_to_form(folder: Path) -> int | None:
    me = dist.get_rank()
    take_down()
    if me == 0:  # holds the store, and is gone before the group has formed
        store = _store(World(0, 2), folder / "first")
        while not (folder / "waiting").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        del store
        return None
    if me == 1:
        (folder / "waiting").touch()
        store = _store(World(1, 2), folder / "first")
        with pytest.raises(RuntimeError), process_group(World(1, 2), "gloo", store):
            raise AssertionError("a group without its rank 0 has formed")
    with process_group(World(me - 1, 2), "gloo", _store(World(me - 1, 2), folder / "second")):
        return dist.get_world_size()


def _train_in_groups(zero_stage: int, folder: Path) -> list[list[float]]:
    """This process's losses and norms in each group that it belongs to."""
    me = dist.get_rank()
    take_down()
    found = []
    for number, members in enumerate(GROUPS):
        if me in members:
            world = World(members.index(me), len(members))
            with process_group(world, "gloo", _store(world, folder / str(number))):
                found.append(_train(world, zero_stage))
    return found


def _lose_one(folder: Path) -> list[float] | None:
    me = dist.get_rank()
    take_down()
    try:
        with process_group(World(me, 3), "gloo", _store(World(me, 3), folder / "first")):
            _train(World(me, 3), 2)
            if me == 0:  # it holds the store, too
                return None  # the launcher ends this process
            time.sleep(0.5)
            _train(World(me, 3), 2)
    except RuntimeError:
        with process_group(World(me - 1, 2), "gloo", _store(World(me - 1, 2), folder / "second")):
            return _train(World(me - 1, 2), 2)
    raise AssertionError("a group without its rank 0 went on")


def _train_alone() -> list[float]:
    return _train(World(0, 1), 2)


def _train(world: World, zero_stage: int) -> list[float]:
    """Three steps of a new model: loss sums over all workers, and gradient norms."""
    control = Control(world)
    engine = make_engine(zero_stage, model=make_model())
    numbers = []
    for step in range(3):
        batch = make_batch(8, seed=step)
        result = engine.train_step(my_micro_batches(batch, 2), loss_sum, num_targets(batch), 1e-2)
        numbers += [control.sum(StepSums(loss_sum=result.loss_sum)).loss_sum, result.grad_norm]
    engine.close()
    return numbers


def _store(world: World, path: Path) -> dist.Store:
    """The workers meet at an address that rank 0 leaves in a file."""
    if world.world_rank == 0:
        listener = listen("127.0.0.1")
        path.with_suffix(".new").write_text(address_of(listener))
        os.replace(path.with_suffix(".new"), path)
        return connect(world, path.read_text(), listener)
    while not path.exists():
        time.sleep(0.01)
    return connect(world, path.read_text(), None)
