"""The ZeRO stage of a worker group, when training.zero_stage is auto."""

from typing import Any

import pytest

from raytrain.config import Precision, TrainingConfig
from raytrain.sizing.shape import Layers, ModelShape
from raytrain.sizing.zero_stage import Group, memory_at, settle
from raytrain.steps.batches import BatchPlan

P = 10_000_000_000
LARGE = ModelShape(trained=(10_000_000,) * 1000, layers=Layers(48, 4096, 32, 16384, stores_scores=False))
OFFLOADING = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


def group(world_size: int, precision: Precision = Precision.BF16) -> Group:
    return Group(BatchPlan(32, 8, world_size), precision, max_length=128, use_gpu=True)


def stage(usable: float | None, world_size: int = 8, precision: Precision = Precision.BF16, **training: Any) -> Any:
    """`usable`: bytes a parameter."""
    usable_bytes = None if usable is None else int(usable * P)
    return settle(TrainingConfig(**training), LARGE, group(world_size, precision), usable_bytes).zero_stage


def test_the_lowest_that_fits() -> None:
    assert [stage(usable) for usable in (40, 18, 9, 4)] == [1, 1, 2, 3]
    assert [stage(usable, precision=Precision.FP32) for usable in (40, 12.5, 9, 5)] == [0, 1, 2, 3]


def test_more_workers_need_less() -> None:
    assert [stage(6.8, size) for size in (4, 8)] == [3, 2]


def test_there_is_room_for_what_the_estimate_may_be_wrong_by() -> None:
    at_1 = memory_at(TrainingConfig(zero_stage=1), LARGE, group(8))
    assert stage(at_1.total * 1.01 / P) == 2 and stage(at_1.total * 1.3 / P) == 1


def test_where_nothing_fits_it_is_the_one_that_needs_least() -> None:
    assert stage(1) == 3


def test_where_the_memory_is_not_known() -> None:
    assert stage(None) == 2


def test_what_is_configured_stands() -> None:
    assert [stage(40, zero_stage=given) for given in (0, 1, 2, 3)] == [0, 1, 2, 3]


def test_one_worker_has_nothing_to_shard() -> None:
    assert stage(1, 1, zero_stage=3) == stage(40, 1, Precision.FP32) == stage(1, 1, Precision.FP32) == 0
    assert stage(40, 1) == 1  # in 16 bits: what stage 0 is there


def test_one_worker_in_16_bits_takes_2_where_1_does_not_fit() -> None:
    needs = [memory_at(TrainingConfig(zero_stage=s), LARGE, group(1)).total / P for s in (1, 2)]
    assert needs[0] > needs[1]
    assert stage((needs[0] + needs[1]) / 2, 1) == 2


def test_zeros_own_options_need_zero() -> None:
    assert stage(1, 1, deepspeed=OFFLOADING, zero_stage=2) == 2
    assert stage(40, 2, Precision.FP32, deepspeed=OFFLOADING) == 1


def test_layers_that_are_not_known_leave_more_room() -> None:
    unknown = ModelShape(LARGE.trained)
    needs = memory_at(TrainingConfig(zero_stage=1), unknown, group(8)).total
    for room, expected in ((1.5, 2), (2.1, 1)):
        assert settle(TrainingConfig(), unknown, group(8), int(needs * room)).zero_stage == expected


@pytest.mark.parametrize("given", ["Auto", 4, -1])
def test_others_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="zero_stage"):
        TrainingConfig(zero_stage=given)
