"""P7: a step's gradient is that of the mean over all targets of the global batch, however it is split."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import (
    allow_fp16_on_cpu,
    assemble,
    bert_loss_sum,
    dealt_micro_batches,
    loss_sum,
    make_batch,
    make_bert,
    make_engine,
    make_model,
    my_micro_batches,
    num_targets,
    train,
)
from torch import Tensor, nn

from raytrain.checkpoint.ranges import EXP_AVG, FP32, StateRange
from raytrain.config import OptimizerConfig, Precision, TrainingConfig
from raytrain.engine.optimizer import make_optimizer
from raytrain.engine.zero_state import owned_ranges
from raytrain.steps.batches import micro_batch_seed

STEP_SAMPLES = [12, 12, 5]  # the last step of an epoch is ragged
ZERO_STAGES = [0, 1, 2, 3]
MICRO_SIZES = [1, 4]
HALF = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass
class BertRun:
    """What one worker has seen of a run."""

    losses: list[float]
    """Its share of the loss of each step."""
    scales: list[tuple[float | None, bool]]
    """The loss scale of each step, and whether its update was skipped."""


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradient_is_that_of_the_mean_over_all_targets(world_size: int) -> None:
    """After each step AdamW's first moment, which is linear in the gradients, equals plain PyTorch's."""
    expected = _reference()
    results = run_workers(_run_steps, world_size)
    for zero_stage in ZERO_STAGES:
        for micro_size in MICRO_SIZES:
            for step in range(len(STEP_SAMPLES)):
                runs = [result[zero_stage, micro_size][step] for result in results]
                moments = assemble([ranges for ranges, _, _ in runs], EXP_AVG)
                where = f"ZeRO-{zero_stage}, micro-batch {micro_size}, step {step}"
                assert set(moments) == set(expected[step]["moments"]), where
                for name, moment in expected[step]["moments"].items():
                    scale = moment.abs().max()
                    assert torch.allclose(moments[name], moment, rtol=0, atol=1e-5 * scale), f"{where}: {name}"
                norms = {norm for _, norm, _ in runs}
                assert len(norms) == 1, f"{where}: all workers see one norm"
                assert norms.pop() == pytest.approx(expected[step]["norm"], rel=1e-5), where
                assert sum(loss for _, _, loss in runs) == pytest.approx(expected[step]["loss_sum"], rel=1e-5), where


def test_clipping_bounds_the_whole_gradient() -> None:
    for result in run_workers(_clipped_norms, 2):
        for zero_stage, (norm, moment_norm) in result.items():
            assert norm > 1e-2, "the norm that is reported is the one before clipping"
            assert moment_norm == pytest.approx(0.1 * 1e-2, rel=1e-3), f"ZeRO-{zero_stage}"


def test_full_state_dict_is_the_masters_under_the_modules_names() -> None:
    """bf16: the fp32 masters, not their rounded copies; tied weights under both names; None but on rank 0."""
    for zero_stage, (full, ranges, names) in run_workers(_state_dicts, 2)[0].items():
        assert list(full) == names, f"ZeRO-{zero_stage}"
        assert full["output.weight"] is full["embedding.weight"]
        assert full["gain"].tolist() == [1.0, 1.0, 1.0]
        for piece in ranges:
            if FP32 in piece.tensors:
                stop = piece.start + piece.tensors[FP32].numel()
                assert torch.equal(full[piece.name].flatten()[piece.start : stop], piece.tensors[FP32])
        assert all(tensor.dtype == torch.float32 for tensor in full.values())
        hidden = full["hidden.weight"]
        assert not torch.equal(hidden, hidden.bfloat16().float()), "masters have more digits than bf16"


SIZES = [(2, True), *(pytest.param(size, marks=pytest.mark.slow) for size in ((1, True), (3, False), (5, True)))]


@pytest.fixture(scope="module")
def bert_on_one_worker() -> dict[tuple[int, Precision, float], BertRun]:
    """Undisturbed: without gradient checkpointing, in ZeRO-1, by (stage, precision, dropout)."""
    return run_workers(_bert_runs, 1, (1,), False)[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dropout_is_the_same_at_every_stage_and_size(
    bert_on_one_worker: dict[tuple[int, Precision, float], BertRun], size: tuple[int, bool]
) -> None:
    """P9 with dropout on, of a Transformers model with tied weights: whatever the number of workers, the stage, and
    with gradient checkpointing, which has to meet the same dropout twice."""
    workers, checkpoints = size
    results = run_workers(_bert_runs, workers, tuple(ZERO_STAGES), checkpoints)
    differences = {}
    for zero_stage, precision, dropout in results[0]:
        expected = bert_on_one_worker[1, precision, dropout]
        runs = [result[zero_stage, precision, dropout] for result in results]
        losses = [sum(parts) for parts in zip(*(run.losses for run in runs), strict=True)]
        worst = max(abs(a - b) for a, b in zip(losses, expected.losses, strict=True))
        differences[zero_stage, precision, dropout] = worst
        assert runs[0].scales == expected.scales
        assert expected.losses[-1] < expected.losses[0]
    for zero_stage in ZERO_STAGES:
        assert max(differences[zero_stage, Precision.FP32, dropout] for dropout in (0.0, 0.1)) < 1e-5
        for precision, dtype in HALF.items():
            # What other sums alone do, without anything random; never less than one unit of the last place.
            by_sums = max(differences[zero_stage, precision, 0.0], torch.finfo(dtype).eps)
            assert differences[zero_stage, precision, 0.1] < 3 * by_sums, f"ZeRO-{zero_stage}, {precision}"


def test_dropout_follows_the_seed(bert_on_one_worker: dict[tuple[int, Precision, float], BertRun]) -> None:
    expected = bert_on_one_worker[1, Precision.FP32, 0.1].losses
    other = run_workers(_bert_runs, 1, (1,), False, 1)[0][1, Precision.FP32, 0.1].losses
    assert other != pytest.approx(expected, rel=1e-3), "dropout is on"


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_a_gradient_that_is_not_finite_updates_nothing(precision: Precision) -> None:
    """On one worker only: all of them must skip, and tell."""
    for result in run_workers(_poisoned_step, 2, precision):
        for zero_stage, (poisoned, next_step, is_unchanged) in result.items():
            where = f"{precision}, ZeRO-{zero_stage}"
            assert poisoned.is_skipped, where
            assert not math.isfinite(poisoned.grad_norm), where
            assert is_unchanged, where
            assert not next_step.is_skipped, where


def test_biases_and_norms_are_not_decayed() -> None:
    model = make_model()
    decayed, not_decayed = make_optimizer(
        model, TrainingConfig(optimizer=OptimizerConfig(weight_decay=0.1))
    ).param_groups
    assert decayed["weight_decay"] == 0.1
    assert not_decayed["weight_decay"] == 0.0
    ids = {id(parameter) for parameter in not_decayed["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in ids}
    assert names == {"hidden.bias", "norm.weight", "norm.bias", "output.bias"}
    assert all(parameter.requires_grad for parameter in decayed["params"] + not_decayed["params"])


def _reference() -> list[dict[str, Any]]:
    """Plain PyTorch, one process, each global batch in one piece."""
    torch.set_num_threads(1)
    model = make_model()
    optimizer = make_optimizer(model, TrainingConfig())
    records = []
    for step, num_samples in enumerate(STEP_SAMPLES):
        batch = make_batch(num_samples, seed=step)
        loss = loss_sum(model, batch)
        optimizer.zero_grad()
        (loss / num_targets(batch)).backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.step()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        records.append(
            {
                "moments": {name: optimizer.state[p]["exp_avg"].flatten().clone() for name, p in trained.items()},
                "norm": float(torch.cat([grad.flatten() for grad in grads]).norm()),
                "loss_sum": loss.item(),
            }
        )
    return records


def _run_steps() -> dict[tuple[int, int], list[tuple[list[StateRange], float, float]]]:
    records = {}
    for zero_stage in ZERO_STAGES:
        for micro_size in MICRO_SIZES:
            engine = make_engine(zero_stage, num_micro_steps=3, clip=0.0)
            runs = []
            for step, num_samples in enumerate(STEP_SAMPLES):
                batch = make_batch(num_samples, seed=step)
                result = engine.train_step(my_micro_batches(batch, micro_size), loss_sum, num_targets(batch), 1e-2)
                runs.append((owned_ranges(engine), result.grad_norm, result.loss_sum))
            records[zero_stage, micro_size] = runs
            engine.close()
    return records


def _clipped_norms() -> dict[int, tuple[float, float]]:
    norms = {}
    for zero_stage in ZERO_STAGES:
        engine = make_engine(zero_stage, clip=1e-2)
        batch = make_batch(12, seed=0)
        result = engine.train_step(my_micro_batches(batch, 4), loss_sum, num_targets(batch), 1e-2)
        moments = [piece.tensors[EXP_AVG] for piece in owned_ranges(engine) if EXP_AVG in piece.tensors]
        square = torch.cat(moments).square().sum()
        dist.all_reduce(square)
        norms[zero_stage] = result.grad_norm, float(square.sqrt())
        engine.close()
    return norms


def _state_dicts() -> dict[int, tuple[dict[str, Tensor], list[StateRange], list[str]]] | None:
    records = {}
    for zero_stage in ZERO_STAGES:
        engine = make_engine(zero_stage, precision=Precision.BF16)
        batch = make_batch(12, seed=0)
        engine.train_step(my_micro_batches(batch, 4), loss_sum, num_targets(batch), 1e-2)
        full = engine.full_state_dict()
        records[zero_stage] = full, owned_ranges(engine), list(make_model().state_dict())
        engine.close()
        assert (full is None) == (dist.get_rank() != 0)
    return records if full is not None else None


def _bert_runs(
    stages: tuple[int, ...], checkpoints: bool, seed: int = 0
) -> dict[tuple[int, Precision, float], BertRun]:
    allow_fp16_on_cpu()
    return {
        (zero_stage, precision, dropout): _bert_run(zero_stage, checkpoints, precision, dropout, seed)
        for zero_stage in stages
        for precision in (Precision.FP32, *HALF)
        for dropout in (0.0, 0.1)
    }


def _bert_run(zero_stage: int, checkpoints: bool, precision: Precision, dropout: float, seed: int) -> BertRun:
    model = make_bert(dropout, checkpoints=checkpoints)
    engine = make_engine(zero_stage, model=model, precision=precision)
    run = BertRun([], [])
    for step in range(4):
        batch = make_batch(12, seed=0)
        batch["labels"] = batch["labels"].clamp(min=0)
        micro_batches, numbers = dealt_micro_batches(batch, 6)
        targets = num_targets(batch)
        seeds = [micro_batch_seed(seed, step, number) for number in numbers]
        result = engine.train_step(micro_batches, bert_loss_sum, targets, 1e-2, seeds)
        run.losses.append(result.loss_sum / targets)
        run.scales.append((result.loss_scale, result.is_skipped))
    engine.close()
    return run


def _poisoned_step(precision: Precision) -> dict[int, tuple[Any, Any, bool]]:
    def poisoned(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        loss = loss_sum(model, batch)
        return loss * float("nan") if dist.get_rank() == 0 else loss

    records = {}
    for zero_stage in ZERO_STAGES:
        engine = make_engine(zero_stage, precision=precision)
        batch = make_batch(12, seed=0)
        micro_batches, targets = my_micro_batches(batch, 4), num_targets(batch)
        engine.train_step(micro_batches, loss_sum, targets, 1e-2)
        before = owned_ranges(engine)
        result = engine.train_step(micro_batches, poisoned, targets, 1e-2)
        after = owned_ranges(engine)
        is_unchanged = all(
            torch.equal(a.tensors[kind], b.tensors[kind])
            for a, b in zip(before, after, strict=True)
            for kind in a.tensors
        )
        next_step = engine.train_step(micro_batches, loss_sum, targets, 1e-2)
        records[zero_stage] = result, next_step, is_unchanged
        engine.close()
    return records


def test_zero_3_holds_no_parameter_between_steps_here() -> None:
    """Otherwise the tests of this file would not see an error in gathering, of frozen weights too."""
    assert run_workers(_held_elements, 2) == [{"trained": 0, "frozen": 0}] * 2


def _held_elements() -> dict[str, int]:
    engine = make_engine(3)
    batch = make_batch(8, seed=0)
    engine.train_step(my_micro_batches(batch, 4), loss_sum, num_targets(batch), 1e-3)
    held = {"trained": 0, "frozen": 0}
    for parameter in engine.module.parameters():
        held["trained" if parameter.requires_grad else "frozen"] += parameter.data.numel()
    engine.close()
    return held


def test_a_step_trains_with_dropout_whatever_mode_the_model_came_in() -> None:
    """from_pretrained returns models in evaluation mode, and an evaluation leaves them in it."""
    assert run_workers(_modes_of_steps, 1)[0] == [True, True]


def _modes_of_steps() -> list[bool]:
    engine = make_engine(0, model=make_model().eval())
    batch = make_batch(4, seed=0)
    modes = []
    for _ in range(2):
        engine.train_step(my_micro_batches(batch, 4), loss_sum, num_targets(batch), 1e-3)
        modes.append(all(module.training for module in engine.module.modules()))
        engine.eval_mode()
    return modes


def test_a_closed_engine_leaves_the_process_as_it_was() -> None:
    """ZeRO-3 replaces torch's linear function by a slower one; later models of the process would compute with it. The
    same where an engine could not be built."""
    assert run_workers(_linear_functions, 1)[0] == ["during: False", "after: True", "after a failure: True"]


def _linear_functions() -> list[str]:
    original, found = nn.functional.linear, []
    engine = make_engine(3)
    found.append(f"during: {nn.functional.linear is original}")
    engine.close()
    found.append(f"after: {nn.functional.linear is original}")
    with pytest.raises(ZeroDivisionError):
        make_engine(3, model=_Unmovable())
    found.append(f"after a failure: {nn.functional.linear is original}")
    return found


class _Unmovable(nn.Linear):
    """Fails while DeepSpeed builds its engine, after ZeRO-3 has replaced the function."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def register_forward_hook(self, *args: Any, **options: Any) -> Any:
        raise ZeroDivisionError


def test_a_worker_alone_does_not_reduce_its_gradients() -> None:
    """With others it does, which shows that the profiler sees it."""
    assert run_workers(_gradient_reductions, 1)[0] == {(0, Precision.FP32): 0, (1, Precision.BF16): 0}
    assert all(count > 0 for count in run_workers(_gradient_reductions, 2)[0].values())


def _gradient_reductions() -> dict[tuple[int, Precision], int]:
    """All-reduces of more than one number in a step, by ZeRO stage and precision."""
    counts = {}
    for zero_stage, precision in [(0, Precision.FP32), (1, Precision.BF16)]:
        engine = make_engine(zero_stage, precision=precision)
        batch = make_batch(12, seed=0)
        with torch.profiler.profile(record_shapes=True) as profile:
            engine.train_step(my_micro_batches(batch, 4), loss_sum, num_targets(batch), 1e-2)
        reductions = [event for event in profile.events() if event.name == "gloo:all_reduce"]
        counts[zero_stage, precision] = sum(_largest(event.input_shapes) > 1 for event in reductions)
        engine.close()
    return counts


def _largest(shapes: list[Any]) -> int:
    return max((math.prod(shape) for shape in shapes if shape), default=0)


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_step_does_not_wait_for_the_device(zero_stage: int) -> None:
    """DeepSpeed's throughput timer would, twice a micro-batch."""
    assert run_workers(_waits, 1, zero_stage)[0] == 0


def _waits(zero_stage: int) -> int:
    from deepspeed.accelerator import get_accelerator

    accelerator, waits = get_accelerator(), 0
    original = accelerator.synchronize

    def counting(*args: Any) -> None:
        nonlocal waits
        waits += 1
        original(*args)

    engine = make_engine(zero_stage, num_micro_steps=3)
    train(engine, range(5))
    accelerator.synchronize = counting
    train(engine, range(5, 8))
    accelerator.synchronize = original
    engine.close()
    return waits
