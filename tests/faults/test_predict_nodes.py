"""`raytrain predict` on a cluster whose nodes come and go: what joins is used, and a node that is lost costs no row."""

import json
import time
from pathlib import Path

import pytest
import ray
from cluster import WORKER_CPUS, NodePool
from running import start_cli
from saved_models import model_config, save_best
from tiny import make_reviews
from training import STARTED

ROWS = 60_000


def nodes_of_actors() -> set[str]:
    """Node ids of the actors that predict."""
    from ray._private.state import actors

    found = [actor for actor in actors().values() if actor["ActorClassName"] == "PieceWorker"]
    return {actor["Address"]["NodeID"] for actor in found if actor["State"] == "ALIVE"}


@pytest.mark.slow
def test_nodes_come_and_go(pool: NodePool, tmp_path: Path) -> None:
    best = save_best(
        model_config(tmp_path, {"kind": "sequence_classification"}), {"labels": ["negative", "positive"]}, tmp_path
    )
    texts = [row["text"] for row in make_reviews(1000, seed=3)]
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps({'text': texts[n % 1000], 'n': n})}\n" for n in range(ROWS)))
    options = [f"workers.cpus={WORKER_CPUS}", "workers.max_failures=0", f"ray.address={pool.address}"]
    process = start_cli("predict", best, str(source), "--out", str(out), *options)
    STARTED.append(process)
    ray.init(address=pool.address, log_to_driver=False)
    try:
        wait_for(lambda: len(nodes_of_actors()) == 1 and parts_of(tmp_path) > 0, process)
        pool.add()
        wait_for(lambda: len(nodes_of_actors()) == 2, process)
        before = parts_of(tmp_path)
        wait_for(lambda: parts_of(tmp_path) > before + 2, process)
        pool.kill(pool.nodes[0])
        output, _ = process.communicate(timeout=240)
    finally:
        ray.shutdown()
    assert process.returncode == 0, output
    assert [json.loads(line)["n"] for line in out.read_text().splitlines()] == list(range(ROWS))


def parts_of(folder: Path) -> int:
    return len(list(folder.glob("out.jsonl.work/*/*.arrow")))


def wait_for(is_so: object, process: object) -> None:
    end_s = time.monotonic() + 200
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end_s and process.poll() is None  # type: ignore[attr-defined]
        time.sleep(0.2)
