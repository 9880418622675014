"""The engine on a real GPU: every stage and precision, offloaded too, computes what the CPU does, and the plan's bytes.

Skipped on a machine without a GPU.
"""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import run_workers
from tiny_engine import make_engine, train
from torch import Tensor

from raytrain.checkpoint.index import RangeIndex
from raytrain.checkpoint.ranges import StorageRangeReader, write_ranges
from raytrain.config import LossScaleConfig, Precision, TrainingConfig
from raytrain.engine.deepspeed_config import build_deepspeed_config
from raytrain.engine.engine import Engine, detect_precision
from raytrain.engine.zero_state import load_ranges, load_scaler_state, owned_ranges, scaler_state
from raytrain.sizing.memory import Memory, activation_bytes, estimate_memory
from raytrain.sizing.shape import shape_of
from raytrain.storage import Storage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

GPU = torch.device("cuda", 0)
SETUPS = [(stage, offloads) for stage in range(4) for offloads in (False, True) if stage or not offloads]
SAVED_STEPS, NEXT_STEPS = 3, 5
# Of a loss near 2.5: TF32 is off by default; 8 and 11 bits of the other formats' fractions, over eight steps.
TOLERANCE = {Precision.FP32: 1e-4, Precision.BF16: 5e-2, Precision.FP16: 1e-2}
MIB = 2**20


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_every_stage_computes_what_the_cpu_does_and_loads_what_another_saved(
    precision: Precision, tmp_path: Path
) -> None:
    (expected,) = run_workers(_on_cpu, 1)
    (curves,) = run_workers(_on_gpu, 1, precision, str(tmp_path), backend="nccl", timeout_s=240)
    for setup, (curve, resumed) in curves.items():
        assert curve == pytest.approx(expected, abs=TOLERANCE[precision]), setup
        for source, after in resumed.items():
            same = 1e-5 if precision is Precision.FP32 else TOLERANCE[precision]
            assert after == pytest.approx(curves[source][0][SAVED_STEPS:], abs=same), f"{source} -> {setup}"


def test_auto_is_bf16_where_the_gpu_has_it() -> None:
    has_bf16 = torch.cuda.get_device_capability(GPU) >= (8, 0)
    assert detect_precision(Precision.AUTO, GPU) is (Precision.BF16 if has_bf16 else Precision.FP16)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_estimated_bytes_are_those_of_the_gpu(precision: Precision) -> None:
    (found,) = run_workers(_bytes, 1, precision, backend="nccl", timeout_s=240)
    for setup, (memory, state, most) in found.items():
        print(f"{precision} ZeRO {setup}: {memory}, state {state}, most {most}")
    for setup, (memory, state, most) in found.items():
        stage, offloads = setup
        assert memory.state == pytest.approx(state, rel=0.1), setup
        # On a GPU ZeRO-3 lets go of parameters earlier, and what is offloaded is not added up there: more is said.
        most_said = 2.5 if stage == 3 else 1.15 if offloads else 1.1
        assert 0.9 * most < memory.total < most_said * most, setup


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_estimated_activations_are_near_those_of_a_forward_on_the_gpu(precision: Precision, dropout: float) -> None:
    model = _bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
    layers = shape_of(model).layers
    assert layers is not None
    model = model.to(GPU, torch.bfloat16 if precision is Precision.BF16 else torch.float32)
    ids = torch.ones(32, 128, dtype=torch.long, device=GPU)
    model(input_ids=ids).logits.sum().backward()  # what libraries take once
    model.zero_grad()
    before = torch.cuda.memory_allocated()
    kept = model(input_ids=ids).logits
    measured = torch.cuda.memory_allocated() - before
    assert kept.requires_grad
    said = activation_bytes(layers, 32, 128, precision, use_gpu=True)
    print(f"activations {precision} dropout {dropout}: {said / measured:.3f} of {measured / MIB:.0f} MiB")
    assert said == pytest.approx(measured, rel=0.2)


def _on_cpu() -> list[float]:
    return train(make_engine(0), range(SAVED_STEPS + NEXT_STEPS))


def _on_gpu(precision: Precision, folder: str) -> dict[Any, tuple[list[float], dict[Any, list[float]]]]:
    """By setup: its losses, and those of the last steps after it has loaded what each of the others saved."""
    curves, scalers, saved = {}, {}, {}
    for setup in SETUPS:
        engine = _engine(setup, precision)
        curve = train(engine, range(SAVED_STEPS))
        ranges, scalers[setup] = owned_ranges(engine), scaler_state(engine)
        saved[setup] = write_ranges(Storage(folder), f"{_name(setup)}.safetensors", ranges)
        curve += train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
        full = engine.full_state_dict()
        assert full is not None
        assert all(tensor.device.type == "cpu" and tensor.dtype is torch.float32 for tensor in full.values())
        engine.close()
        curves[setup] = (curve, {})
    for setup in SETUPS:
        for source in SETUPS:
            engine = _engine(setup, precision)
            index = RangeIndex.of_files({saved[source].name: saved[source].ranges})
            load_ranges(engine, StorageRangeReader(Storage(folder), index), SAVED_STEPS)
            load_scaler_state(engine, scalers[source])
            curves[setup][1][source] = train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
            engine.close()
    return curves


def _engine(setup: tuple[int, bool], precision: Precision) -> Engine:
    stage, offloads = setup
    return make_engine(stage, precision=precision, device="cuda:0", deepspeed=_offloading(offloads))


def _offloading(offloads: bool) -> dict[str, Any]:
    return {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}} if offloads else {}


def _name(setup: tuple[int, bool]) -> str:
    return f"stage_{setup[0]}_{setup[1]}"


def _bert(**options: Any) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=8000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, **options)
    )


def _bytes(precision: Precision) -> dict[Any, tuple[Memory, int, int]]:
    """By setup: the estimate, bytes after the last backward pass, and at most in a step."""
    # The libraries' own workspace, of this thread and of the one that computes gradients.
    one = torch.ones(64, 64, device=GPU, requires_grad=True)
    (one @ one).sum().backward()
    return {setup: _bytes_of(precision, *setup) for setup in SETUPS}


def _bytes_of(precision: Precision, stage: int, offloads: bool) -> tuple[Memory, int, int]:
    gc.collect()  # engines are cycles
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = _bert()
    shape = shape_of(model)
    # Small against the model, so that they don't hide what is compared.
    buckets = {"reduce_bucket_size": 1_000_000, "allgather_bucket_size": 1_000_000}
    zero = {**buckets, **_offloading(offloads).get("zero_optimization", {})} if stage else {}
    training = TrainingConfig(
        global_batch_size=4,
        micro_batch_size=1,
        zero_stage=stage,
        deepspeed={"zero_optimization": zero} if zero else {},
        loss_scale=LossScaleConfig(initial_power=4),
    )
    engine = Engine(model, training, precision=precision, device=GPU, num_micro_steps=4)
    del model
    sample = {
        "input_ids": torch.ones(1, 2, dtype=torch.long, device=GPU),
        "labels": torch.zeros(1, dtype=torch.long, device=GPU),
    }
    after_backward, update = [0], engine.deepspeed.step

    def step() -> None:
        after_backward[0] = torch.cuda.memory_allocated()
        update()

    for number in range(3):
        if number == 2:
            engine.deepspeed.step = step
            torch.cuda.reset_peak_memory_stats()
        engine.train_step([sample] * 4, _loss, 1, 1e-3)
    most = torch.cuda.max_memory_allocated() - before
    engine.deepspeed.step = update
    config = build_deepspeed_config(training, precision=precision, num_micro_steps=4, can_overlap=True)
    memory = estimate_memory(
        shape, config, precision=precision, world_size=1, micro_batch_size=1, max_length=2, use_gpu=True
    )
    engine.close()
    return memory, after_backward[0] - before, most


def _loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss.float()
