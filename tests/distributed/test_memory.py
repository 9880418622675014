"""The plan's memory against real engines: what DeepSpeed holds after backward, and at its most."""

import gc
import math
from itertools import accumulate
from typing import Any

import pytest
import torch
from launcher import run_workers
from tiny_engine import allow_fp16_on_cpu
from torch import Tensor, nn

from raytrain.config import LossScaleConfig, Precision, TrainingConfig
from raytrain.engine.deepspeed_config import build_deepspeed_config
from raytrain.engine.engine import Engine
from raytrain.sizing.memory import Memory, activation_bytes, estimate_memory
from raytrain.sizing.shape import shape_of

MICRO_STEPS = 2
MEMORY: dict[str, Any] = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True}
# Small against the model, so that they don't hide what is compared.
BUCKETS = {
    "reduce_bucket_size": 100_000,
    "allgather_bucket_size": 100_000,
    "stage3_param_persistence_threshold": 1000,
}
BERT = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
"""900,000 parameters, the largest of which is no large part of them: what is on its way, at most, depends on threads
that give memory back unseen. Samples have two tokens, so that activations are nothing beside them."""


# Twelve set-ups with two workers; one and three workers, of which the latter share no parameter evenly.
@pytest.mark.parametrize(
    ("world_size", "precision"),
    [(2, Precision.FP32), (2, Precision.BF16), (2, Precision.FP16), (1, Precision.BF16), (3, Precision.BF16)],
)
@pytest.mark.slow
def test_estimated_bytes_are_those_of_the_engine(world_size: int, precision: Precision) -> None:
    """Of the worker that holds most, since partitions differ a little."""
    results = run_workers(_measure, world_size, precision)
    for zero_stage in range(4):
        memory, _ = results[0][zero_stage]
        after_backward, least, most = map(max, zip(*(r[zero_stage][1] for r in results), strict=True))
        assert memory.state == pytest.approx(after_backward, rel=0.1), f"ZeRO-{zero_stage}: {memory}"
        assert 0.9 * least < memory.total < 1.1 * most, f"ZeRO-{zero_stage}: {memory}, {least} to {most}"


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_estimated_activations_are_near_those_of_a_forward(precision: Precision, dropout: float) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = BertForSequenceClassification(BertConfig(**{**BERT, **rates})).train()
    layers = shape_of(model).layers
    assert layers is not None
    model = model.to(torch.bfloat16 if precision is Precision.BF16 else torch.float32)
    with torch.profiler.profile(**MEMORY) as profile:
        kept = model(input_ids=torch.ones(8, 64, dtype=torch.long)).logits
    measured = _sums(profile)[0][-1]
    assert kept.requires_grad
    assert activation_bytes(layers, 8, 64, precision, use_gpu=False) == pytest.approx(measured, rel=0.2)


def _measure(precision: Precision) -> dict[int, tuple[Memory, tuple[int, int, int]]]:
    allow_fp16_on_cpu()
    return {zero_stage: _measure_stage(zero_stage, precision) for zero_stage in range(4)}


def _measure_stage(zero_stage: int, precision: Precision) -> tuple[Memory, tuple[int, int, int]]:
    """The estimate, and what `_profiled_step` says."""
    from transformers import BertConfig, BertForSequenceClassification

    others = _live_storages()  # of the engine before, of which some parts live on; kept, so that no address comes again
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**BERT))
    shape = shape_of(model)
    training = TrainingConfig(
        global_batch_size=16,
        micro_batch_size=1,
        zero_stage=zero_stage,
        deepspeed={"zero_optimization": BUCKETS},
        loss_scale=LossScaleConfig(initial_power=4),
    )
    engine = Engine(model, training, precision=precision, device=torch.device("cpu"), num_micro_steps=MICRO_STEPS)
    del model
    _step(engine)
    _step(engine)
    between_steps = _bytes_beside(others)
    measured = _profiled_step(engine, others, between_steps)
    config = build_deepspeed_config(training, precision=precision, num_micro_steps=MICRO_STEPS, can_overlap=False)
    memory = estimate_memory(
        shape,
        config,
        precision=precision,
        world_size=engine.world_size,
        micro_batch_size=1,
        max_length=2,
        use_gpu=False,
    )
    engine.close()
    return memory, measured


def _profiled_step(engine: Engine, others: dict[int, Any], between_steps: int) -> tuple[int, int, int]:
    """Bytes of all tensors after the last backward pass; and at least and at most the largest that they came to.

    The profiler doesn't see what gloo's threads give back. How much that was is known after the backward pass, but not
    when it was.
    """
    after_backward = 0
    update = engine.deepspeed.step

    def step() -> None:
        nonlocal after_backward
        after_backward = _bytes_beside(others)
        with torch.profiler.record_function("update"):
            update()

    engine.deepspeed.step = step
    with torch.profiler.profile(**MEMORY) as profile:
        _step(engine)
    engine.deepspeed.step = update
    in_backward, in_update = _sums(profile)
    unseen = between_steps + in_backward[-1] - after_backward
    highest = between_steps + max(in_backward)
    updating = after_backward + max(in_update)
    return after_backward, max(highest - unseen, updating), max(highest, updating)


def _sums(profile: torch.profiler.profile) -> tuple[list[int], list[int]]:
    """Bytes that were taken, less those given back, after each such event before and in the update."""
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    began_at = next((event.start_ns() for event in events if event.name() == "update"), math.inf)
    memory = [event for event in events if event.name() == "[memory]"]
    before = [event.nbytes() for event in memory if event.start_ns() < began_at]
    after = [event.nbytes() for event in memory if event.start_ns() >= began_at]
    return list(accumulate(before, initial=0)), list(accumulate(after, initial=0))


def _step(engine: Engine) -> None:
    sample = {"input_ids": torch.ones(1, 2, dtype=torch.long), "labels": torch.zeros(1, dtype=torch.long)}
    assert not engine.train_step([sample] * MICRO_STEPS, _loss, 1, 1e-3).is_skipped


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss.float()


def _live_storages() -> dict[int, Any]:
    """Address -> memory of every tensor of this process."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage for storage in storages}


def _bytes_beside(others: dict[int, Any]) -> int:
    """Bytes of all tensors but for these."""
    return sum(storage.nbytes() for address, storage in _live_storages().items() if address not in others)
