"""How fast batches arrive, without a model: raytrain's pipeline beside a torch DataLoader over the same Parquet files.

    python benchmarks/data_stream.py

The movie reviews, tokenized and prepared once; batches of 32 to each of one and of two workers that throw them away.
The DataLoader has one worker process for each, as raytrain has one pipeline; it shuffles rows of an Arrow table in
memory and pads to the longest of a batch. Tokens are those of the text. CPU seconds are of all processes, Ray's
own too, between the 100th batch and the last; starting up is left out.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    arguments_with,
    middle,
    publish,
    rounds_of,
    run_script,
    spread,
    table,
    temporary_storage,
    training_only,
)

BATCH, WARM_UP = 32, 100
SIDES = ("raytrain", "DataLoader")


def main() -> None:
    """Print the table, or, with `--side`, measure one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--config", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    arguments = arguments_with(parser, rounds=3, steps=2000)
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments.config, arguments.workers, arguments.steps)))
        return
    rows = []
    with temporary_storage() as storage:
        config = training_only(storage, max_steps=10 * arguments.steps)
        for workers in (1, 2):
            results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for _ in range(arguments.rounds):
                for side, found in results.items():
                    options = ["--side", side, "--config", config, "--workers", str(workers)]
                    found.append(run_script(Path(__file__).name, *options, "--steps", str(arguments.steps)))
                    print(workers, side, found[-1], file=sys.stderr, flush=True)
            rows += rows_of(workers, results)
    header = ["", "workers", "padding", "tokens a CPU second", "ratio", "tokens a second", "ratio", "CPU ms a batch"]
    head = f"Batches of {BATCH} movie reviews, {arguments.steps} a worker; {rounds_of(arguments)}, alternating.\n\n"
    publish("Feeding workers", head + table(header, rows), arguments)


def rows_of(workers: int, results: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """The rows of the table for a number of workers; ratios are raytrain's figure over the DataLoader's."""
    rows = []
    for side, found in results.items():
        row = [side, str(workers), f"{middle([one['padding'] for one in found]):.1%}"]
        for key in ("tokens_per_cpu_s", "tokens_per_s"):
            ratios = [ours[key] / other[key] for ours, other in zip(*results.values(), strict=True)]
            shown = f"{middle(ratios):.2f} ({spread(ratios)})" if side == SIDES[0] else ""
            row += [f"{middle([one[key] for one in found]):,.0f}", shown]
        rows.append([*row, f"{middle([one['cpu_ms'] for one in found]):.1f}"])
    return rows


def measured(side: str, config: str, workers: int, steps: int) -> dict[str, float]:
    """Feed workers; the figures of one side."""
    import ray

    from raytrain.config.io import load_config
    from raytrain.data.prepare import prepare

    sizes = [f"training.global_batch_size={BATCH * workers}", f"training.micro_batch_size={BATCH}"]
    run = load_config(config, [*sizes, "workers.min=1", f"workers.max={workers}"])
    run = run.model_copy(update={"storage_path": str(Path(config).parent)})
    ray.init("local", num_cpus=2 * workers + 2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    store = prepare(run)
    feeder = ray.remote(num_cpus=1)(Feeder)
    feeders = [
        feeder.remote(side, run.model_dump(mode="json", exclude_unset=True), store.root, rank, workers)
        for rank in range(workers)
    ]
    ray.get([one.take.remote(WARM_UP) for one in feeders])
    before, began_at_s = cpu_seconds(), time.perf_counter()
    taken = np.sum(ray.get([one.take.remote(steps) for one in feeders]), axis=0)
    wall_s, cpu_s = time.perf_counter() - began_at_s, cpu_seconds() - before
    tokens, computed = taken
    return {
        "padding": 1 - tokens / computed,
        "tokens_per_cpu_s": tokens / cpu_s,
        "tokens_per_s": tokens / wall_s,
        "cpu_ms": 1000 * cpu_s / steps / workers,
    }


class Feeder:
    """A worker that takes batches and throws them away."""

    def __init__(self, side: str, config: dict[str, Any], root: str, rank: int, workers: int):
        from raytrain.config import RunConfig
        from raytrain.data.prepared import PreparedStore

        run, store = RunConfig.model_validate(config), PreparedStore(root)
        self._batches = (ours if side == SIDES[0] else data_loader)(run, store, rank, workers)

    def take(self, count: int) -> tuple[int, int]:
        """Tokens of the next batches, without padding and with it."""
        taken = [next(self._batches) for _ in range(count)]
        return sum(tokens for tokens, _ in taken), sum(computed for _, computed in taken)


def ours(config: Any, store: Any, rank: int, workers: int) -> Any:
    """Tokens of the batches that raytrain's pipeline delivers."""
    from raytrain.data.stream import Stream
    from raytrain.steps.batches import BatchPlan, World
    from raytrain.steps.timetable import make_timetable

    stream = Stream(config, store, World(rank, workers), BatchPlan.of(config, workers))
    stream.start(0, make_timetable(config, len(store.lengths("train")), has_validation=False))
    while True:
        step = stream.next_step()
        yield step.num_tokens, step.num_padded_tokens


def data_loader(config: Any, store: Any, rank: int, workers: int) -> Any:
    """Tokens of the batches of a DataLoader, as a script would set it up."""
    import pyarrow as pa
    import torch
    from torch.utils.data import DataLoader, DistributedSampler

    groups = range(len(store.row_group_starts("train")) - 1)
    rows = pa.concat_tables([store.read_row_group("train", group) for group in groups]).combine_chunks()
    ids, labels = rows["input_ids"].chunk(0), rows["labels"].chunk(0).to_numpy()

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return ids[index].values.to_numpy(), labels[index]

    def collate(samples: list[tuple[np.ndarray, int]]) -> dict[str, torch.Tensor]:
        width = max(len(row) for row, _ in samples)
        padded, mask = np.zeros((len(samples), width), np.int64), np.zeros((len(samples), width), np.int64)
        for place, (row, _) in enumerate(samples):
            padded[place, : len(row)] = row
            mask[place, : len(row)] = 1
        targets = torch.tensor([label for _, label in samples])
        return {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask), "labels": targets}

    dataset = Rows()
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, workers, rank, seed=config.seed)
    loader = DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=1, collate_fn=collate, persistent_workers=True, drop_last=True
    )
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for batch in loader:
            yield int(batch["attention_mask"].sum()), batch["input_ids"].numel()
        epoch += 1


def cpu_seconds() -> float:
    """CPU seconds of this process and of all below it, Ray's among them."""
    import psutil

    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


if __name__ == "__main__":
    main()
