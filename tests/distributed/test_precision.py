"""P8: fp16's loss scale, skipped updates and hysteresis, with DeepSpeed told that this CPU can do fp16."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import (
    allow_fp16_on_cpu,
    loss_sum,
    make_batch,
    make_engine,
    make_model,
    my_micro_batches,
    num_targets,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.mark.parametrize("world_size", [1, 2])
def test_masters_have_all_bits_of_the_weights_that_training_begins_with(world_size: int) -> None:
    """DeepSpeed rounds a pretrained model's weights to 16 bits, and makes the masters of those."""
    for setup, differences in run_workers(_masters, world_size)[0].items():
        assert differences == {}, setup


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_bf16_at_stage_1_adds_measures_and_clips_as_if_by_hand(world_size: int) -> None:
    """Three micro-batches, one of which leaves a parameter out; a step with a gradient that is not finite."""
    for found in run_workers(_flat_updates, world_size):
        norms, expected, is_skipped, is_unchanged = found
        assert norms == pytest.approx(expected, rel=2e-2)
        assert is_skipped and is_unchanged


def test_the_operations_of_an_update_do_not_grow_with_the_parameters() -> None:
    ((few, many),) = run_workers(_operations, 1)
    assert few == many


def _masters() -> dict[tuple[str, int], dict[str, float]]:
    allow_fp16_on_cpu()
    found = {}
    for precision in (Precision.BF16, Precision.FP16):
        for zero_stage in (1, 2, 3):
            engine = make_engine(zero_stage, precision=precision)
            state = engine.full_state_dict(only_trained=True) or {}
            engine.close()
            wanted = make_model().state_dict()
            apart = {name: float((state[name] - wanted[name]).abs().max()) for name in state}
            found[precision.value, zero_stage] = {name: value for name, value in apart.items() if value}
    return found


class _Halves(nn.Module):
    """Two matrices, of which a batch uses one or both."""

    def __init__(self, num_more: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(5, 7)
        self.more = nn.ModuleList(nn.Linear(5, 7) for _ in range(num_more))

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        out = self.first(x)
        if which.sum() > 0:
            out = out + self.second(x)
        return out + sum((one(x) for one in self.more), torch.zeros((), dtype=x.dtype))


def _halves_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(batch["x"].to(dtype), batch["which"]).float().square().sum() * batch["factor"][0]


def _halves_batches(step: int, factor: float = 1.0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
    return [
        {"x": torch.randn(4, 5, generator=generator), "which": torch.tensor(which), "factor": torch.tensor([factor])}
        for which in ([1], [0], [1])
    ]


def _flat_updates() -> tuple[list[float], list[float], bool, bool]:
    engine = make_engine(1, model=_Halves(), precision=Precision.BF16, num_micro_steps=3, clip=0.5)
    plain = _Halves()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01)
    norms, expected = [], []
    for step in range(4):
        batches = _halves_batches(step)
        norms.append(engine.train_step(batches, _halves_loss, 12.0, 1e-2).grad_norm)
        optimizer.zero_grad()
        for batch in batches:
            (_halves_loss(plain, batch) / 12.0).backward()
        for parameter in plain.parameters():
            dist.all_reduce(parameter.grad)
        expected.append(float(nn.utils.clip_grad_norm_(plain.parameters(), 0.5)))
        optimizer.step()
    before = owned_ranges(engine)
    is_skipped = engine.train_step(_halves_batches(9, math.inf), _halves_loss, 12.0, 1e-2).is_skipped
    kept = zip(before, owned_ranges(engine), strict=True)
    is_unchanged = all(torch.equal(a.tensors[kind], b.tensors[kind]) for a, b in kept for kind in a.tensors)
    engine.close()
    return norms, expected, is_skipped, is_unchanged


class _Counter(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operations() -> tuple[int, int]:
    """Of the update of a small model and of one with more parameters."""
    found = []
    for num_more in (1, 20):
        engine = make_engine(1, model=_Halves(num_more), precision=Precision.BF16, clip=0.1)
        for _ in range(2):
            engine.train_step(_halves_batches(0)[:1], _halves_loss, 4.0, 1e-2)
        engine.deepspeed.set_gradient_accumulation_boundary(True)
        engine.deepspeed.backward(_halves_loss(engine.deepspeed, _halves_batches(0)[0]))
        with _Counter() as counter:
            engine.deepspeed.step()
        found.append(counter.count)
        engine.close()
    return found[0], found[1]


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
