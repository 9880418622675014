"""Training an adapter: the same losses at every number of workers and every ZeRO stage, and small checkpoints."""

import contextlib
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny import tiny_encoder
from tiny_engine import NOTHING_KEPT, assemble, dealt_micro_batches
from torch import Tensor, nn

from raytrain.checkpoint.ranges import StateRange
from raytrain.config import ModelConfig, OptimizerConfig, Precision, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import load_ranges, num_trained, owned_ranges, weights_checksum
from raytrain.models.build import build_with_head
from raytrain.steps.batches import micro_batch_seed

LABELS, MICRO_BATCHES, RATE = ["a", "b", "c"], 4, 1e-2
LORA = {"rank": 3, "dropout": 0.3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained encoder."""
    return tiny_encoder(tmp_path_factory.mktemp("base"))


def new_model(base: str, adapter: dict[str, Any] | None, training: TrainingConfig | None = None) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"path": base, "adapter": adapter})
    return build_with_head("AutoModelForSequenceClassification", config, LABELS, training or TrainingConfig())


def new_engine(base: str, adapter: dict[str, Any], stage: int, **options: Any) -> Engine:
    training = TrainingConfig(
        global_batch_size=12,
        micro_batch_size=3,
        zero_stage=stage,
        dropout=0.1,
        optimizer=OptimizerConfig(learning_rate=RATE),
        deepspeed=NOTHING_KEPT if stage == 3 else {},
        **options,
    )
    model = new_model(base, adapter, training)
    micro_steps = MICRO_BATCHES // dist.get_world_size()
    return Engine(model, training, precision=Precision.FP32, device=torch.device("cpu"), num_micro_steps=micro_steps)


def batch_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    input_ids = torch.randint(5, 40, (12, 6), generator=generator)
    return {"input_ids": input_ids, "labels": input_ids[:, 0] % len(LABELS)}


def loss_sum(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits.float()
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum", ignore_index=-100)


def train(engine: Engine, steps: range) -> list[float]:
    """The mean loss of each step, over all workers."""
    losses = []
    for step in steps:
        batch = batch_of(step % 2)
        mine, numbers = dealt_micro_batches(batch, MICRO_BATCHES)
        seeds = [micro_batch_seed(0, step, number) for number in numbers]
        found = engine.train_step(mine, loss_sum, len(batch["labels"]), RATE, seeds)
        total = torch.tensor(found.loss_sum, dtype=torch.float64)
        dist.all_reduce(total)
        losses.append(float(total) / len(batch["labels"]))
    return losses


class Held:
    """What all workers have saved, in memory."""

    def __init__(self, saved: list[list[StateRange]]):
        self._saved = saved

    def load(self, wanted: Any) -> None:
        whole: dict[str, dict[str, Tensor]] = {}
        for one in wanted:
            if one.kind not in whole:
                whole[one.kind] = assemble(self._saved, one.kind)
            one.target.copy_(whole[one.kind][one.name][one.start : one.start + one.target.numel()])


Saved = dict[int, list[StateRange]]
"""ZeRO stage -> what one worker saves after 3 steps."""


def trained(base: str, adapter: dict[str, Any], stages: list[int]) -> tuple[dict[int, list[float]], Saved, int]:
    """(losses of 6 steps at each stage, what this worker saves in between, trained elements)."""
    losses, saved, count = {}, {}, 0
    for stage in stages:
        with contextlib.closing(new_engine(base, adapter, stage)) as engine:
            losses[stage] = train(engine, range(3))
            saved[stage], count = owned_ranges(engine), num_trained(engine)
            losses[stage] += train(engine, range(3, 6))
    return losses, saved, count


def continued(base: str, adapter: dict[str, Any], stage: int, saved: list[list[StateRange]]) -> list[float]:
    """The losses of the last 3 steps from a saved state."""
    with contextlib.closing(new_engine(base, adapter, stage)) as engine:
        load_ranges(engine, Held(saved), 3)
        return train(engine, range(3, 6))


def alone(base: str, adapter: dict[str, Any], pickled: bytes) -> dict[str, list[float]]:
    """Losses of one worker: by itself, and from what two have saved."""
    saved: list[Saved] = pickle.loads(pickled)
    crossings = {
        f"{stage} to {other}": continued(base, adapter, other, [one[stage] for one in saved])
        for stage, other in ((3, 1), (1, 3), (0, 2))
    }
    with contextlib.closing(new_engine(base, adapter, 0, gradient_checkpointing=True)) as engine:
        return {"gradient checkpointing": train(engine, range(6)), "peft": by_peft(base, adapter), **crossings}


def by_peft(base: str, adapter: dict[str, Any]) -> list[float]:
    """The same steps in a plain loop with PEFT's own model."""
    import peft

    training = TrainingConfig(dropout=0.1)
    start = new_model(base, None, training)
    lora = peft.LoraConfig(
        r=adapter["rank"],
        lora_alpha=2 * adapter["rank"],
        lora_dropout=adapter["dropout"],
        use_dora=adapter.get("dora", False),
        target_modules=r"bert\.encoder\..*(query|key|value|dense)",
        modules_to_save=["classifier", "pooler", *adapter.get("also_train", [])],
    )
    model = peft.get_peft_model(start, lora)

    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1].append(parameter)
    decayed = [{"params": groups[True], "weight_decay": 0.01}, {"params": groups[False], "weight_decay": 0.0}]
    adamw, losses = torch.optim.AdamW(decayed, lr=RATE), []
    model.train()
    for step in range(6):
        batch = batch_of(step % 2)
        mine, numbers = dealt_micro_batches(batch, MICRO_BATCHES)
        total = 0.0
        for micro_batch, number in zip(mine, numbers, strict=True):
            torch.manual_seed(micro_batch_seed(0, step, number))
            loss = loss_sum(model, micro_batch) / len(batch["labels"])
            loss.backward()
            total += float(loss)
        nn.utils.clip_grad_norm_([p for group in groups.values() for p in group], 1.0)
        adamw.step()
        adamw.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize(
    "adapter", [LORA, pytest.param({**LORA, "dora": True, "also_train": ["LayerNorm"]}, marks=pytest.mark.slow)]
)
def test_losses_depend_neither_on_stage_nor_on_size(base: str, adapter: dict[str, Any]) -> None:
    workers = run_workers(trained, 2, base, adapter, [0, 1, 2, 3])
    losses, _, num = workers[0]
    expected = losses[0]
    assert expected[-1] < expected[1] - 0.05, "it learns"
    for stage in losses:
        assert losses[stage] == pytest.approx(expected, abs=1e-6), stage
        ranges = [one for _, saved, _ in workers for one in saved[stage]]
        assert sum(tensor.numel() for one in ranges for tensor in one.tensors.values()) == 3 * num, "no base is saved"
    pickled = pickle.dumps([saved for _, saved, _ in workers])  # tensors would be passed as file descriptors
    for what, found in run_workers(alone, 1, base, adapter, pickled)[0].items():
        tolerance = 1e-5 if what == "peft" else 1e-6
        assert found == pytest.approx(expected[-len(found) :], abs=tolerance), what


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LORA, {**LORA, "dora": True}])
def test_the_same_bits(base: str, adapter: dict[str, Any]) -> None:
    found = [run_workers(checksums, size, base, adapter) for size in (1, 2)]
    assert len({sum(part[stage] for part in parts) % 2**64 for parts in found for stage in range(4)}) == 1


def checksums(base: str, adapter: dict[str, Any]) -> list[int]:
    """Of this worker's part of the weights after 4 steps, by ZeRO stage."""
    sums = []
    for stage in range(4):
        with contextlib.closing(new_engine(base, adapter, stage, exactness="bitwise")) as engine:
            train(engine, range(4))
            sums.append(weights_checksum(engine))
    return sums
