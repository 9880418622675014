"""What a step takes on a GPU: raytrain's engine in each format and ZeRO stage, against a plain PyTorch loop.

    python benchmarks/gpu_step.py

One process and one GPU, no Ray, no data: BERTs with new weights on random tokens that lie on the GPU, so it is the
engine alone. The plain loop is AdamW, clipping, and torch.autocast for bf16. For the larger model also what a snapshot
costs: the call in the loop, and how much longer the next step is.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from common import middle, publish, table
from torch import Tensor, nn

from raytrain.config import Precision, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import copy_state

SMALL: dict[str, int] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
MODELS: dict[str, tuple[dict[str, int], int]] = {"MiniLM's size": (SMALL, 32), "BERT-base's size": ({}, 128)}
"""Name -> settings of BERT, samples a step."""
SETUPS = [(Precision.FP32, 0), (Precision.BF16, 1), (Precision.BF16, 2), (Precision.BF16, 3), (Precision.FP16, 2)]
SEQ_LEN, WARMUP_STEPS, STEPS, SNAPSHOTS = 40, 8, 25, 4
Batch = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-write", action="store_true", help="print the table, leave RESULTS.md alone")
    arguments = parser.parse_args()
    os.environ["LOCAL_RANK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        rows = [row for name in MODELS for row in rows_of(name)]
        dist.destroy_process_group()
    header = [
        "model",
        "format",
        "ZeRO",
        "ms a step",
        "plain loop, ms",
        "plain / raytrain",
        "snapshot: call, ms",
        "then",
    ]
    text = f"{torch.cuda.get_device_name(0)}, one process; samples of {SEQ_LEN} tokens; median of {STEPS} steps.\n\n"
    publish("A step on a GPU", text + table(header, rows), arguments)


def rows_of(name: str) -> list[list[str]]:
    """The table's rows of one model."""
    settings, batch_size = MODELS[name]
    batch = random_batch(batch_size)
    plain = {is_half: plain_step_s(settings, batch, is_half) for is_half in (False, True)}
    rows = []
    for precision, stage in SETUPS:
        own, snapshots = engine_step_s(settings, batch, precision, stage)
        other = plain[precision is not Precision.FP32]
        call_s, longer_s = snapshots
        cells = [f"{1e3 * own:.1f}", f"{1e3 * other:.1f}", f"{other / own:.2f}"]
        rows.append([name, precision.value, str(stage), *cells, f"{1e3 * call_s:.1f}", f"+{1e3 * longer_s:.1f}"])
        print(*rows[-1], flush=True)
    return rows


def new_model(settings: dict[str, int]) -> Any:
    """A BERT that classifies, new weights, on the CPU."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**settings))


def random_batch(num_samples: int) -> Batch:
    """On the GPU."""
    return {
        "input_ids": torch.randint(5, 30_000, (num_samples, SEQ_LEN), device="cuda"),
        "attention_mask": torch.ones(num_samples, SEQ_LEN, dtype=torch.long, device="cuda"),
        "labels": torch.randint(0, 2, (num_samples,), device="cuda"),
    }


def plain_step_s(settings: dict[str, int], batch: Batch, is_half: bool) -> float:
    """Seconds of a step of the loop that one would write by hand."""
    model = new_model(settings).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=is_half):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return median_s(step)


def engine_step_s(
    settings: dict[str, int], batch: Batch, precision: Precision, stage: int
) -> tuple[float, tuple[float, float]]:
    """Seconds of a step of the engine; and of the call that takes a snapshot, and that the step after it is longer."""
    size = len(batch["labels"])
    training = TrainingConfig(global_batch_size=size, micro_batch_size=size, zero_stage=stage)
    engine = Engine(
        new_model(settings), training, precision=precision, device=torch.device("cuda", 0), num_micro_steps=1
    )

    def loss_sum(model: nn.Module, micro_batch: Batch) -> Tensor:
        return model(**micro_batch).loss.float() * size

    def step() -> None:
        engine.train_step([batch], loss_sum, size, 1e-4)

    own = median_s(step)
    calls, next_steps = [], []
    for _ in range(SNAPSHOTS):
        began_s = time.perf_counter()
        copy = copy_state(engine)
        calls.append(time.perf_counter() - began_s)  # the GPU copies beside the next step
        next_steps.append(seconds_of(step))
        copy.wait()
        del copy
    engine.close()
    # The first one takes the locked memory, which torch keeps.
    return own, (middle(calls[1:]), middle(next_steps[1:]) - own)


def median_s(step: Callable[[], None]) -> float:
    """Of `STEPS` calls, each waited for on the GPU."""
    for _ in range(WARMUP_STEPS):
        step()
    return middle([seconds_of(step) for _ in range(STEPS)])


def seconds_of(call: Callable[[], None]) -> float:
    """Until the GPU is done with what it was given."""
    began_s = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
