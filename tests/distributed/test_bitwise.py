"""training.exactness=bitwise: the same bits at every number of workers and every ZeRO stage, with dropout on."""

import contextlib
import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import (
    NOTHING_KEPT,
    allow_fp16_on_cpu,
    assemble,
    bert_loss_sum,
    dealt_micro_batches,
    loss_sum,
    make_batch,
    make_bert,
    make_model,
    num_targets,
)
from torch import Tensor, nn

from raytrain.checkpoint.ranges import FP32, MOMENTS
from raytrain.config import Exactness, LossScaleConfig, OptimizerConfig, Precision, TrainingConfig
from raytrain.engine import exact_sums
from raytrain.engine.engine import LOSS_UNIT, Engine
from raytrain.engine.exact_sums import add_fixed_point, exponent_for, global_norm, reduce_to_owners, to_float
from raytrain.engine.zero_state import load_ranges, owned_ranges, weights_checksum
from raytrain.errors import ConfigError, TrainingError
from raytrain.steps.batches import micro_batch_seed

ZERO_STAGES = [0, 1, 2, 3]
SIZES = [2, 3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 5))]
STEPS, MICRO_BATCHES = 4, 6


@dataclass(frozen=True)
class Trained:
    """The run of one worker; all but the checksum and losses are the same on each."""

    digest: str | None
    """SHA-256 of weights and moments of all workers; on rank 0."""
    checksums: list[int]
    losses: list[float]
    norms: list[float]
    scales: list[tuple[float | None, bool]]


@pytest.fixture(scope="module")
def on_one_worker() -> dict[tuple[int, Precision], Trained]:
    return run_workers(_trained, 1, (0, 1), False)[0]


@pytest.mark.parametrize("workers", SIZES)
def test_weights_have_the_same_bits(on_one_worker: dict[tuple[int, Precision], Trained], workers: int) -> None:
    """P9, bitwise: a Transformers model with dropout, tied weights and gradient checkpointing, clipped."""
    results = run_workers(_trained, workers, tuple(ZERO_STAGES), workers == 3)
    for zero_stage, precision in results[0]:
        # In 16 bits, stage 0 is stage 1, and the one worker's stage 1 is the same as any.
        expected = on_one_worker[1, precision]
        runs = [result[zero_stage, precision] for result in results]
        place = f"ZeRO-{zero_stage}, {precision}"
        assert runs[0].norms == expected.norms, place
        assert [sum(parts) for parts in zip(*(run.losses for run in runs), strict=True)] == expected.losses, place
        totals = [sum(parts) % 2**64 for parts in zip(*(run.checksums for run in runs), strict=True)]
        assert totals == expected.checksums, place
        assert runs[0].digest == expected.digest, place
        assert runs[0].scales == expected.scales, place


def test_bits_change_with_the_seed_and_losses_fall(on_one_worker: dict[tuple[int, Precision], Trained]) -> None:
    other = run_workers(_trained, 1, (1,), False, 1)[0]
    for precision in (Precision.FP32, Precision.BF16, Precision.FP16):
        assert other[1, precision].digest != on_one_worker[1, precision].digest
        assert on_one_worker[1, precision].losses[-1] < on_one_worker[1, precision].losses[0]
    assert on_one_worker[0, Precision.FP32].digest == on_one_worker[1, Precision.FP32].digest


def test_the_place_of_a_weight_in_memory_does_not_matter() -> None:
    """Sizes that are no multiples of four, and products with one row: without MKL_CBWR, MKL adds them up in another
    order where a matrix does not begin at a multiple of 16 bytes, as after flattening."""
    digests = {digest for workers in (1, 2) for digest in run_workers(_odd_sizes, workers)[0]}
    assert len(digests) == 1


def test_exact_sums_train_as_well_as_rounded_ones() -> None:
    exact, rounded = run_workers(_two_ways, 2)[0]
    assert exact == pytest.approx(rounded, rel=1e-6)


def test_a_resumed_run_has_the_same_bits() -> None:
    """Saved by three workers in ZeRO-3, resumed by two in ZeRO-1."""
    whole = run_workers(_resumed, 1, None)[0][0]
    saved = run_workers(_resumed, 3, None, 3, 2)
    resumed = run_workers(_resumed, 2, [ranges for _, ranges in saved], 1, STEPS, 2)
    assert resumed[0][0] == whole


@pytest.mark.parametrize("zero_stage", [0, 2, 3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_gradient_that_is_not_finite_updates_nothing(zero_stage: int) -> None:
    for norm, is_skipped, is_unchanged, next_norm in run_workers(_poisoned, 2, zero_stage):
        assert (norm, is_skipped, is_unchanged) == (math.inf, True, True)
        assert math.isfinite(next_norm)


def test_what_can_not_be_exact_is_refused() -> None:
    for messages in run_workers(_refused, 2):
        # Of the worker whose buffer it is, and of the other.
        assert re.search(r"buffer (norm\.\w+|\(of another worker\)) changes in training", messages[0])
        assert "too large" in messages[1]


def test_a_failure_leaves_the_process_as_it_was() -> None:
    assert run_workers(_failed_construction, 1)[0] == (False, 0)


def test_sums_and_norm_do_not_depend_on_how_elements_are_shared() -> None:
    """Values far apart, in blocks that fit into 32 bits and others that don't."""
    results = {size: run_workers(_shared_sums, size) for size in (1, 2, 3)}
    (total, norm), *_ = results[1]
    assert norm == pytest.approx(float(torch.linalg.vector_norm(total.double())), rel=1e-6)
    for size, parts in results.items():
        assert torch.equal(torch.cat([part for part, _ in parts])[: len(total)], total), size
        assert {norm for _, norm in parts} == {norm}


def _engine(
    zero_stage: int, model: nn.Module, precision: Precision = Precision.FP32, exactness: str = "bitwise"
) -> Engine:
    training = TrainingConfig(
        global_batch_size=12,
        micro_batch_size=2,
        zero_stage=zero_stage,
        gradient_clipping=1.0,
        exactness=Exactness(exactness),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loss_scale=LossScaleConfig(initial_power=8),
        deepspeed=NOTHING_KEPT if zero_stage == 3 else {},
    )
    return Engine(model, training, precision=precision, device=torch.device("cpu"), num_micro_steps=1)


def _with_norm_in_training(model: Any, is_training: bool) -> nn.Module:
    model.module.norm.train(is_training)
    return model


def _step(engine: Engine, step: int, loss: Any = loss_sum, seed: int = 0, num: int = MICRO_BATCHES) -> Any:
    batch = make_batch(12, seed=step)
    batch["labels"] = batch["labels"].clamp(min=0)
    micro_batches, numbers = dealt_micro_batches(batch, num)
    seeds = [micro_batch_seed(seed, step, number) for number in numbers]
    return engine.train_step(micro_batches, loss, num_targets(batch), 1e-2, seeds)


def _trained(stages: tuple[int, ...], checkpoints: bool, seed: int = 0) -> dict[tuple[int, Precision], Trained]:
    allow_fp16_on_cpu()
    precisions = (Precision.FP32, Precision.BF16, Precision.FP16)
    return {(stage, p): _train(stage, p, checkpoints, seed) for stage in stages for p in precisions}


def _train(zero_stage: int, precision: Precision, checkpoints: bool, seed: int) -> Trained:
    engine = _engine(zero_stage, make_bert(0.1, checkpoints=checkpoints), precision)
    run = Trained(None, [], [], [], [])
    for step in range(STEPS):
        result = _step(engine, step, bert_loss_sum, seed)
        assert (result.loss_sum / LOSS_UNIT).is_integer()
        run.losses.append(result.loss_sum)
        run.norms.append(result.grad_norm)
        run.scales.append((result.loss_scale, result.is_skipped))
        run.checksums.append(weights_checksum(engine))
    digest = _digest(engine)
    engine.close()
    return Trained(digest, run.checksums, run.losses, run.norms, run.scales)


def _digest(engine: Engine) -> str | None:
    everything: list[Any] = [None] * engine.world_size
    dist.all_gather_object(everything, owned_ranges(engine))
    digest = hashlib.sha256()
    for kind in (FP32, *MOMENTS):
        for name, tensor in sorted(assemble(everything, kind).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _two_ways() -> list[list[float]]:
    ways = []
    for exactness in ("bitwise", "rounding"):
        engine = _engine(1, make_model(), exactness=exactness)
        losses = torch.tensor([_step(engine, step).loss_sum for step in range(8)])
        dist.all_reduce(losses)
        ways.append((losses / 12).tolist())
        engine.close()
    return ways


class _Saved:
    """Reads ranges of states that are in memory."""

    def __init__(self, ranges_of_workers: Any):
        self._whole = {kind: assemble(ranges_of_workers, kind) for kind in (FP32, *MOMENTS, "buffer")}

    def load(self, wanted: Any) -> None:
        for want in wanted:
            elements = self._whole[want.kind][want.name]
            want.target.copy_(elements[want.start : want.start + want.target.numel()])


def _resumed(saved: Any, zero_stage: int = 0, steps: int = STEPS, first: int = 0) -> tuple[str | None, Any]:
    engine = _engine(zero_stage, make_model())
    if saved is not None:
        load_ranges(engine, _Saved(saved), first)
    for step in range(first, steps):
        _step(engine, step)
    result = _digest(engine), owned_ranges(engine)
    engine.close()
    return result


def _poisoned(zero_stage: int) -> tuple[float, bool, bool, float]:
    def poisoned(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return loss_sum(model, batch) * (math.nan if dist.get_rank() == 1 else 1.0)

    engine = _engine(zero_stage, make_model())
    _step(engine, 0)
    before = _digest(engine)
    result = _step(engine, 1, poisoned)
    unchanged = _digest(engine) == before
    following = _step(engine, 2)
    engine.close()
    return result.grad_norm, result.is_skipped, unchanged, following.grad_norm


class _WithStatistics(nn.Module):
    """Whose statistics change on one worker only, and not in the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.tagger = make_model()
        self.norm = nn.BatchNorm1d(6).eval()
        self.register_buffer("unused", torch.tensor(math.nan))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.tagger(input_ids))


class _OddSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.odd, self.outer = nn.Linear(6, 64), nn.Parameter(torch.ones(3, 1)), nn.Linear(64, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(input_ids.float() / 13) * self.odd[0]))


def _odd_sizes() -> list[str | None]:
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(
            model(batch["input_ids"]), batch["labels"][:, 0].clamp(0, 4), reduction="sum"
        )

    digests = []
    for zero_stage in ZERO_STAGES:
        engine = _engine(zero_stage, _OddSizes())
        for step in range(4):
            _step(engine, step, loss, num=12)
        digests.append(_digest(engine))
        engine.close()
    return digests


def _failed_construction() -> tuple[bool, int]:
    from raytrain.engine import engine as module

    def out_of_memory(*_: Any) -> None:
        raise MemoryError

    module.exact_gradients = out_of_memory
    model = make_model()
    with contextlib.suppress(MemoryError):
        _engine(1, model)
    hooks = sum(len(part._forward_hooks) for part in model.modules() if part is not model)  # DeepSpeed leaves one there
    return torch.are_deterministic_algorithms_enabled(), hooks


def _refused() -> list[str]:
    messages = []
    engine = _engine(0, _WithStatistics())
    try:
        _step(engine, 0, lambda model, batch: loss_sum(_with_norm_in_training(model, False), batch))
        _step(engine, 1, lambda model, batch: loss_sum(_with_norm_in_training(model, dist.get_rank() == 0), batch))
    except ConfigError as error:
        messages.append(str(error))
    engine.close()
    engine = _engine(2, make_model())
    try:
        _step(engine, 0, lambda model, batch: loss_sum(model, batch) * 1e12)
    except TrainingError as error:
        messages.append(str(error))
    engine.close()
    return messages


def _shared_sums() -> tuple[Tensor, float]:
    exact_sums._BLOCK = 100
    rank, world_size = dist.get_rank(), dist.get_world_size()
    exponent = exponent_for(1e-8)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(6, 1000, generator=generator) * torch.logspace(-7, 1, 1000)
    width = -(-1000 // world_size)
    total = torch.zeros(width * world_size, dtype=torch.int64)
    for row in numbers[rank::world_size]:
        add_fixed_point(total[:1000], row, 2.0**exponent)
    own = reduce_to_owners(total.view(world_size, width))
    share = torch.empty(width)
    to_float(own, exponent, share)
    return share, global_norm([share], torch.device("cpu"))
