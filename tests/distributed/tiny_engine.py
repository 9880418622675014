"""Tiny models and batches for the tests of the engine: odd sizes, so that no partition ends where a parameter does."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain.checkpoint.ranges import StateRange
from raytrain.config import LossScaleConfig, OptimizerConfig, Precision, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.models.build import for_training
from raytrain.steps.batches import BatchPlan

VOCABULARY, SEQ_LEN, CLASSES, IGNORED = 13, 6, 5, -100
Batch = dict[str, Tensor]


class TinyTagger(nn.Module):
    """Embedding, hidden layer, norm, a frozen matrix, a persistent buffer and a tied output, over (batch, seq_len)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 7)
        self.hidden = nn.Linear(7, 11)
        self.norm = nn.LayerNorm(11)
        self.frozen = nn.Linear(11, 7, bias=False)
        self.frozen.weight.requires_grad = False
        nn.init.normal_(self.frozen.weight, std=0.3, generator=torch.Generator().manual_seed(5))  # the same base always
        self.output = nn.Linear(7, VOCABULARY)
        self.output.weight = self.embedding.weight
        self.register_buffer("gain", torch.ones(3))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.hidden(self.embedding(input_ids))))
        return self.output(self.frozen(hidden)) * self.gain[0].to(hidden.dtype)


def make_model(seed: int = 0) -> TinyTagger:
    torch.manual_seed(seed)
    return TinyTagger()


def make_batch(num_samples: int, seed: int) -> Batch:
    """A global batch; samples have from none to all of their tokens as targets."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, VOCABULARY, (num_samples, SEQ_LEN), generator=generator)
    labels = torch.randint(0, VOCABULARY, (num_samples, SEQ_LEN), generator=generator)
    num_targets = torch.randint(0, SEQ_LEN + 1, (num_samples, 1), generator=generator)
    labels[torch.arange(SEQ_LEN)[None, :] >= num_targets] = IGNORED
    return {"input_ids": input_ids, "labels": labels}


def num_targets(batch: Batch) -> int:
    return int((batch["labels"] != IGNORED).sum())


def loss_sum(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["input_ids"])
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def my_micro_batches(batch: Batch, micro_batch_size: int) -> list[Batch]:
    """This worker's part of a global batch, in as many micro-batches as the busiest worker needs."""
    world_rank, world_size = dist.get_rank(), dist.get_world_size()
    num_samples = len(batch["labels"])
    micro_steps = math.ceil(math.ceil(num_samples / world_size) / micro_batch_size)
    mine = np.array_split(np.arange(num_samples), world_size)[world_rank]
    return [_rows(batch, ids) for ids in np.array_split(mine, micro_steps)]


def dealt_micro_batches(batch: Batch, num: int) -> tuple[list[Batch], list[int]]:
    """This worker's micro-batches of a global batch that is cut into `num`, and their numbers in it; as many on each
    worker."""
    plan = BatchPlan(len(batch["labels"]), num, dist.get_world_size())
    mine = plan.micro_batches_of(dist.get_rank(), 1)
    parts = np.array_split(np.arange(len(batch["labels"])), num)
    blank = [np.array([], dtype=int)] * (plan.micro_steps - len(mine))
    return [_rows(batch, ids) for ids in [*(parts[which] for which in mine), *blank]], mine + [num] * len(blank)


def _rows(batch: Batch, ids: np.ndarray) -> Batch:
    if len(ids):
        return {name: tensor[ids] for name, tensor in batch.items()}
    return {"input_ids": batch["input_ids"][:1], "labels": torch.full((1, SEQ_LEN), IGNORED)}


def make_bert(dropout: float, *, checkpoints: bool = False) -> nn.Module:
    """A masked language model with tied weights, the same in each process. `checkpoints`: gradient checkpointing."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return for_training(BertForMaskedLM(config), TrainingConfig(gradient_checkpointing=checkpoints))


def bert_loss_sum(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"]).logits.float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")


# By default ZeRO-3 keeps parameters below 100,000 elements whole, which all of a tiny model's are.
NOTHING_KEPT = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_model_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
}


def make_engine(
    zero_stage: int,
    *,
    model: nn.Module | None = None,
    precision: Precision = Precision.FP32,
    num_micro_steps: int = 1,
    clip: float = 1.0,
    loss_scale: LossScaleConfig | None = None,
    device: str = "cpu",
    deepspeed: dict[str, Any] | None = None,
    optimizer: OptimizerConfig | None = None,
) -> Engine:
    training = TrainingConfig(
        global_batch_size=12,
        micro_batch_size=2,
        zero_stage=zero_stage,
        gradient_clipping=clip,
        optimizer=optimizer or OptimizerConfig(learning_rate=1e-2),
        loss_scale=loss_scale or LossScaleConfig(initial_power=8),
        deepspeed=deepspeed or (NOTHING_KEPT if zero_stage == 3 else {}),
    )
    return Engine(
        model or make_model(),
        training,
        precision=precision,
        device=torch.device(device),
        num_micro_steps=num_micro_steps,
    )


def train(engine: Engine, steps: range, *, num_samples: int = 12, micro_batch_size: int = 4) -> list[float]:
    """Train on the batches of these steps; this worker's share of the mean loss of each."""
    losses = []
    for step in steps:
        batch = make_batch(num_samples, seed=100 + step)
        mine = [
            {name: tensor.to(engine.device) for name, tensor in micro.items()}
            for micro in my_micro_batches(batch, micro_batch_size)
        ]
        result = engine.train_step(mine, loss_sum, num_targets(batch), 1e-2)
        losses.append(result.loss_sum / num_targets(batch))
    return losses


def allow_fp16_on_cpu() -> None:
    """DeepSpeed refuses fp16 on most CPUs; the arithmetic is there all the same."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def assemble(ranges_of_workers: list[list[StateRange]], kind: str) -> dict[str, Tensor]:
    """Flattened tensors by name, put together from all workers' ranges; each element must come exactly once."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for ranges in ranges_of_workers:
        for piece in ranges:
            if kind in piece.tensors:
                pieces.setdefault(piece.name, []).append((piece.start, piece.tensors[kind]))
    whole = {}
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[0])
        position = 0
        for start, tensor in parts:
            assert start == position, f"{kind} of {name}: a part starts at {start} where {position} was expected"
            position += tensor.numel()
        whole[name] = torch.cat([tensor for _, tensor in parts])
    return whole
