"""P8: fp16's loss scale, skipped updates and hysteresis, with DeepSpeed told that this CPU can do fp16."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import allow_fp16_on_cpu, loss_sum, make_batch, make_engine, my_micro_batches, num_targets
from torch import Tensor, nn

from raytrain.config import LossScaleConfig, Precision
from raytrain.engine.engine import Engine, StepResult, detect_precision
from raytrain.engine.zero_state import owned_ranges, scaler_state
from raytrain.errors import ConfigError

ZERO_STAGES = [0, 1, 2, 3]


def test_fp16_skips_scales_and_recovers() -> None:
    """Scale 2**4, hysteresis 2, window 2, minimum 4; overflows on one worker only."""
    for result in run_workers(_overflow_story, 2):
        for zero_stage, (story, is_unchanged) in result.items():
            steps = [(step.is_skipped, step.loss_scale) for step in story]
            assert steps == [
                (False, 16.0),
                (True, 16.0),  # overflow: the first one only uses up hysteresis
                (True, 16.0),
                (True, 8.0),  # hysteresis stays used up until the scale grows again
                (True, 4.0),  # the minimum: it stays, and nothing is raised
                (True, 4.0),
                (False, 4.0),
                (False, 4.0),
                (False, 4.0),  # a window of two steps without overflow is over: it doubles after this one
                (False, 8.0),
            ], f"ZeRO-{zero_stage}"
            assert is_unchanged, "a skipped step updates nothing"
            assert all(step.grad_norm == float("inf") for step in story if step.is_skipped)


def test_fp16_gradients_do_not_depend_on_the_scale() -> None:
    """Clipping and the norm that is reported see unscaled gradients."""
    for result in run_workers(_norms_at_scales, 2):
        for zero_stage, norms in result.items():
            assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-2), f"ZeRO-{zero_stage}"


def test_scaler_state_is_json_and_empty_without_fp16() -> None:
    for with_fp16, without in run_workers(_scaler_states, 1):
        assert with_fp16 == {"cur_scale": 256.0, "cur_iter": 0, "last_overflow_iter": -1, "cur_hysteresis": 2}
        assert without == {}


def test_fp16_on_a_cpu_that_cannot() -> None:
    assert run_workers(_detect_fp16, 1)[0] == (True, Precision.FP16)


def _overflow_story() -> dict[int, tuple[list[StepResult], bool]]:
    allow_fp16_on_cpu()
    records = {}
    for zero_stage in ZERO_STAGES:
        scale = LossScaleConfig(initial_power=4, window=2, hysteresis=2, minimum=4.0)
        engine = make_engine(zero_stage, precision=Precision.FP16, loss_scale=scale)
        story = [_step(engine, loss_sum)]
        before = owned_ranges(engine)
        story += [_step(engine, _overflowing) for _ in range(5)]
        after = owned_ranges(engine)
        is_unchanged = all(
            torch.equal(a.tensors[kind], b.tensors[kind])
            for a, b in zip(before, after, strict=True)
            for kind in a.tensors
        )
        story += [_step(engine, loss_sum) for _ in range(4)]
        records[zero_stage] = story, is_unchanged
        engine.close()
    return records


def _overflowing(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss = loss_sum(model, batch)
    return loss * 1e30 if dist.get_rank() == 0 else loss


def _step(engine: Engine, loss_fn: Any) -> StepResult:
    batch = make_batch(12, seed=0)
    return engine.train_step(my_micro_batches(batch, 4), loss_fn, num_targets(batch), 1e-3)


def _norms_at_scales() -> dict[int, list[float]]:
    allow_fp16_on_cpu()
    records = {}
    for zero_stage in ZERO_STAGES:
        records[zero_stage] = []
        for power in (6, 10):
            engine = make_engine(
                zero_stage, precision=Precision.FP16, loss_scale=LossScaleConfig(initial_power=power), clip=0.5
            )
            records[zero_stage].append(_step(engine, loss_sum).grad_norm)
            engine.close()
        engine = make_engine(zero_stage)
        records[zero_stage].append(_step(engine, loss_sum).grad_norm)
        engine.close()
    return records


def _scaler_states() -> tuple[dict, dict]:
    allow_fp16_on_cpu()
    return scaler_state(make_engine(2, precision=Precision.FP16)), scaler_state(make_engine(2))


def _detect_fp16() -> tuple[bool, Precision]:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: False
    try:
        detect_precision(Precision.FP16, torch.device("cpu"))
        is_refused = False
    except ConfigError as error:
        is_refused = "needs a GPU" in str(error)
    allow_fp16_on_cpu()
    return is_refused, detect_precision(Precision.FP16, torch.device("cpu"))
