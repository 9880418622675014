"""How long a worker takes to begin at 99 % of an epoch with a mixture of sources and with balanced labels.

    python benchmarks/data_seek.py               # 10^7 samples
    python benchmarks/data_seek.py 1000000000    # this many

The store has its two indices, of lengths and of labels, and no parts: what is measured is everything up to the ids of
the step. Labels are at 20 : 4 : 1, sorted in chunks of 4096 as PREPARE does; three sources have weights of 3 : 2 : 1.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import peak_gb

from raytrain.config.io import parse_config
from raytrain.data.lengths import encode_index, index_name, label_index_name
from raytrain.data.parts import PART_ROWS
from raytrain.data.prepared import Manifest, Part, PreparedStore, SourceInfo, SplitInfo
from raytrain.data.step_reader import make_order

ROWS_PER_GROUP, BATCH = 128, 256
LABELS = ["bulk", "some", "rare"]
CASES = {
    "each sample once": [],
    "mixture": ["weights"],
    "balance": ["data.balance={}"],
    "mixture and balance": ["weights", "data.balance={}"],
}


def write_store(folder: Path, num_samples: int) -> None:
    """The manifest and the indices of a store whose parts don't exist."""
    random = np.random.default_rng(0)
    chunk = np.sort(random.choice(3, 4096, p=[0.8, 0.16, 0.04]))
    labels = np.tile(chunk, -(-num_samples // 4096))[:num_samples]
    lengths = np.tile(random.integers(4, 128, 4096), -(-num_samples // 4096))[:num_samples]
    hashes = {}
    for name, values in ((index_name("train"), lengths), (label_index_name("train"), labels)):
        data, hashes[name] = encode_index(values)
        (folder / name).write_bytes(data)
    ends = [num_samples // 2 // PART_ROWS * PART_ROWS, num_samples * 3 // 4 // PART_ROWS * PART_ROWS, num_samples]
    begins, sources, parts = [0, *ends[:-1]], [], []
    for begin, end in zip(begins, ends, strict=True):
        counts = np.bincount(labels[begin:end], minlength=3).tolist()
        sources.append(SourceInfo(end - begin, dict(zip(LABELS, counts, strict=True))))
        for number, start in enumerate(range(begin, end, PART_ROWS)):
            full, rest = divmod(min(PART_ROWS, end - start), ROWS_PER_GROUP)
            rows = [ROWS_PER_GROUP] * full + [rest] * (rest > 0)
            parts.append(Part(f"train/part-{begin:05d}-{number:05d}.parquet", rows, 1 << 24, "0" * 64))
    counts = dict(zip(LABELS, np.bincount(labels, minlength=3).tolist(), strict=True))
    lengths_hash, labels_hash = hashes.values()
    split = SplitInfo(num_samples, 0, 0, 0, parts, lengths_hash, counts, labels_hash, sources)
    manifest = Manifest("f", {"labels": LABELS}, 0, {"train": split}, "c")
    (folder / "manifest.json").write_bytes(manifest.to_json())


def seek(root: str, options: list[str]) -> tuple[float, float]:
    """Seconds of wall and of CPU time from the opened store to the ids of a step at 99 % of the third epoch."""
    weights = [3, 2, 1] if "weights" in options else [None] * 3
    sources = [{"path": f"{i}.csv", "weight": weight} for i, weight in enumerate(weights)]
    raw = {
        "name": "seek",
        "task": {"kind": "sequence_classification", "labels": LABELS},
        "model": {"path": "m"},
        "data": {"train": {"sources": sources}},
        "training": {"global_batch_size": BATCH},
    }
    config = parse_config(raw, [option for option in options if "=" in option])
    store = PreparedStore(root)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    order = make_order(config, store)
    order.step_samples(2, order.steps_per_epoch * 99 // 100)
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def main() -> None:
    """Print the seconds of each case."""
    num_samples = int(sys.argv[1]) if len(sys.argv) > 1 else 10**7
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), num_samples)
        print(f"{num_samples:,} samples: seconds to a step at 99 % of the third epoch, wall and CPU, best of three")
        for name, options in CASES.items():
            wall_s, cpu_s = min(seek(folder, options) for _ in range(3))
            print(f"  {name:<24} {wall_s:>8.3f} {cpu_s:>8.3f}", flush=True)
        print(f"  peak memory, GB {peak_gb():>17.3f}, of which writing the store took some")


if __name__ == "__main__":
    main()
