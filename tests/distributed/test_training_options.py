"""Options of training: what they compute, and that the result depends neither on workers nor on the ZeRO stage."""

import contextlib
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny import tiny_encoder
from tiny_engine import NOTHING_KEPT, assemble, dealt_micro_batches
from torch import Tensor, nn

from raytrain.checkpoint.ranges import AVERAGE, StateRange
from raytrain.config import ModelConfig, Precision, SequenceClassificationConfig, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import load_ranges, owned_ranges, weights_checksum
from raytrain.models.build import build_with_head
from raytrain.steps.batches import micro_batch_seed
from raytrain.tasks import make_task
from raytrain.tasks.smoothing import training_loss

LABELS, MICRO_BATCHES, RATE, STEPS = ["a", "b", "c"], 4, 1e-2, 5
TASK = make_task(SequenceClassificationConfig(kind="sequence_classification"), 16)
DECAY, ALPHA, SMOOTHING, EMA = 0.6, 8.0, 0.2, 0.7
OPTIONS = {
    "layerwise_lr_decay": DECAY,
    "neftune_alpha": ALPHA,
    "label_smoothing": SMOOTHING,
    "ema_decay": EMA,
}
CASES: list[tuple[dict[str, Any] | None, list[int], list[tuple[int, int]]]] = [
    (None, [0, 1, 2, 3], [(3, 1), (0, 2)]),
    ({"kind": "ia3", "feedforward": ["output.dense"]}, [1, 3], [(1, 3)]),
]
"""(adapter, ZeRO stages, from which stage on two workers to which on one)."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained encoder."""
    return tiny_encoder(tmp_path_factory.mktemp("base"))


def options_of(stage: int, **options: Any) -> TrainingConfig:
    return TrainingConfig(
        global_batch_size=12,
        micro_batch_size=3,
        zero_stage=stage,
        dropout=0.1,
        deepspeed=NOTHING_KEPT if stage == 3 else {},
        **options,
    )


def new_model(base: str, adapter: dict[str, Any] | None, training: TrainingConfig) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"path": base, "adapter": adapter})
    return build_with_head("AutoModelForSequenceClassification", config, LABELS, training)


def new_engine(base: str, adapter: dict[str, Any] | None, stage: int, **more: Any) -> Engine:
    training = options_of(stage, **OPTIONS, **more)
    micro_steps = MICRO_BATCHES // dist.get_world_size()
    model = new_model(base, adapter, training)
    return Engine(model, training, precision=Precision.FP32, device=torch.device("cpu"), num_micro_steps=micro_steps)


def batch_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    input_ids = torch.randint(5, 40, (12, 6), generator=generator)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids[:, 0] % 3}


def summed(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def train(engine: Engine, steps: range) -> list[float]:
    """The mean loss of each step, over all workers."""
    losses = []
    for step in steps:
        mine, numbers = dealt_micro_batches(batch_of(step), MICRO_BATCHES)
        seeds = [micro_batch_seed(0, step, number) for number in numbers]
        losses.append(summed(engine.train_step(mine, training_loss(TASK, SMOOTHING), 12, RATE, seeds).loss_sum) / 12)
    return losses


def evaluated(engine: Engine) -> list[float]:
    """Loss of the average, and of the weights themselves."""
    found = []
    for context in (engine.averaged(), contextlib.nullcontext()):
        with context, torch.no_grad():
            engine.eval_mode()
            found.append(float(TASK.predict(engine.module, batch_of(0))[0]))
    return found


class Held:
    """What all workers have saved, in memory."""

    def __init__(self, saved: list[list[StateRange]]):
        self._saved = saved

    def load(self, wanted: Any) -> None:
        for one in wanted:
            whole = assemble(self._saved, one.kind)
            one.target.copy_(whole[one.name][one.start : one.start + one.target.numel()])


def trained(base: str) -> list[dict[int, Any]]:
    """For each adapter by stage (losses, evaluations, what is saved after the third step, and at the end)."""
    found: list[dict[int, Any]] = []
    for adapter, stages, _ in CASES:
        found.append({})
        for stage in stages:
            with contextlib.closing(new_engine(base, adapter, stage)) as engine:
                losses = train(engine, range(3))
                middle = owned_ranges(engine)
                evaluated(engine)  # in between, it must leave no trace
                losses += train(engine, range(3, STEPS))
                found[-1][stage] = losses, evaluated(engine), middle, owned_ranges(engine)
    return found


def alone(base: str, pickled: bytes) -> list[dict[str, Any]]:
    """The same on one worker: from the start, from what two have saved, and without raytrain."""
    found = []
    for (adapter, _, crossings), saved in zip(CASES, pickle.loads(pickled), strict=True):
        continued = {}
        for stage, other in crossings:
            with contextlib.closing(new_engine(base, adapter, other)) as engine:
                load_ranges(engine, Held(saved[stage]), 3)
                continued[f"{stage} to {other}"] = train(engine, range(3, STEPS)), evaluated(engine)
        found.append({**continued, "by hand": by_hand(base, adapter)})
    return found


def depth_of(name: str) -> int:
    if ".layer." in name:
        return 1 + int(name.split(".layer.")[1].split(".")[0])
    return 0 if ".embeddings." in name else 3


def by_hand(base: str, adapter: dict[str, Any] | None) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """(losses, evaluations, the average), by torch alone."""
    model: Any = new_model(base, adapter, options_of(0))
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {
            "params": [parameter],
            "lr": RATE * DECAY ** (3 - depth_of(name)),
            "weight_decay": 0.01 if parameter.ndim > 1 and "ia3" not in name else 0.0,
        }
        for name, parameter in weights.items()
    ]
    adamw, losses = torch.optim.AdamW(groups), []
    average = {name: parameter.detach().clone() for name, parameter in weights.items()}

    def noisy(module: nn.Module, _: Any, embedded: Tensor) -> Tensor:
        bound = ALPHA / math.sqrt(embedded.shape[1] * embedded.shape[2])
        return embedded + torch.zeros_like(embedded).uniform_(-bound, bound)

    handle = model.get_input_embeddings().register_forward_hook(noisy)
    model.train()
    for step in range(STEPS):
        mine, numbers = dealt_micro_batches(batch_of(step), MICRO_BATCHES)
        losses.append(0.0)
        for batch, number in zip(mine, numbers, strict=True):
            torch.manual_seed(micro_batch_seed(0, step, number))
            log_p = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
            wanted = nn.functional.one_hot(batch["labels"], 3) * (1 - SMOOTHING) + SMOOTHING / 3
            loss = -(wanted * log_p).sum() / 12
            loss.backward()
            losses[-1] += float(loss.detach())
        nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        adamw.step()
        adamw.zero_grad()
        decay = min(EMA, (2 + step) / (11 + step))
        for name, parameter in weights.items():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    handle.remove()
    model.eval()
    found = [float(TASK.predict(model, batch_of(0))[0])]
    model.load_state_dict(average, strict=False)
    return losses, [float(TASK.predict(model, batch_of(0))[0]), *found], average


def test_the_result_depends_neither_on_stage_nor_on_size(base: str) -> None:
    workers = run_workers(trained, 2, base, timeout_s=400)
    saved = [
        {stage: [worker[which][stage][2] for worker in workers] for stage in workers[0][which]} for which in (0, 1)
    ]
    ones = run_workers(alone, 1, base, pickle.dumps(saved), timeout_s=400)[0]
    for which, one in enumerate(ones):
        losses, evaluations, average = one.pop("by hand")
        assert abs(evaluations[0] - evaluations[1]) > 0.01, "the average differs from the weights"
        for stage in workers[0][which]:
            for worker in workers:
                found = worker[which][stage]
                assert found[0] == pytest.approx(losses, abs=1e-5), stage
                assert found[1] == pytest.approx(evaluations, abs=1e-4), stage
            averages = assemble([worker[which][stage][3] for worker in workers], AVERAGE)
            assert averages.keys() == average.keys()
            for name, expected in average.items():
                if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, which AdamW scales up
                    torch.testing.assert_close(averages[name], expected.flatten(), atol=2e-5, rtol=1e-4)
        for what, (continued, its_evaluations) in one.items():
            assert continued == pytest.approx(losses[3:], abs=1e-5), what
            assert its_evaluations == pytest.approx(evaluations, abs=1e-4), what


def checksums(base: str) -> list[tuple[int, float]]:
    """Of this worker's part of the weights after some steps, and the loss of their average, by ZeRO stage."""
    found = []
    for stage in range(4):
        with contextlib.closing(new_engine(base, None, stage, exactness="bitwise")) as engine:
            train(engine, range(STEPS))
            found.append((weights_checksum(engine), evaluated(engine)[0]))
    return found


@pytest.mark.slow
def test_the_same_bits(base: str) -> None:
    found = [run_workers(checksums, size, base, timeout_s=400) for size in (1, 2)]
    assert len({sum(part[stage][0] for part in parts) % 2**64 for parts in found for stage in range(4)}) == 1
    assert len({part[stage][1] for parts in found for part in parts for stage in range(4)}) == 1


def test_the_files_hold_no_noise(base: str, tmp_path: Path) -> None:
    """A model in evaluation computes without noise, and in training with it, which the seed gives."""
    model, plain = (new_model(base, None, options_of(0, neftune_alpha=alpha)) for alpha in (ALPHA, 0.0))
    ids = batch_of(0)["input_ids"]
    with torch.no_grad():
        embed = model.get_input_embeddings()
        clean = plain.get_input_embeddings()(ids)
        assert torch.equal(embed.eval()(ids), clean) and model.state_dict().keys() == plain.state_dict().keys()
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(embed.train()(ids) - clean)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert 0.8 * ALPHA < float(found[0].abs().max()) * math.sqrt(6 * clean.shape[-1]) <= ALPHA * 1.001
