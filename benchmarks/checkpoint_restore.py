"""One process of the restore benchmark; checkpoint.py starts it. Without Ray: only the state and the files matter.

Roles: `save` trains two steps under ZeRO-1 and saves twice, as raytrain does and as DeepSpeed does; `restore_raytrain`
and `restore_deepspeed` build a fresh engine and then time the restore alone. Rank 0 prints a line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import MODEL
from transformers import AutoModelForSequenceClassification

from raytrain.checkpoint.ranges import StorageRangeReader, write_ranges
from raytrain.checkpoint.store import CheckpointStore
from raytrain.checkpoint.writer import CheckpointWriter
from raytrain.config import Precision, TrainingConfig
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import load_ranges, owned_ranges
from raytrain.steps.batches import World
from raytrain.storage import Storage

STEPS = 2
DEEPSPEED = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}


def new_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)


def new_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 20_000, (4, 16), generator=torch.Generator().manual_seed(dist.get_rank()))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0, 1])}


def new_raytrain() -> Engine:
    training = TrainingConfig(max_steps=STEPS, global_batch_size=8, micro_batch_size=4, zero_stage=1)
    device = torch.device("cpu")
    return Engine(new_model(), training, precision=Precision.FP32, device=device, num_micro_steps=1)


def new_deepspeed(universal: bool) -> Any:
    import deepspeed

    model = new_model()
    config = {**DEEPSPEED, "checkpoint": {"load_universal": universal}}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def loss_sum(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss * len(batch["labels"])


def save(storage: Path) -> None:
    """Both formats of the same model after two steps."""
    engine = new_raytrain()
    for _ in range(STEPS):
        engine.train_step([new_batch()], loss_sum, 4 * dist.get_world_size(), 1e-4)
    world = World(dist.get_rank(), dist.get_world_size())
    writer = CheckpointWriter(CheckpointStore(Storage(str(storage / "raytrain"))), world, token="benchmark")
    ranges = owned_ranges(engine)
    name = f"zero-{world.world_rank:05d}-of-{world.world_size:05d}.safetensors"
    writer.begin(STEPS, lambda folder: [write_ranges(folder, name, ranges)])
    writer.wait()
    dist.barrier()
    writer.commit({"step": STEPS})
    writer.wait()
    writer.close()
    engine.close()
    theirs = new_deepspeed(universal=False)
    for _ in range(STEPS):
        theirs.backward(theirs(**new_batch()).loss)
        theirs.step()
    theirs.save_checkpoint(str(storage / "deepspeed"), tag=f"global_step{STEPS}")


def restore_raytrain(storage: Path) -> dict[str, float]:
    """Seconds to find and check the newest checkpoint, and to load it."""
    engine = new_raytrain()
    started_at_s = time.perf_counter()
    checkpoint = CheckpointStore(Storage(str(storage / "raytrain"))).newest_good()
    verified_at_s = time.perf_counter()
    assert checkpoint is not None and checkpoint.world_size == 2
    load_ranges(engine, StorageRangeReader(checkpoint.folder, checkpoint.index), STEPS)
    return {"verify_s": verified_at_s - started_at_s, "load_s": time.perf_counter() - verified_at_s}


def restore_deepspeed(storage: Path, universal: str) -> dict[str, float]:
    """Seconds to load what ds_to_universal has written."""
    engine = new_deepspeed(universal=True)
    started_at_s = time.perf_counter()
    path, _ = engine.load_checkpoint(str(storage), tag=universal)
    assert path is not None
    return {"universal_load_s": time.perf_counter() - started_at_s}


def main() -> None:
    role, storage, *more = sys.argv[1:]
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found = {"save": save, "restore_raytrain": restore_raytrain, "restore_deepspeed": restore_deepspeed}[role](
        Path(storage), *more
    )
    if dist.get_rank() == 0 and found:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
