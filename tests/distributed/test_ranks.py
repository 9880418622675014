"""AdaLoRA: the same ranks are kept at every number of workers and every ZeRO stage, also from a saved state."""

import contextlib
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from test_adapters import Held, batch_of, loss_sum, new_model
from tiny import tiny_encoder
from tiny_engine import NOTHING_KEPT, assemble, dealt_micro_batches
from torch import Tensor, nn

from raytrain.checkpoint.ranges import EXP_AVG, EXP_AVG_SQ, FP32, SENSITIVITY, StateRange
from raytrain.config import OptimizerConfig, Precision, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import load_ranges, owned_ranges, weights_checksum
from raytrain.models.rank_schedule import RankSchedule
from raytrain.steps.batches import micro_batch_seed

MICRO_BATCHES, RATE, STEPS, SAVED_AT = 6, 1e-2, 10, (4, 8)
ADAPTER = {"kind": "adalora", "rank": 2, "allocation": {"first_rank": 5}, "targets": ["query", "value", "output.dense"]}
SCHEDULE = RankSchedule(first_rank=5, last_rank=2, begin=1, end=7, every=2, orthogonality=0.5)
Result = tuple[list[float], dict[int, list[StateRange]], list[list[bool]], int]
"""(losses, what is saved after some steps, for each layer which ranks add to the output, number of ranks kept)."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("base"))


def new_engine(base: str, stage: int, precision: Precision = Precision.FP32, **options: Any) -> Engine:
    training = TrainingConfig(
        global_batch_size=12,
        micro_batch_size=2,
        zero_stage=stage,
        dropout=0.1,
        optimizer=OptimizerConfig(learning_rate=RATE),
        deepspeed=NOTHING_KEPT if stage == 3 else {},
        **options,
    )
    model = new_model(base, ADAPTER, training)
    micro_steps = MICRO_BATCHES // dist.get_world_size()
    device = torch.device("cpu")
    return Engine(model, training, precision=precision, device=device, num_micro_steps=micro_steps, ranks=SCHEDULE)


def train(engine: Engine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        mine, numbers = dealt_micro_batches(batch_of(step % 2), MICRO_BATCHES)
        seeds = [micro_batch_seed(0, step, number) for number in numbers]
        total = torch.tensor(engine.train_step(mine, loss_sum, 12, RATE, seeds).loss_sum, dtype=torch.float64)
        dist.all_reduce(total)
        losses.append(float(total) / 12)
    return losses


def working_ranks(engine: Engine) -> list[list[bool]]:
    """Of each layer the ranks whose factor is not 0 in the copy that a forward pass reads."""
    import deepspeed

    found = []
    for name, parameter in engine.module.named_parameters():
        if ".lora_E." in name:
            is_parted = engine.zero_stage == 3
            with deepspeed.zero.GatheredParameters([parameter]) if is_parted else contextlib.nullcontext():
                found.append((parameter.detach().view(-1) != 0).tolist())
    return found


def trained(base: str, stages: list[int], options: dict[str, Any]) -> dict[int, Result]:
    found = {}
    for stage in stages:
        with contextlib.closing(new_engine(base, stage, **options)) as engine:
            losses: list[float] = []
            saved = {}
            for begin, end in zip((0, *SAVED_AT), (*SAVED_AT, STEPS), strict=True):
                losses += train(engine, range(begin, end))
                saved[end] = owned_ranges(engine)
            assert engine.ranks is not None
            found[stage] = losses, saved, working_ranks(engine), engine.ranks.kept()
    return found


def continued(base: str, pickled: bytes, crossings: list[tuple[int, int, int]]) -> list[tuple[list[float], Any]]:
    """From what other workers have saved: (stage then, step, stage now)."""
    saved: list[dict[int, Result]] = pickle.loads(pickled)
    found = []
    for stage, step, other in crossings:
        with contextlib.closing(new_engine(base, other)) as engine:
            load_ranges(engine, Held([worker[stage][1][step] for worker in saved]), step)
            found.append((train(engine, range(step, STEPS)), working_ranks(engine)))
    return found


def by_peft(base: str) -> tuple[list[float], list[list[bool]]]:
    """The same steps in a plain loop with PEFT's own allocation."""
    import peft

    model: Any = new_model(base, ADAPTER, TrainingConfig(dropout=0.1))
    config = model.peft_config["default"]
    config.total_step, config.tinit, config.tfinal, config.deltaT = STEPS, SCHEDULE.begin, STEPS - SCHEDULE.end, 2
    owner: Any = peft.tuners.adalora.AdaLoraModel.__new__(peft.tuners.adalora.AdaLoraModel)
    nn.Module.__init__(owner)
    owner.model, owner.peft_config, owner.trainable_adapter_name = model, model.peft_config, "default"
    owner.rankallocator = peft.tuners.adalora.RankAllocator(model, config, "default")
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in weights.values():
        groups[parameter.ndim > 1].append(parameter)
    decayed = [{"params": groups[True], "weight_decay": 0.01}, {"params": groups[False], "weight_decay": 0.0}]
    adamw, losses = torch.optim.AdamW(decayed, lr=RATE), []
    model.train()
    for step in range(STEPS):
        mine, numbers = dealt_micro_batches(batch_of(step % 2), MICRO_BATCHES)
        losses.append(0.0)
        for micro_batch, number in zip(mine, numbers, strict=True):
            torch.manual_seed(micro_batch_seed(0, step, number))
            loss = loss_sum(model, micro_batch) / 12
            loss.backward()
            losses[-1] += float(loss.detach())
        penalties: list[Tensor] = []
        for name, parameter in weights.items():
            if ".lora_A." in name or ".lora_B." in name:
                square = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
                penalties.append(torch.norm(square - torch.eye(len(square)), p="fro"))
        (SCHEDULE.orthogonality * torch.stack(penalties).mean()).backward()
        nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        adamw.step()
        before = {name: parameter.detach().clone() for name, parameter in weights.items() if ".lora_E." in name}
        owner.update_and_allocate(step + 1)
        for name, value in before.items():  # moments of removed ranks are removed too, which PEFT leaves
            removed = (value != 0) & (weights[name] == 0)
            for kind in (EXP_AVG, EXP_AVG_SQ):
                adamw.state[weights[name]][kind].masked_fill_(removed, 0.0)
        adamw.zero_grad()
    return losses, [(p.detach().view(-1) != 0).tolist() for name, p in weights.items() if ".lora_E." in name]


def check(found: list[dict[int, Result]], losses: list[float], ranks: list[list[bool]]) -> None:
    for stage in found[0]:
        for worker in found:
            assert worker[stage][0] == pytest.approx(losses, abs=2e-5), stage
            assert worker[stage][2] == ranks, stage
            assert worker[stage][3] == sum(map(sum, ranks))
        ranges = [worker[stage][1][STEPS] for worker in found]
        values = {kind: assemble(ranges, kind) for kind in (FP32, EXP_AVG, EXP_AVG_SQ)}
        names = [name for name in values[FP32] if ".lora_E." in name]
        for kind, tensors in values.items():
            assert [(tensors[name] != 0).tolist() for name in names] == ranks, (stage, kind)
        assert all(float(assemble(ranges, SENSITIVITY)[name].max()) > 0 for name in names)


def test_the_ranks_depend_neither_on_stage_nor_on_size(base: str) -> None:
    two = run_workers(trained, 2, base, [0, 1, 2, 3], {})
    losses, ranks = by_peft_in_a_worker(base)
    assert sum(map(sum, ranks)) == 2 * len(ranks) < 5 * len(ranks)
    assert len({sum(row) for row in ranks}) > 1, "layers keep different numbers"
    check(two, losses, ranks)
    crossings = [(3, 4, 1), (1, 4, 3), (0, 8, 2), (2, 8, 0)]
    for crossing, (rest, kept) in zip(
        crossings, run_workers(continued, 1, base, pickle.dumps(two), crossings)[0], strict=True
    ):
        assert rest == pytest.approx(losses[crossing[1] :], abs=2e-5), crossing
        assert kept == ranks, crossing


def by_peft_in_a_worker(base: str) -> tuple[list[float], list[list[bool]]]:
    found: tuple[list[float], list[list[bool]]] = run_workers(by_peft, 1, base)[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_other_sizes(base: str, size: int) -> None:
    check(run_workers(trained, size, base, [0, 1, 2, 3], {}), *by_peft_in_a_worker(base))


def in_16_bits(base: str) -> dict[int, tuple[list[list[bool]], int]]:
    found = {}
    for stage in (1, 2, 3):
        with contextlib.closing(new_engine(base, stage, Precision.BF16)) as engine:
            train(engine, range(STEPS))
            assert engine.ranks is not None
            found[stage] = working_ranks(engine), engine.ranks.kept()
    return found


@pytest.mark.slow
def test_bf16_keeps_as_many(base: str) -> None:
    for size in (1, 2):
        for worker in run_workers(in_16_bits, size, base):
            for stage, (ranks, kept) in worker.items():
                assert sum(map(sum, ranks)) == kept == 2 * len(ranks), stage


def checksums(base: str) -> list[tuple[int, list[list[bool]]]]:
    found = []
    for stage in range(4):
        with contextlib.closing(new_engine(base, stage, exactness="bitwise")) as engine:
            train(engine, range(STEPS))
            found.append((weights_checksum(engine), working_ranks(engine)))
    return found


@pytest.mark.slow
def test_the_same_bits(base: str) -> None:
    found = [run_workers(checksums, size, base) for size in (1, 2, 3)]
    assert len({sum(part[stage][0] for part in parts) % 2**64 for parts in found for stage in range(4)}) == 1
    assert len({str(part[stage][1]) for parts in found for part in parts for stage in range(4)}) == 1
