"""What one would write by hand for a sweep with Ray: Ray Tune, whose trials are TorchTrainers with DeepSpeed.

    python benchmarks/sweep_makespan.py     starts it

As Ray's guide to hyperparameter optimization with Ray Train says: a trial is a function that runs a TorchTrainer, whose
reports go to Tune by `TuneReportCallback`; ASHA stops trials; a custom resource bounds the trials that live at once.
With `--most-workers 1` each trial is one worker; with more, each is elastic, `num_workers=(1, N)`. The dashboard runs,
because without it Ray does not take back the workers of a trial that was stopped.

The loop is that of Ray's DeepSpeed example (ZeRO-2, fp32, gloo): `save_checkpoint` on every worker and
`ray.train.report` with each evaluation. Steps go on from the checkpoint at another size too, by way of DeepSpeed's
`ds_to_universal`. To its favor, nothing of Ray Data is started: each worker reads the rows itself, which fit in memory.

Beyond the example it keeps the global batch the same at every size, as raytrain does, sleeps in the place of a GPU's
work, writes down each step and evaluation in the form of a raytrain run, and prints when a trial starts and is over.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from baseline_ray_elastic import DEEPSPEED, LABELS, from_first, universal_of


def train_func(config: dict[str, Any]) -> None:
    """One worker's training, from the newest checkpoint that all workers have reported."""
    import deepspeed
    import pyarrow.parquet as pq
    import ray.train
    import torch
    import torch.distributed as dist
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # see baseline_ray_elastic.py
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    attempt = from_first(time.time_ns())
    tokenizer = AutoTokenizer.from_pretrained(config["tokenizer"])
    train, validation = (pq.read_table(config[split]).to_pylist() for split in ("train", "validation"))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config["model"], num_labels=2))
    saved = ray.train.get_checkpoint()
    is_resized = saved is not None and saved.get_metadata()["world_size"] != world_size
    parameters = {**DEEPSPEED["optimizer"]["params"], "lr": config["learning_rate"]}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            **DEEPSPEED,
            "optimizer": {"type": "AdamW", "params": parameters},
            "train_micro_batch_size_per_gpu": config["global_batch_size"] // world_size,
            "checkpoint": {"load_universal": is_resized},
        },
    )
    if saved is not None:
        folder, tag = (saved.path, None) if not is_resized else (config["storage"], universal_of(saved.path, attempt))
        path, _ = engine.load_checkpoint(folder, tag=tag)
        assert path is not None

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = tokenizer([row["text"] for row in rows], truncation=True, padding="longest", return_tensors="pt")
        return {**tokens, "labels": torch.tensor([LABELS.index(row["label"]) for row in rows])}

    def evaluate() -> float:
        """Mean loss on the validation split; each worker has its part of it."""
        mine = validation[rank::world_size]
        engine.eval()
        with torch.no_grad():
            total = torch.stack([engine(**collate(mine)).loss * len(mine), torch.tensor(float(len(mine)))])
        engine.train()
        dist.all_reduce(total)
        return (total[0] / total[1]).item()

    out = Path(config["out"])
    steps, evals = (open(out / name, "a", buffering=1) for name in ("metrics.jsonl", "evals.jsonl"))
    engine.train()
    while engine.global_steps < config["steps"]:
        batch = batch_of(len(train), config["global_batch_size"], engine.global_steps)[rank::world_size]
        loss = engine(**collate([train[i] for i in batch])).loss
        engine.backward(loss)
        time.sleep(config["seconds_per_sample"] * len(batch))
        engine.step()
        step = engine.global_steps
        if rank == 0:
            row = {"step": step, "attempt": attempt, "world_size": world_size, "loss": loss.item()}
            steps.write(json.dumps(row) + "\n")
        if step % config["eval_every"] == 0 or step == config["steps"]:
            metrics = {"step": step, "loss": evaluate()}
            if rank == 0:
                evals.write(json.dumps({**metrics, "split": "validation"}) + "\n")
            with tempfile.TemporaryDirectory() as folder:
                engine.save_checkpoint(folder)
                dist.barrier()
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                checkpoint.update_metadata({"world_size": world_size})
                ray.train.report(metrics, checkpoint=checkpoint)


def batch_of(num_rows: int, batch_size: int, step: int) -> list[int]:
    """Rows of a step: each epoch is a permutation of whole batches."""
    import torch

    epoch, place = divmod(step, num_rows // batch_size)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(epoch)).tolist()
    return order[place * batch_size : (place + 1) * batch_size]


def run_trial(config: dict[str, Any]) -> None:
    """What Tune runs for each trial."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    loop, trial = config["loop"], config["trial"]
    out = Path(loop["out"]) / "trials" / trial["name"]
    out.mkdir(parents=True)
    runs = f"{loop['out']}/ray"
    is_elastic = loop["most_workers"] > 1
    elastic = {"elastic_resize_monitor_interval_s": loop["resize_every_s"]} if is_elastic else {}
    TorchTrainer(
        train_func,
        train_loop_config={**loop, **trial, "out": str(out), "storage": f"{runs}/{trial['name']}"},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(1, loop["most_workers"]) if is_elastic else 1, resources_per_worker={"CPU": 1}, **elastic
        ),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(
            storage_path=runs,
            name=trial["name"],
            callbacks=[TuneReportCallback()],
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    ).fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="a JSON file: what `run_trial` and `main` read")
    settings = json.loads(parser.parse_args().settings.read_text())
    os.environ.update(RAY_AUTH_MODE="disabled", DS_ACCELERATOR="cpu", RAY_TRAIN_V2_ENABLED="1")
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    class Tell(tune.Callback):
        """Says when a trial starts and is over, as raytrain does."""

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            print(f"{trial.config['trial']['name']} started", flush=True)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            step = trial.last_result.get("step", 0)
            status = "finished" if step >= settings["steps"] else "pruned"
            print(f"{trial.config['trial']['name']} {status} at step {step}", flush=True)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            print(f"{trial.config['trial']['name']} failed", flush=True)

    slots = settings["slots"]
    ray.init(address="local", num_cpus=slots, resources={"trial": slots}, include_dashboard=True, log_to_driver=False)
    trials = [{"name": f"trial_{i:04d}", "learning_rate": rate} for i, rate in enumerate(settings["learning_rates"])]
    tune.Tuner(
        tune.with_resources(run_trial, {"trial": 1}),
        param_space={"loop": settings, "trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            scheduler=ASHAScheduler(
                time_attr="step",
                grace_period=settings["grace_steps"],
                reduction_factor=settings["reduction_factor"],
                max_t=settings["steps"] + 1,  # a trial that ASHA ends at its last step leaves its reservation behind
            ),
        ),
        run_config=tune.RunConfig(storage_path=f"{settings['out']}/tune", verbose=0, callbacks=[Tell()]),
    ).fit()


if __name__ == "__main__":
    main()
