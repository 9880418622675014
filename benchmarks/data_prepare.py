"""Preparing texts: `raytrain data prepare` beside `datasets.map` with the same tokenizer and as many processes.

Both read the same Parquet file of sentences of some 100 characters with a label, encode them, truncate them to 128
tokens, and write ids and labels to disk. Imports, and the start and the end of Ray, count. The two sides take turns;
each is a process of its own, and its CPU time is that of all processes below it, seen every tenth of a second.
raytrain also checks each row, writes an index and hashes, and can be continued after a kill.

    pip install datasets==5.2.0
    python examples/fetch_data.py minilm
    python benchmarks/data_prepare.py
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from common import MODEL, middle, publish, rounds_of, spread, table

SIDES = ("raytrain", "datasets")
POLL_S = 0.1
MAX_LENGTH = 128


def write_sentences(path: Path, num_rows: int) -> None:
    """Rows with a `text` of some 104 characters and a `label`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(0)
    words = ["".join(rng.choices("eeeettaaooiinnsshhrrddlcumwfgypbvk", k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    texts = [" ".join(rng.choices(words, weights, k=16)) for _ in range(num_rows)]
    labels = [rng.choice(("negative", "positive")) for _ in range(num_rows)]
    pq.write_table(pa.table({"text": texts, "label": labels}), path, row_group_size=10_000)


def by_raytrain(folder: Path, num_cpus: int) -> int:
    """Samples."""
    import ray

    from raytrain.config import RunConfig
    from raytrain.data.prepare import prepare

    raw = {
        "name": "benchmark",
        "storage_path": str(folder / "runs"),
        "task": {"kind": "sequence_classification", "labels": ["negative", "positive"]},
        "model": {"path": str(MODEL)},
        "data": {"train": {"path": str(folder / "train.parquet")}, "max_length": MAX_LENGTH},
    }
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    num_samples = prepare(RunConfig.model_validate(raw)).manifest.splits["train"].num_samples
    ray.shutdown()
    return num_samples


def by_datasets(folder: Path, num_cpus: int) -> int:
    """Samples."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = tokenizer(rows["text"], truncation=True, max_length=MAX_LENGTH)["input_ids"]
        return {"input_ids": ids, "labels": [int(label == "positive") for label in rows["label"]]}

    datasets.disable_progress_bars()
    file = str(folder / "train.parquet")
    rows = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(folder / "cache"))
    encoded = rows.map(encode, batched=True, num_proc=num_cpus, remove_columns=["text", "label"])
    encoded.save_to_disk(str(folder / "saved"), num_proc=num_cpus)
    return len(encoded)


def measure(side: str, source: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the clock and of all CPUs."""
    with tempfile.TemporaryDirectory() as name:
        os.link(source, Path(name, "train.parquet"))
        command = [sys.executable, __file__, "--side", side, "--folder", name, "--cpus", str(args.cpus)]
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        started_at_s, cpu_s = time.perf_counter(), dict[tuple[int, float], float]()
        process = psutil.Process(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL).pid)
        known = {process}
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            known |= {child for one in known if one.is_running() for child in _children(one)}
            for one in known:
                try:
                    times = one.cpu_times()
                    cpu_s[one.pid, one.create_time()] = times.user + times.system
                except psutil.NoSuchProcess:  # its time is what was seen last
                    continue
            time.sleep(POLL_S)
        if (code := process.wait()) not in (0, None):
            raise RuntimeError(f"{' '.join(command)} ended with {code}")
        return {"wall": time.perf_counter() - started_at_s, "cpu": sum(cpu_s.values())}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def report(args: argparse.Namespace, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Publish the table."""
    rows = []
    for side in SIDES:
        cells = [side]
        for what in ("cpu", "wall"):
            seconds = [one[side][what] for one in rounds]
            cells.append(f"{middle(seconds):.1f} ({spread(seconds)})")
        rows.append([*cells, f"{args.rows / middle([one[side]['cpu'] for one in rounds]):,.0f}"])
    ratios = {what: [one["datasets"][what] / one["raytrain"][what] for one in rounds] for what in ("cpu", "wall")}
    header = ["", "CPU s", "s", "rows a CPU second"]
    text = (
        f"{args.rows:,} sentences of some 100 characters, {args.cpus} processes, start and end included; "
        f"{rounds_of(args)}.\n\n{table(header, rows)}\n\n"
        f"raytrain prepares {middle(ratios['cpu']):.2f} times as many rows a CPU second ({spread(ratios['cpu'])}), and "
        f"{middle(ratios['wall']):.2f} times as many a second ({spread(ratios['wall'])})."
    )
    publish("Preparing texts", text, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        {"raytrain": by_raytrain, "datasets": by_datasets}[args.side](args.folder, args.cpus)
        return
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "train.parquet")
        write_sentences(source, args.rows)
        rounds = [{side: measure(side, source, args) for side in SIDES} for _ in range(args.rounds)]
    report(args, rounds)


if __name__ == "__main__":
    main()
