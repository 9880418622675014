"""Operations of a training step, and numbers that it reads from the device, against a plain loop: counts, no times.

    python benchmarks/step_ops.py

A BERT of 201 parameters, one worker, one micro-batch, on a CPU. What a small model's step takes on a GPU is launching
kernels, so the number of operations is what counts there, and each read of a number waits for the GPU.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from common import publish, table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raytrain.config import Precision, TrainingConfig
from raytrain.engine.engine import Engine

SETUPS = [(Precision.FP32, 0), (Precision.BF16, 1), (Precision.BF16, 2), (Precision.BF16, 3)]
ROWS, WIDTH = 4, 16
READS = ("_local_scalar_dense", "is_nonzero", "equal")
VIEWS = (
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "slice",
    "select",
    "detach",
    "expand",
    "unsqueeze",
    "squeeze",
    "split",
)
"""Operations that launch nothing."""
Batch = dict[str, Tensor]


class Counter(TorchDispatchMode):
    """Counts operations, and reads of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = self.reads = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.ops += 1
        self.reads += name in READS
        self.kernels += name not in VIEWS
        return func(*args, **(kwargs or {}))


def make_model() -> Any:
    """New weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=100))


def make_batch() -> Batch:
    """Without padding."""
    ids = torch.randint(5, 100, (ROWS, WIDTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % 2}


def plain(*, is_half: bool) -> Callable[[], Any]:
    """A step of the loop that one would write by hand."""
    model, batch = make_model().train(), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def ours(precision: Precision, stage: int) -> tuple[Engine, Callable[[], Any]]:
    """An engine and its step."""
    training = TrainingConfig(global_batch_size=ROWS, micro_batch_size=ROWS, zero_stage=stage, gradient_clipping=1.0)
    engine = Engine(make_model(), training, precision=precision, device=torch.device("cpu"), num_micro_steps=1)
    batch = make_batch()

    def loss_sum(model: nn.Module, micro_batch: Batch) -> Tensor:
        return model(**micro_batch).loss.float() * ROWS

    return engine, lambda: engine.train_step([batch], loss_sum, ROWS, 1e-4)


def counted(name: str, step: Callable[[], Any]) -> list[str]:
    """The table's row of a loop, for its fourth step."""
    for _ in range(3):
        step()
    with Counter() as counter:
        step()
    row = [name, str(counter.ops), str(counter.kernels), str(counter.reads)]
    print(*row, flush=True)
    return row


def main() -> None:
    """Count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-write", action="store_true", help="print the table, leave RESULTS.md alone")
    arguments = parser.parse_args()
    rows = [counted("plain loop, fp32", plain(is_half=False)), counted("plain loop, autocast", plain(is_half=True))]
    os.environ["LOCAL_RANK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        for precision, stage in SETUPS:
            engine, step = ours(precision, stage)
            rows.append(counted(f"raytrain, {precision.value}, ZeRO-{stage}", step))
            engine.close()
        dist.destroy_process_group()
    num = sum(1 for _ in make_model().parameters())
    text = f"BERT of {num} parameters, one worker, one micro-batch.\n\n"
    header = ["loop", "operations", "without views", "numbers read"]
    publish("Operations of a step", text + table(header, rows), arguments)


if __name__ == "__main__":
    main()
