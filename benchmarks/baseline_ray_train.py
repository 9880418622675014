"""What one would write by hand with Ray Train: a TorchTrainer and DeepSpeed, as in the example of Ray's documentation.

    python benchmarks/baseline_ray_train.py --steps 60 --threads 2

The model and the data are those of `raytrain train movie_reviews`. Samples are tokenized as they are read and padded to
128 tokens (the example's choice), or with `--pad longest` to the longest of the batch. There is no checkpoint, no
evaluation and no resume. Prints a line of JSON at the end: when each phase was over, in seconds since `--started-at`
(Unix time; by default when this script began), and the speed.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED_AT_S = time.time()

from common import DATA, MODEL, arguments_with  # noqa: E402 (the clock starts before the imports)

BATCH_SIZE = 32
MAX_LENGTH = 128  # tokens
DEEPSPEED = {
    "train_micro_batch_size_per_gpu": BATCH_SIZE,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01, "torch_adam": True}},
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}


def train_func(config: dict[str, Any]) -> None:
    """One worker's training, and a note of when each part of it was over."""
    times_s = {"workers": time.time()}
    import deepspeed
    import pyarrow.parquet as pq
    import ray.train
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(config["threads"])
    times_s["imports"] = time.time()
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    model = AutoModelForSequenceClassification.from_pretrained(config["model"], num_labels=2)
    rows = pq.read_table(config["data"]).to_pylist()

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in batch]
        padding = "longest" if config["pad"] == "longest" else "max_length"
        tokens = tokenizer(texts, padding=padding, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        return {**tokens, "labels": torch.tensor([int(row["label"] == "positive") for row in batch])}

    loader = DataLoader(rows, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate)
    times_s["model and data"] = time.time()
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=DEEPSPEED)
    times_s["deepspeed"] = time.time()
    step, num_tokens, measured_from_s = 0, 0, time.time()
    while step < config["steps"] + config["warmup"]:
        for batch in loader:
            loss = engine(**batch).loss
            engine.backward(loss)
            engine.step()
            step += 1
            num_tokens += int(batch["attention_mask"].sum())
            times_s.setdefault("first step", time.time())
            if step == config["warmup"]:
                num_tokens, measured_from_s = 0, time.time()
            if step == config["steps"] + config["warmup"]:
                break
    elapsed_s = time.time() - measured_from_s
    speed = {"samples_per_s": config["steps"] * BATCH_SIZE / elapsed_s, "tokens_per_s": num_tokens / elapsed_s}
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["out"]).write_text(json.dumps({"times_s": times_s, **speed}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pad", choices=["128", "longest"], default="128")
    parser.add_argument("--started-at", type=float, default=STARTED_AT_S)
    arguments = arguments_with(parser, steps=60, warmup=1, threads=2, workers=1)
    os.environ.update(RAY_AUTH_MODE="disabled", DS_ACCELERATOR="cpu", RAY_TRAIN_V2_ENABLED="1")
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray_ready_s = time.time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            train_func,
            train_loop_config={
                "steps": arguments.steps,
                "warmup": arguments.warmup,
                "threads": arguments.threads,
                "pad": arguments.pad,
                "model": str(MODEL),
                "data": str(DATA / "train.parquet"),
                "out": f"{folder}/out.json",
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=arguments.workers, resources_per_worker={"CPU": arguments.threads}
            ),
            torch_config=TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(storage_path=folder, name="baseline"),
        )
        trainer.fit()
        out = json.loads(Path(f"{folder}/out.json").read_text())
    times_s = {"ray": ray_ready_s, **out.pop("times_s")}
    phases_s = {name: at_s - arguments.started_at for name, at_s in times_s.items()}
    print(json.dumps({"times_s": phases_s, **out}))


if __name__ == "__main__":
    main()
