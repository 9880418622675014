"""The ZeRO stage of a worker group, when training.zero_stage is auto."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from raytrain.config import Precision, RunConfig, TrainingConfig
from raytrain.sizing.shape import Layers, ModelShape, shape_of
from raytrain.sizing.zero_stage import Group, memory_at, settle
from raytrain.steps.batches import BatchPlan

P = 10_000_000_000
LARGE = ModelShape(trained=(10_000_000,) * 1000, layers=Layers(48, 4096, 32, 16384, stores_scores=False))
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
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


def activations(model: ModelShape, of: Group, **training: Any) -> int:
    found = memory_at(TrainingConfig(**{"zero_stage": 1, **training}), model, of).activations
    assert found is not None
    return found


class TestWhatASampleIs:
    VOCABULARY = 50_000
    LAYERS = Layers(2, 64, 2, 256, stores_scores=False)

    @staticmethod
    def of(**changes: Any) -> Group:
        return replace(Group(BatchPlan(32, 8, 2), Precision.FP32, max_length=2048, use_gpu=True), **changes)

    def test_large_logits_are_never_there_at_once(self) -> None:
        bare = ModelShape((64 * self.VOCABULARY,), layers=self.LAYERS)
        model = replace(bare, vocabulary=self.VOCABULARY, head_trained=64 * self.VOCABULARY)
        tokens = 4 * 2048  # a micro-batch has four samples
        whole, least = 8 * self.VOCABULARY * tokens, activations(bare, self.of())
        assert activations(model, self.of()) - least < whole / 8
        excluded = [
            activations(model, self.of(), zero_stage=3),
            activations(model, self.of(), exactness="bitwise"),
            activations(replace(model, head_is_last=False), self.of()),
        ]
        assert [found - least for found in excluded] == [whole] * 3
        in_fp16 = self.of(precision=Precision.FP16)
        assert activations(model, in_fp16) - activations(bare, in_fp16) == whole // 2
        short = self.of(max_length=64)  # not so many that it would be worth while
        assert activations(model, short) - activations(bare, short) == 8 * self.VOCABULARY * 4 * 64

    def test_a_pair_is_two_sequences_whose_logits_are_there_at_once(self) -> None:
        pairs = self.of(is_of_pairs=True)
        bare = ModelShape((64,), layers=self.LAYERS)
        assert activations(bare, pairs) == 2 * activations(bare, self.of())
        model = replace(bare, vocabulary=self.VOCABULARY)
        assert activations(model, pairs) - activations(bare, pairs) == 8 * self.VOCABULARY * 2 * 4 * 2048

    def test_which_tasks_have_pairs(self) -> None:
        for kind, is_of_pairs in (("preference", True), ("reward", True), ("chat", False)):
            config = RunConfig.model_validate(
                {
                    "name": "test",
                    "task": {"kind": kind},
                    "model": {"path": "some/model"},
                    "data": {"train": {"path": "train.jsonl"}},
                    "training": {"global_batch_size": 32, "micro_batch_size": 4},
                }
            )
            assert Group.of(config, BatchPlan(32, 8, 2), Precision.FP32, use_gpu=True).is_of_pairs is is_of_pairs

    def test_an_image_is_its_patches(self) -> None:
        with torch.device("meta"):
            config = ViTConfig(**SIZES, image_size=32, patch_size=8)
            vision = shape_of(ViTForImageClassification(config))
        assert vision.layers is not None and vision.layers.patches == 17
        assert vision.vocabulary == 0
        long, short = self.of(max_length=512), self.of(max_length=8)
        assert activations(vision, long) == activations(vision, short) > 0

    def test_the_head_of_a_language_model(self) -> None:
        with torch.device("meta"):
            found = shape_of(LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=100)))
            capped = shape_of(CohereForCausalLM(CohereConfig(**SIZES, vocab_size=100)))
        assert (found.vocabulary, found.head_trained, found.head_is_last) == (100, 1600, True)
        assert capped.vocabulary == 100 and not capped.head_is_last
        assert found.layers is not None and found.layers.patches == 0
