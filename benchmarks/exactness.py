"""How much the number of workers changes a run: the losses of MiniLM on the movie reviews, with dropout as it comes.

    python benchmarks/exactness.py

The same steps at 1, 2 and 3 workers, as real process groups over gloo: raytrain's engine with its micro-batches, at
each ZeRO stage and precision, and beside it torch's DistributedDataParallel with a DistributedSampler and a generator
seeded on each rank, which is how a script for torchrun, Accelerate or a TorchTrainer sets it up. There the global batch
is kept by dividing it by the number of workers. The figure is the largest difference of the mean loss of a step from
the loss at one worker. fp16 is computed on CPUs, which DeepSpeed would refuse: only its arithmetic is of interest.
"""

import argparse
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import DATA, MODEL, arguments_with, publish, table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler

from raytrain.config import OptimizerConfig, Precision, TrainingConfig
from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.steps.order import Order

BATCH, MICRO, SAMPLES, MAX_LENGTH, SEED, RATE = 24, 4, 600, 64, 7, 1e-4
OURS = [
    *((Precision.FP32, stage, workers) for stage in range(4) for workers in (2, 3)),
    *((precision, 1, workers) for precision in (Precision.BF16, Precision.FP16) for workers in (2, 3)),
]
Batch = dict[str, Tensor]


class Reviews:
    """The first reviews, tokenized."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        rows = pq.read_table(DATA / "train.parquet").slice(0, SAMPLES).to_pydict()
        labels = sorted(set(rows["label"]))
        self._tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self._ids = self._tokenizer(rows["text"], truncation=True, max_length=MAX_LENGTH)["input_ids"]
        self._labels = [labels.index(label) for label in rows["label"]]
        self.lengths = np.array([len(ids) for ids in self._ids])

    def batch(self, ids: np.ndarray) -> Batch:
        """Padded samples; a batch without samples is one without targets."""
        chosen = ids if len(ids) else np.array([0])
        padded = self._tokenizer.pad({"input_ids": [self._ids[i] for i in chosen]}, return_tensors="pt")
        labels = torch.tensor([self._labels[i] for i in chosen]) if len(ids) else torch.tensor([-100])
        return {**padded, "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_with(parser, steps=12)
    rows = []
    for dropout in (0.0, 0.1):
        alone = in_group(ours, 1, Precision.FP32, 0, dropout, arguments.steps)
        half = {p: in_group(ours, 1, p, 1, dropout, arguments.steps) for p in (Precision.BF16, Precision.FP16)}
        for precision, stage, workers in OURS:
            found = in_group(ours, workers, precision, stage, dropout, arguments.steps)
            worst = np.abs(found - half.get(precision, alone)).max()
            rows.append(["raytrain", str(dropout), str(precision), f"ZeRO-{stage}", str(workers), f"{worst:.1e}"])
            print(rows[-1], flush=True)
        plain_alone = in_group(plain, 1, dropout, arguments.steps)
        for workers in (2, 3):
            worst = np.abs(in_group(plain, workers, dropout, arguments.steps) - plain_alone).max()
            rows.append(["DistributedDataParallel", str(dropout), "fp32", "", str(workers), f"{worst:.1e}"])
            print(rows[-1], flush=True)
    head = (
        f"MiniLM with a new head, {arguments.steps} steps of {BATCH} reviews, AdamW at {RATE:g}; the largest "
        "difference of the loss of a step from the run with one worker.\n\n"
    )
    header = ["", "dropout", "precision", "", "workers", "largest difference"]
    publish("The number of workers and the losses", head + table(header, rows), arguments)


def in_group(function: Any, world_size: int, *settings: Any) -> np.ndarray:
    """Call a function in a process group; the loss of each step, shape (steps,)."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (function, world_size, folder, settings), nprocs=world_size)
        return np.load(Path(folder) / "losses.npy")


def _work(rank: int, function: Any, world_size: int, folder: str, settings: tuple[Any, ...]) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=world_size, timeout=timedelta(seconds=300)
    )
    # Each worker gives its share of the mean loss of each step.
    shares = torch.tensor(function(*settings), dtype=torch.float64)
    dist.all_reduce(shares)
    if rank == 0:
        np.save(Path(folder) / "losses.npy", shares.numpy())
    dist.destroy_process_group()


def new_model(dropout: float) -> nn.Module:
    """MiniLM with a head from the same weights in each process."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2, **rates)


def loss_sum(model: nn.Module, batch: Batch) -> Tensor:
    """Sum of the cross entropies of a batch, in fp32."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return nn.functional.cross_entropy(model(**inputs).logits.float(), batch["labels"], reduction="sum")


def ours(precision: Precision, stage: int, dropout: float, steps: int) -> list[float]:
    """raytrain's engine on this worker's micro-batches."""
    from deepspeed.accelerator import get_accelerator

    from raytrain.engine.engine import Engine

    get_accelerator().is_fp16_supported = lambda: True
    reviews, plan = Reviews(), BatchPlan(BATCH, BATCH // MICRO, dist.get_world_size())
    starts = np.append(np.arange(0, SAMPLES, 16), SAMPLES)
    order = Order(starts, reviews.lengths, SEED, BATCH, BATCH)
    training = TrainingConfig(
        global_batch_size=BATCH, micro_batch_size=MICRO, zero_stage=stage, optimizer=OptimizerConfig(learning_rate=RATE)
    )
    device = torch.device("cpu")
    engine = Engine(new_model(dropout), training, precision=precision, device=device, num_micro_steps=plan.micro_steps)
    losses, mine = [], plan.micro_batches_of(dist.get_rank(), order.num_groups(plan.num_micro_batches))
    for step in range(steps):
        parts = order.micro_batches(0, step, plan.num_micro_batches, mine)
        parts += [np.array([], dtype=int)] * (plan.micro_steps - len(parts))
        seeds = [micro_batch_seed(SEED, step, which) for which in mine]
        seeds += [0] * (plan.micro_steps - len(seeds))
        batches = [reviews.batch(part) for part in parts]
        losses.append(engine.train_step(batches, loss_sum, BATCH, RATE, seeds).loss_sum / BATCH)
    engine.close()
    return losses


def plain(dropout: float, steps: int) -> list[float]:
    """DistributedDataParallel on this worker's part of a DistributedSampler's order."""
    reviews, size, rank = Reviews(), dist.get_world_size(), dist.get_rank()
    model = DistributedDataParallel(new_model(dropout).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    sampler: DistributedSampler[Any] = DistributedSampler(range(SAMPLES), size, rank, seed=SEED)
    ids = np.array(list(sampler))
    torch.manual_seed(SEED + rank)
    losses = []
    for step in range(steps):
        batch = reviews.batch(ids[step * BATCH // size : (step + 1) * BATCH // size])
        loss = loss_sum(model, batch) / len(batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()) / size)
    return losses


if __name__ == "__main__":
    main()
