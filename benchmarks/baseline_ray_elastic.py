"""What one would write by hand for an elastic run with Ray Train: an elastic TorchTrainer, DeepSpeed, checkpoints.

    python benchmarks/elastic_trace.py     starts it

The loop is that of Ray's DeepSpeed example (ZeRO-2, fp32, gloo): Ray Data shards, `save_checkpoint` on every worker,
`ray.train.report`. It is made elastic as Ray's guide says: `num_workers=(1, N)`, failures allowed without end, and the
preemption watcher left on. A checkpoint goes back into a group of the same size with `load_checkpoint`, into one of
another size by way of DeepSpeed's `ds_to_universal` command. Steps and epochs go on from the checkpoint; rows begin
with the epoch's first, because a dataset shard can't be sought.

Beyond the example it keeps the global batch the same at every size, as raytrain does, sleeps in the place of a GPU's
work, and writes down each step and its samples: `metrics.jsonl` and `samples/`, in the form of a raytrain run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEEPSPEED = {
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01, "torch_adam": True}},
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "steps_per_print": 1_000_000,
}
LABELS = ["negative", "positive"]


def train_func(config: dict[str, Any]) -> None:
    """One worker's training, from the newest checkpoint that all workers have reported."""
    import deepspeed
    import ray.train
    import torch
    import torch.distributed as dist
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    batch_size = config["global_batch_size"] // world_size
    # Its collectives through shared memory, which a group that was killed can leave in a state that hangs the next one.
    # On nodes that are machines they would not run either.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    attempt = from_first(time.time_ns())
    tokenizer = AutoTokenizer.from_pretrained(config["tokenizer"])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config["model"], num_labels=2))

    saved = ray.train.get_checkpoint()
    is_resized = saved is not None and saved.get_metadata()["world_size"] != world_size
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            **DEEPSPEED,
            "train_micro_batch_size_per_gpu": batch_size,
            "checkpoint": {"load_universal": is_resized},
        },
    )
    epoch = 0
    if saved is not None:
        folder, tag = (saved.path, None) if not is_resized else (config["storage"], universal_of(saved.path, attempt))
        path, state = engine.load_checkpoint(folder, tag=tag)
        assert path is not None
        epoch = state["epoch"]

    def collate(batch: dict[str, Any]) -> dict[str, Any]:
        tokens = tokenizer(list(batch["text"]), truncation=True, padding="longest", return_tensors="pt")
        labels = torch.tensor([LABELS.index(label) for label in batch["label"]])
        return {"id": batch["id"].tolist(), "inputs": {**tokens, "labels": labels}}

    out = Path(config["out"])
    (out / "samples").mkdir(exist_ok=True)
    samples = open(out / "samples" / f"attempt_{attempt}_rank_{rank}.jsonl", "a", buffering=1)
    steps = open(out / "metrics.jsonl", "a", buffering=1)
    shard = ray.train.get_dataset_shard("train")
    engine.train()
    while True:
        for batch in shard.iter_torch_batches(batch_size=batch_size, collate_fn=collate, drop_last=True):
            loss = engine(**batch["inputs"]).loss
            engine.backward(loss)
            time.sleep(config["seconds_per_sample"] * batch_size)
            engine.step()
            step = engine.global_steps
            samples.write(json.dumps({"step": step, "attempt": attempt, "ids": batch["id"]}) + "\n")
            if rank == 0:
                row = {"step": step, "attempt": attempt, "world_size": world_size, "loss": loss.item()}
                steps.write(json.dumps(row) + "\n")
            if step % config["save_every"] == 0:
                with tempfile.TemporaryDirectory() as folder:
                    engine.save_checkpoint(folder, client_state={"epoch": epoch})
                    dist.barrier()
                    checkpoint = ray.train.Checkpoint.from_directory(folder)
                    checkpoint.update_metadata({"world_size": world_size})
                    ray.train.report({"step": step}, checkpoint=checkpoint)
        epoch += 1


def from_first(value: Any) -> Any:
    """Worker 0's value, on every worker."""
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def universal_of(saved: str, attempt: int) -> str:
    """Worker 0 converts a checkpoint for another world size, the others wait. Returns the result's folder name."""
    import torch.distributed as dist

    name = f"universal_{attempt}"
    if dist.get_rank() == 0:
        tag = Path(saved, "latest").read_text().strip()
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", f"{saved}/{tag}", "--output_folder", str(Path(saved).parent / name)]
        subprocess.run(command, check=True, capture_output=True)
    dist.barrier()
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("address", "out", "data", "tokenizer", "model"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("workers", "cpus", "global-batch-size", "save-every"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("seconds-per-sample", "resize-every-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    arguments = parser.parse_args()
    os.environ.update(RAY_TRAIN_V2_ENABLED="1")
    import ray
    import ray.data
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    # `baseline` in `out` is where Ray Train keeps the checkpoints.
    ray.init(address=arguments.address, log_to_driver=True)
    trainer = TorchTrainer(
        train_func,
        train_loop_config={
            "global_batch_size": arguments.global_batch_size,
            "seconds_per_sample": arguments.seconds_per_sample,
            "save_every": arguments.save_every,
            "model": json.loads(arguments.model),
            "tokenizer": arguments.tokenizer,
            "out": arguments.out,
            "storage": f"{arguments.out}/baseline",
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=(1, arguments.workers),
            resources_per_worker={"CPU": arguments.cpus},
            elastic_resize_monitor_interval_s=arguments.resize_every_s,
        ),
        datasets={"train": ray.data.read_parquet(arguments.data)},
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            storage_path=arguments.out,
            name="baseline",
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=-1),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
