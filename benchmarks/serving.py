"""How fast a served model answers: `raytrain serve` under 32 connections beside `raytrain predict`, on the same rows.

    python examples/fetch_data.py movie_reviews minilm
    python benchmarks/serving.py

The client is a process of its own on the same machine, which takes CPU from the server: what it costs is told, measured
against a server that answers nothing. Prints a table, writes nothing.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
from common import DATA
from inference import command, save_model

URL = "http://127.0.0.1:18500"


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ask(texts: list[str], rows_per_request: int, connections: int, seconds: float, url: str) -> dict[str, Any]:
    """Ask for a time; what came back, and what it cost."""

    async def run() -> dict[str, Any]:
        times: list[float] = []
        failed, place = 0, 0
        ends_s = time.monotonic() + seconds
        began_cpu_s = cpu_s()

        async def one(session: aiohttp.ClientSession) -> None:
            nonlocal failed, place
            while time.monotonic() < ends_s:
                begin = place % (len(texts) - rows_per_request)
                place += rows_per_request
                began_s = time.monotonic()
                body = {"texts": texts[begin : begin + rows_per_request]}
                async with session.post(f"{url}/predict", json=body) as answer:
                    await answer.read()
                    failed += answer.status != 200
                times.append(time.monotonic() - began_s)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            began_s = time.monotonic()
            await asyncio.gather(*(one(session) for _ in range(connections)))
        wall_s = time.monotonic() - began_s
        times.sort()
        at = {name: times[int(len(times) * part)] for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
        rate = len(times) * rows_per_request / wall_s
        return {"rows_s": rate, "failed": failed, "client_cpu": (cpu_s() - began_cpu_s) / wall_s, **at}

    return asyncio.run(run())


def in_a_process(*arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(ask, arguments)


def serving(best: str, replicas: int) -> subprocess.Popen[bytes]:
    """The command, once it answers."""
    words = ["serve", best, "--port", URL.rpartition(":")[2], "--replicas", str(replicas)]
    process = subprocess.Popen([sys.executable, "-m", "raytrain", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{URL}/readyz").close()
            return process
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args()
    texts = [row for row in pq.read_table(DATA / "train.parquet")["text"].to_pylist() if row.strip()][: options.rows]
    with tempfile.TemporaryDirectory() as name:
        source, best = Path(name) / "rows.parquet", save_model(Path(name), 128)
        pq.write_table(pa.table({"text": texts}), source)
        for number in range(options.rounds):
            rate, _ = command(best, source, Path(name) / "out.parquet", options.replicas)
            print(f"round {number + 1}: load {os.getloadavg()[0]:.1f}, predict {rate:.0f} rows/s", flush=True)
            process = serving(best, options.replicas)
            try:
                for rows in (1, 8, 64):
                    in_a_process(texts, rows, options.connections, 3.0, URL)
                    found = in_a_process(texts, rows, options.connections, options.seconds, URL)
                    print(
                        f"  {rows:3} rows per request: {found['rows_s']:7.1f} rows/s ({found['rows_s'] / rate:.2f}x of "
                        f"predict), p50 {found['p50'] * 1e3:.0f} ms, p90 {found['p90'] * 1e3:.0f}, p99 "
                        f"{found['p99'] * 1e3:.0f} ({found['p99'] / found['p50']:.1f}x), {found['failed']} failed, "
                        f"client {found['client_cpu']:.2f} CPUs",
                        flush=True,
                    )
                groups = urllib.request.urlopen(f"{URL}/metrics").read().decode()
                print(
                    json.dumps([line for line in groups.splitlines() if "group_rows_" in line and "bucket" not in line])
                )
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait()


if __name__ == "__main__":
    main()
