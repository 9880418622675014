"""A spot cluster on this machine: a node is killed, another one joins, and the loss is that of an undisturbed run.

python examples/elastic_demo.py        # or: make elastic-demo; two to three minutes on two cores
"""

import json
import logging
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from spot_cluster import ELASTIC, SpotCluster  # noqa: E402
from tiny_reviews import make_reviews, tiny_config  # noqa: E402

import raytrain  # noqa: E402

TOLERANCE = 1e-4
STEPS_BETWEEN = 20
PATIENCE_S = 240.0


class Watch(raytrain.Callback):
    """Prints what happens to the run, and ends it when it is told to."""

    def __init__(self) -> None:
        self.step, self.world_size, self.is_over = 0, 0, False

    def on_step(self, info: raytrain.StepInfo) -> raytrain.StopTraining | None:
        """Note how far it is."""
        self.step, self.world_size = info.step, info.world_size
        return raytrain.StopTraining("enough has happened") if self.is_over else None

    def on_resize(self, info: raytrain.ResizeInfo) -> None:
        """Print the change."""
        say(
            f"  {info.kind}: {info.world_size_before} -> {info.world_size} workers, from step {info.step} on, "
            f"{info.steps_redone} steps redone, {info.seconds:.1f} s from its cause to the next step"
        )

    def wait_for(self, world_size: int, run: "Future[Any]") -> None:
        """Until some steps were done by this number of workers. Raises what ended the run, or TimeoutError."""
        deadline_s, since = time.monotonic() + PATIENCE_S, None
        while since is None or self.step < since + STEPS_BETWEEN:
            since = self.step if self.world_size == world_size and since is None else since
            if run.done():
                run.result()
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no steps of {world_size} workers in {PATIENCE_S:.0f} s")
            time.sleep(0.1)
        say(f"  step {self.step}: {self.world_size} workers train")


def main() -> None:
    """The demo."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="elastic_demo_") as folder:
        rows = make_reviews(4000, seed=0)
        say("starting a cluster: a head and three nodes")
        cluster = SpotCluster(3)
        try:
            disturbed = train_disturbed(cluster, folder, rows)
            say(f"the same {disturbed.step} steps again, on one worker that nothing disturbs")
            words = {**ELASTIC, "training.max_steps": disturbed.step, "workers.max": 1, "ray.address": cluster.address}
            undisturbed = raytrain.train(tiny_config("undisturbed", folder), words, train=rows)
        finally:
            cluster.close()
        compare(losses(disturbed), losses(undisturbed))


def train_disturbed(cluster: SpotCluster, folder: str, rows: list[dict[str, str]]) -> raytrain.RunResult:
    """Train while a node is killed and another one joins."""
    watch = Watch()
    words = {**ELASTIC, "training.max_steps": 100_000, "ray.address": cluster.address}
    config = tiny_config("disturbed", folder)
    with ThreadPoolExecutor(1) as pool:  # the cluster is managed in the main thread
        run = pool.submit(raytrain.train, config, words, train=rows, callbacks=[watch])
        try:
            watch.wait_for(3, run)
            say("killing a node, without notice")
            cluster.kill()
            watch.wait_for(2, run)
            say("adding a node")
            cluster.add()
            watch.wait_for(3, run)
        finally:
            watch.is_over = True
        return run.result()


def losses(result: raytrain.RunResult) -> dict[int, float]:
    """The loss of each step; of a step that was redone, the last one."""
    lines = (Path(result.run_path) / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def compare(one: dict[int, float], other: dict[int, float]) -> None:
    """Print how much the losses differ. Exits with 1 if it is more than rounding."""
    worst = max(one, key=lambda step: abs(one[step] - other[step]))
    difference = abs(one[worst] - other[worst])
    say(f"of {len(one)} steps no loss differs by more than {difference:.1e} (step {worst}: {one[worst]:.7f})")
    if one.keys() != other.keys() or difference > TOLERANCE:
        sys.exit("the runs differ")


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
