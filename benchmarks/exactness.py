"""How much the number of workers changes a run: the losses of MiniLM on the movie reviews, with dropout as it comes.

    python benchmarks/exactness.py

The same steps at 1, 2 and 3 workers, as real process groups over gloo: raytrain's engine with its micro-batches, at
each ZeRO stage and precision, and beside it torch's DistributedDataParallel with a DistributedSampler and a generator
seeded on each rank, which is how a script for torchrun, Accelerate or a TorchTrainer sets it up. There the global batch
is kept by dividing it by the number of workers. The figure is the largest difference of the mean loss of a step from
the loss at one worker. fp16 is computed on CPUs, which DeepSpeed would refuse: only its arithmetic is of interest.

With training.exactness=bitwise it is also compared whether the weights have the same bits after the last step, and what
a step costs: in one process group, some steps in one mode and then some in the other, over and over, at the default
micro-batch of 16.
"""

import argparse
import contextlib
import os
import tempfile
import time
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

from raytrain.config import Exactness, OptimizerConfig, Precision, TrainingConfig
from raytrain.steps.batches import BatchPlan, micro_batch_seed
from raytrain.steps.order import Order

DEFAULT_MICRO = 16
BATCH, MICRO, SAMPLES, MAX_LENGTH, SEED, RATE = 24, 4, 600, 64, 7, 1e-4
WITHOUT_DROPOUT = [(Precision.FP32, stage, 3) for stage in range(4)]
WITH_DROPOUT = [
    *((Precision.FP32, 0, 2), *WITHOUT_DROPOUT),
    *((precision, 1, workers) for precision in (Precision.BF16, Precision.FP16) for workers in (2, 3)),
]
ROUNDS, STEPS_PER_ROUND = 5, 5
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
    parser.add_argument("--part", choices=["differences", "cost"], help="one of the two tables (both)")
    arguments = arguments_with(parser, steps=12)
    if arguments.part != "cost":
        publish_differences(arguments)
    if arguments.part != "differences":
        publish_cost(arguments)


def publish_differences(arguments: argparse.Namespace) -> None:
    """The table of the losses at other numbers of workers."""
    rows = []
    for dropout in (0.0, 0.1):
        for mode in Exactness:
            rows += compared(mode, dropout, arguments.steps)
        alone, _ = in_group(plain, 1, dropout, arguments.steps)
        for workers in (2, 3):
            worst = np.abs(in_group(plain, workers, dropout, arguments.steps)[0] - alone).max()
            rows.append(["DistributedDataParallel", str(dropout), "fp32", "", str(workers), f"{worst:.1e}", "no"])
            print(rows[-1], flush=True)
    head = (
        f"MiniLM with a new head, {arguments.steps} steps of {BATCH} reviews, AdamW at {RATE:g}; the largest "
        "difference of the loss of a step from the run with one worker, and whether the weights have the same bits "
        "after the last step.\n\n"
    )
    header = ["", "dropout", "precision", "", "workers", "largest difference", "same bits"]
    publish("The number of workers and the losses", head + table(header, rows), arguments)


def publish_cost(arguments: argparse.Namespace) -> None:
    """The table of what a step costs in each mode."""
    costs = [costs_of(stage, workers) for stage, workers in ((0, 1), *((stage, 2) for stage in range(4)))]
    head = f"MiniLM, a step of {2 * DEFAULT_MICRO} reviews in fp32, dropout 0.1, one thread a worker; seconds.\n\n"
    header = ["", "workers", "rounding", "bitwise", "bitwise / rounding"]
    publish("What training.exactness=bitwise costs", head + table(header, costs), arguments)


def compared(mode: Exactness, dropout: float, steps: int) -> list[list[str]]:
    """A row of the table for each setting."""
    alone: dict[Precision, tuple[np.ndarray, int]] = {}
    rows = []
    for precision, stage, workers in WITH_DROPOUT if dropout else WITHOUT_DROPOUT:
        if precision not in alone:
            alone[precision] = in_group(ours, 1, precision, stage, dropout, steps, mode)
        losses, checksum = in_group(ours, workers, precision, stage, dropout, steps, mode)
        expected, bits = alone[precision]
        is_same = "yes" if checksum == bits else "no"
        worst = f"{np.abs(losses - expected).max():.1e}"
        rows.append([f"raytrain, {mode}", str(dropout), str(precision), f"ZeRO-{stage}", str(workers), worst, is_same])
        print(rows[-1], flush=True)
    return rows


def costs_of(stage: int, workers: int) -> list[str]:
    """The median seconds of a step in each mode, and their ratio."""
    seconds, _ = in_group(timed, workers, stage)
    rounding, bitwise = (float(np.median(part)) for part in np.split(seconds / workers, 2))
    row = [f"ZeRO-{stage}", str(workers), f"{rounding:.2f}", f"{bitwise:.2f}", f"{bitwise / rounding:.2f}"]
    print(row, flush=True)
    return row


def in_group(function: Any, world_size: int, *settings: Any) -> tuple[np.ndarray, int]:
    """Call a function in a process group. Returns the sums over all workers of the numbers that it gives, such as
    shares of losses, and of their checksums."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (function, world_size, folder, settings), nprocs=world_size)
        checksums = [int((Path(folder) / f"checksum_{rank}").read_text()) for rank in range(world_size)]
        return np.load(Path(folder) / "numbers.npy"), sum(checksums) % 2**64


def _work(rank: int, function: Any, world_size: int, folder: str, settings: tuple[Any, ...]) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["MKL_CBWR"] = "AUTO,STRICT"  # as in the workers of a bitwise run; no slower here
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=world_size, timeout=timedelta(seconds=300)
    )
    numbers, checksum = function(*settings)
    (Path(folder) / f"checksum_{rank}").write_text(str(checksum))
    shares = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(shares)
    if rank == 0:
        np.save(Path(folder) / "numbers.npy", shares.numpy())
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo and DeepSpeed that are still there would abort the process now and then


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


def ours(
    precision: Precision, stage: int, dropout: float, steps: int, mode: Exactness, micro: int = MICRO
) -> tuple[list[float], int]:
    """raytrain's engine on this worker's micro-batches: its part of the mean losses, and of the weights' checksum."""
    from raytrain.engine.zero_state import weights_checksum

    with contextlib.closing(OurSteps(precision, stage, dropout, mode, BATCH, micro)) as run:
        losses = [run.step(step) for step in range(steps)]
        return losses, weights_checksum(run.engine)


def timed(stage: int) -> tuple[list[float], int]:
    """Seconds of steps in the first mode, and then of as many in the other."""
    seconds: dict[Exactness, list[float]] = {mode: [] for mode in Exactness}
    for _ in range(ROUNDS):
        for mode in Exactness:
            run = OurSteps(Precision.FP32, stage, 0.1, mode, 2 * DEFAULT_MICRO, DEFAULT_MICRO)
            with contextlib.closing(run):
                run.step(0)
                for step in range(1, 1 + STEPS_PER_ROUND):
                    dist.barrier()
                    began_at_s = time.perf_counter()
                    run.step(step)
                    dist.barrier()
                    seconds[mode].append(time.perf_counter() - began_at_s)
    return [*seconds[Exactness.ROUNDING], *seconds[Exactness.BITWISE]], 0


class OurSteps:
    """raytrain's engine and its order of the reviews."""

    def __init__(self, precision: Precision, stage: int, dropout: float, mode: Exactness, batch: int, micro: int):
        from deepspeed.accelerator import get_accelerator

        from raytrain.engine.engine import Engine

        get_accelerator().is_fp16_supported = lambda: True
        self._reviews, self._batch = Reviews(), batch
        self._plan = BatchPlan(batch, batch // micro, dist.get_world_size())
        starts = np.append(np.arange(0, SAMPLES, 16), SAMPLES)
        self._order = Order(starts, self._reviews.lengths, SEED, batch, batch)
        self._mine = self._plan.micro_batches_of(dist.get_rank(), self._order.num_groups(self._plan.num_micro_batches))
        training = TrainingConfig(
            global_batch_size=batch,
            micro_batch_size=micro,
            zero_stage=stage,
            exactness=mode,
            optimizer=OptimizerConfig(learning_rate=RATE),
        )
        self.engine = Engine(
            new_model(dropout),
            training,
            precision=precision,
            device=torch.device("cpu"),
            num_micro_steps=self._plan.micro_steps,
        )

    def step(self, step: int) -> float:
        """Train on a step; this worker's part of its mean loss."""
        plan = self._plan
        parts = self._order.micro_batches(0, step, plan.num_micro_batches, self._mine)
        parts += [np.array([], dtype=int)] * (plan.micro_steps - len(parts))
        seeds = [micro_batch_seed(SEED, step, which) for which in self._mine]
        seeds += [0] * (plan.micro_steps - len(seeds))
        batches = [self._reviews.batch(part) for part in parts]
        return self.engine.train_step(batches, loss_sum, self._batch, RATE, seeds).loss_sum / self._batch

    def close(self) -> None:
        """Take the engine down."""
        self.engine.close()


def plain(dropout: float, steps: int) -> tuple[list[float], int]:
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
    return losses, 0


if __name__ == "__main__":
    main()
