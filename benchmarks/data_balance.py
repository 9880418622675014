"""Classes at 1:20: macro F1 of plain training, of `data.balance`, and of `training.class_weights`.

    python benchmarks/data_balance.py

MiniLM on the movie reviews, of which 2,000 negative and 100 positive training sentences are kept; the model of the last
evaluation is tested on the whole test split, where both classes are equally frequent. Each run of a seed has the same
steps: without balance a step has other sentences, with it the 100 come about ten times in an epoch.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from common import (
    DATA,
    PROJECT,
    arguments_with,
    middle,
    one_worker,
    publish,
    run_command,
    spread,
    table,
    temporary_storage,
)

RARE, FREQUENT = ("positive", 100), ("negative", 2000)
WAYS = {"plain": [], "data.balance": ["data.balance={}"], "training.class_weights": ["training.class_weights=auto"]}


def main() -> None:
    """Train each way with each seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_with(parser, seeds=5)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with temporary_storage() as storage:
        config = skewed(storage)
        for seed in range(arguments.seeds):
            for way, overrides in WAYS.items():
                found[way].append(tested(config, storage, f"{way}_{seed}", [f"seed={seed}", *overrides]))
                print(seed, way, found[way][-1], flush=True)
    rows = [
        [way, *(f"{middle(values):.3f} ({spread(values)})" for values in zip(*map(dict.values, results), strict=True))]
        for way, results in found.items()
    ]
    head = f"{FREQUENT[1]} {FREQUENT[0]} and {RARE[1]} {RARE[0]} sentences, one epoch; {arguments.seeds} seeds: median "
    text = head + "(smallest to largest).\n\n" + table(["", "macro F1", "accuracy"], rows)
    publish("Classes at 1:20", text, arguments)


def skewed(storage: Path) -> str:
    """Path of a config of the shipped run with few sentences of one class."""
    rows = pq.read_table(DATA / "train.parquet")
    labels = np.array(rows["label"].to_pylist())
    kept = np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in (RARE, FREQUENT)])
    pq.write_table(rows.take(np.sort(kept)), storage / "train.parquet")
    raw: dict[str, Any] = yaml.safe_load((PROJECT / "raytrain" / "configs" / "movie_reviews.yaml").read_text())
    raw["data"]["train"] = {"path": str(storage / "train.parquet")}
    raw["training"] |= {"eval_every_epochs": 1, "early_stopping": None}
    path = storage / "skewed.yaml"
    path.write_text(yaml.safe_dump(raw | {"storage_path": str(storage), "tracking": {"tensorboard": False}}))
    return str(path)


def tested(config: str, storage: Path, name: str, overrides: list[str]) -> dict[str, float]:
    """Train, and return the figures on the test split."""
    name = name.replace(".", "_")
    run_command([sys.executable, "-m", "raytrain", "train", config, f"name={name}", *one_worker(2), *overrides])
    summary = json.loads((storage / name / "summary.json").read_text())
    return {metric: summary["final_metrics"][metric] for metric in ("macro_f1", "accuracy")}


if __name__ == "__main__":
    main()
