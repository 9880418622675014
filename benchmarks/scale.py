"""What large runs cost, simulated on one machine: an order of 10^9 samples, 10^5 source files on an object store, a
checkpoint of 512 workers and 70B parameters, 2,000 workers that meet, and memory over 10^7 steps and samples.

    python benchmarks/scale.py                    # all of it
    python benchmarks/scale.py --files 100000     # only the source files, and this many

The index and the parts of the checkpoint are sparse files, so what is read is all zero: what is measured is the work,
not the disk. The source files are on an S3 server on loopback that takes 20 ms for each answer, see slow_s3.py.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import peak_gb
from slow_s3 import slow_s3

from raytrain.config import DataConfig, SequenceClassificationConfig
from raytrain.data.lengths import BLOCK_SAMPLES, index_name
from raytrain.data.listing import list_files
from raytrain.data.parts import PART_ROWS
from raytrain.data.prepared import Manifest, Part, PreparedStore, SplitInfo
from raytrain.data.sources import check_sources, read_tasks
from raytrain.steps.order import Order
from raytrain.tasks import make_task

SAMPLES = 10**9
FILES = 10**5
ROWS_PER_GROUP = 256
BATCH = 512


def main() -> None:
    """Print one line per figure."""
    with tempfile.TemporaryDirectory() as folder:
        write_sparse_store(Path(folder), SAMPLES)
        # In a process of its own, since its peak memory is part of the table.
        found = subprocess.run([sys.executable, __file__, folder], check=True, capture_output=True, text=True).stdout
        show("an order of 10^9 samples", json.loads(found))
    show("source files on an object store", check_files(FILES))
    with tempfile.TemporaryDirectory() as folder:
        show("a checkpoint of 512 workers and 70B parameters", restores(folder))
    show("workers that meet", meetings())
    show("steps and samples that only count", memories())


def show(title: str, found: dict[str, float]) -> None:
    """Print a table."""
    print(title)
    for name, value in found.items():
        print(f"  {name:<48} {value:>12.3f}", flush=True)


def write_sparse_store(folder: Path, num_samples: int) -> None:
    """The manifest and the index of a store whose parts don't exist. All lengths are 0."""
    full, rest = divmod(num_samples, BLOCK_SAMPLES)
    sums = [zlib.crc32(bytes(4 * BLOCK_SAMPLES))] * full + [zlib.crc32(bytes(4 * rest))] * (rest > 0)
    checksums = np.array(sums, dtype="<u4").tobytes()
    with open(folder / index_name("train"), "wb") as file:
        file.truncate(4 * num_samples)
        file.seek(4 * num_samples)
        file.write(checksums)
    parts = []
    for number, start in enumerate(range(0, num_samples, PART_ROWS)):
        full, rest = divmod(min(PART_ROWS, num_samples - start), ROWS_PER_GROUP)
        rows = [ROWS_PER_GROUP] * full + [rest] * (rest > 0)
        parts.append(Part(f"train/part-{number:05d}-00000.parquet", rows, 1 << 24, "0" * 64))
    split = SplitInfo(num_samples, 0, 0, 0, parts, sha256(checksums).hexdigest())
    (folder / "manifest.json").write_bytes(Manifest("f", {}, 0, {"train": split}, "c").to_json())


def first_window_and_seek(root: str) -> dict[str, float]:
    """Open the store in this process, take the first step, then one in the middle of a later epoch."""
    started_at_s, cpu_before_s = time.perf_counter(), time.process_time()
    store = PreparedStore(root)
    order = Order(
        store.row_group_starts("train"),
        store.lengths("train"),
        seed=0,
        global_batch_size=BATCH,
        canonical_shards=BATCH,
    )
    opened_at_s = time.perf_counter()
    order.step_samples(0, 0)
    first_at_s = time.perf_counter()
    order.step_samples(3, order.full_steps // 2)
    sought_at_s = time.perf_counter()
    return {
        "open the store, s": opened_at_s - started_at_s,
        "first window of an epoch, s": first_at_s - opened_at_s,
        "seek to the middle of another epoch, s": sought_at_s - first_at_s,
        "CPU time of these three, s": time.process_time() - cpu_before_s,
        "peak memory of the process, GB": peak_gb(),
    }


def check_files(num_files: int) -> dict[str, float]:
    """List and check a training split of many small Parquet files, as a command does before it starts anything, and
    again, as it does before it prepares the data."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"] * 100, "label": ["x"] * 100}), buffer)
    task = make_task(SequenceClassificationConfig(kind="sequence_classification"), 32)
    with slow_s3(num_files, buffer.getvalue()) as (folder, requests):
        data = DataConfig.model_validate({"train": {"path": folder}})
        cpu_before_s, marks_s = time.process_time(), [time.perf_counter()]
        list_files(data.train, "data.train")
        marks_s.append(time.perf_counter())
        files = check_sources(data, task)
        marks_s.append(time.perf_counter())
        num_requests = sum(requests().values())
        read_tasks(check_sources(data, task))
        marks_s.append(time.perf_counter())
        assert len(files["train"]) == num_files
        return {
            f"list {num_files:,} source files, s": marks_s[1] - marks_s[0],
            "list and check them, s": marks_s[2] - marks_s[1],
            "list and check them again, and their tasks, s": marks_s[3] - marks_s[2],
            "CPU time of these three, s": time.process_time() - cpu_before_s,
            "requests per file": num_requests / num_files,
        }


if __name__ == "__main__":
    if len(sys.argv) > 2:  # --files N
        show("source files on an object store", check_files(int(sys.argv[2])))
    elif len(sys.argv) > 1:  # the folder of a store: one reader, in a process of its own
        print(json.dumps(first_window_and_seek(sys.argv[1])))
    else:
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # torch logs each of the simulated workers
        from scale_meeting import meetings
        from scale_memory import memories
        from scale_restore import restores

        main()
