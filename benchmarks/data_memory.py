"""What preparing much text takes of memory: 0.2 and 2 GB with near duplicates removed, and 300 MB of object store.

Texts of some 300 characters, one in ten an edit of another, are checked, compared, encoded and written by a Ray of two
CPUs. Told are the bytes that Ray's object store has spilled to disk, and the peak memory of the driver, which must not
grow with the data. Each amount is a process of its own, since memory that was freed would count.

    python examples/fetch_data.py minilm
    python benchmarks/data_memory.py                     # some 25 minutes; prints a table, writes nothing
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import MODEL, peak_gb, table

STORE_BYTES = 300_000_000
ROWS_OF_A_GROUP, WORDS = 10_000, 48
HEADER = ["text, GB", "rows", "kept", "spilled, MB", "driver's peak, MB", "s"]


def write_texts(path: Path, num_bytes: int) -> int:
    """Rows with a `text`, in Parquet. Returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    letters = np.array(list("eeeettaaooiinnsshhrrddlcumwfgypbvk"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(20_000)], dtype=object)
    weights = 1 / (np.arange(len(words)) + 10)
    weights /= weights.sum()
    written, num_rows = 0, 0
    schema = pa.schema([("text", pa.string()), ("label", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        while written < num_bytes:
            drawn = rng.choice(len(words), (ROWS_OF_A_GROUP, WORDS), p=weights)
            edits = np.flatnonzero(rng.random(ROWS_OF_A_GROUP) < 0.1)
            drawn[edits] = drawn[rng.integers(0, ROWS_OF_A_GROUP, len(edits))]
            drawn[edits, rng.integers(0, WORDS, len(edits))] = rng.integers(0, len(words), len(edits))
            texts = [" ".join(row) for row in words[drawn]]
            labels = rng.choice(["negative", "positive"], ROWS_OF_A_GROUP).tolist()
            writer.write_table(pa.table({"text": texts, "label": labels}, schema))
            written += sum(map(len, texts))
            num_rows += len(texts)
    return num_rows


def prepared(folder: Path, num_bytes: int) -> dict[str, Any]:
    """Prepare so much text; what it took."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    from raytrain.config import RunConfig
    from raytrain.data.prepare import prepare

    num_rows = write_texts(folder / "train.parquet", num_bytes)
    raw = {
        "name": "benchmark",
        "storage_path": str(folder / "runs"),
        "task": {"kind": "sequence_classification", "labels": ["negative", "positive"]},
        "model": {"path": str(MODEL)},
        "data": {
            "train": {"path": str(folder / "train.parquet")},
            "max_length": 128,
            "dedup": {"near": True},
        },
    }
    context = ray.init(
        address="local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False
    )
    begun_gb, began_s = peak_gb(), time.perf_counter()
    manifest = prepare(RunConfig.model_validate(raw)).manifest
    took_s = time.perf_counter() - began_s
    stats = get_memory_info_reply(get_state_from_address(context.address_info["gcs_address"])).store_stats
    found = {"rows": num_rows, "kept": manifest.splits["train"].num_samples, "s": took_s}
    found |= {"spilled": stats.spilled_bytes_total / 1e6, "before": begun_gb * 1e3, "peak": peak_gb() * 1e3}
    ray.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, nargs="+", default=[0.2, 2.0], help="of text (0.2 2)")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(prepared(Path(name), int(args.one * 1e9))))
        return
    rows = []
    for size in args.gb:
        command = [sys.executable, __file__, "--one", str(size)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        numbers = [f"{found['spilled']:.0f}", f"{found['peak']:.0f}", f"{found['s']:.0f}"]
        rows.append([f"{size:g}", f"{found['rows']:,}", f"{found['kept']:,}", *numbers])
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
