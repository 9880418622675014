"""How fast a trained model answers: `raytrain predict` beside a loop over `transformers.pipeline`, on the same rows.

    python examples/fetch_data.py movie_reviews minilm
    python benchmarks/inference.py

The model is the one of the movie reviews with a head that was not trained, which takes as long. The sides take turns.
Rates are those with the model in memory; the whole time of the command, start included, stands beside them. Prints a
table, writes nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from common import DATA, MODEL, PROJECT

from raytrain.config.io import parse_config
from raytrain.data.prepared import Manifest, SplitInfo
from raytrain.inference.batch import Request, predict_source
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.training.export import describe, save_description, save_tokenizer

STATE = {"labels": ["negative", "positive"]}


def save_model(folder: Path, max_length: int) -> str:
    """A best/ folder; returns its path."""
    import torch

    raw = yaml.safe_load((PROJECT / "raytrain" / "configs" / "movie_reviews.yaml").read_text())
    raw["model"]["path"] = str(MODEL)
    raw["data"]["max_length"] = max_length
    config = parse_config(raw)
    best, task = folder / f"best{max_length}", make_task(config.task, max_length)
    best.mkdir()
    torch.manual_seed(0)
    model = task.build_model(config.model, STATE, config.training)
    task.save_model(model, model.state_dict(), str(best))
    save_tokenizer(config, str(best))
    facts = describe(config, Manifest("f", STATE, 0, {"train": SplitInfo(1, 1, 0, 0, [], "")}, ""), step=1, epoch=1)
    save_description(facts, Storage(str(folder)), str(best))
    return str(best)


def pipeline_rate(best: str, texts: Sequence[str], batch_size: int | None, num_threads: int) -> float:
    """Rows a second of a loop over a pipeline; None: its default."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(num_threads)
    ask: Any = pipeline("text-classification", best, truncation=True)
    ask(list(texts[:4]))
    began_s = time.monotonic()
    for _ in ask(list(texts), **({} if batch_size is None else {"batch_size": batch_size})):
        pass
    return len(texts) / (time.monotonic() - began_s)


def command(best: str, source: Path, out: Path, num_workers: int) -> tuple[float, float]:
    """(rows a second with the model in memory, seconds of the whole command)."""
    workers = f"workers.max={num_workers}"
    found = predict_source(best, Request(str(source), str(out), (workers,), overwrite=True))
    return found.rows_per_s, found.duration_s


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    reviews = [row for row in pq.read_table(DATA / "train.parquet")["text"].to_pylist() if row.strip()]
    long = [" ".join(reviews[10 * i : 10 * i + 1 + i % 12]) for i in range(len(reviews) // 12)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, texts, max_length in (("movie reviews", reviews, 128), ("long texts", long, 512)):
            texts = (texts * (1 + options.rows // len(texts)))[: options.rows if kind == "movie reviews" else 768]
            source = folder / f"{max_length}.parquet"
            pq.write_table(pa.table({"text": texts}), source)
            best = save_model(folder, max_length)
            some = texts[: len(texts) // 4]
            sides: dict[str, Callable[[], float]] = {
                "pipeline, default": lambda best=best, some=some: pipeline_rate(best, some[:256], None, options.workers)
            }
            for size in (8, 32, 128):
                sides[f"pipeline, batches of {size}"] = lambda size=size, best=best, some=some: pipeline_rate(
                    best, some, size, options.workers
                )
            wall: list[float] = []

            def ours(best: str = best, source: Path = source, wall: list[float] = wall) -> float:
                rate, seconds = command(best, source, folder / "out.parquet", options.workers)
                wall.append(seconds)
                return rate

            sides["raytrain predict"] = ours
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side, measure in sides.items():
                    rates[side].append(measure())
            print(f"\n{kind}, {len(texts)} rows, at most {max_length} tokens")
            for side, found in rates.items():
                ratio = statistics.median(a / b for a, b in zip(rates["raytrain predict"], found, strict=True))
                print(f"  {side:26} {statistics.median(found):8.1f} rows/s   raytrain is {ratio:5.2f}x", flush=True)
            print(f"  the whole command took {statistics.median(wall):.1f} s")


if __name__ == "__main__":
    main()
