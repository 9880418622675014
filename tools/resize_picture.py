"""The picture in the README: the loss of a run that is resized and killed, over that of an undisturbed run.

    python tools/resize_picture.py --keep /tmp/resize_picture      # a few minutes on two cores; draws it at the end
    python tools/resize_picture.py --keep /tmp/resize_picture --draw-only

Several Ray nodes run beside each other on this machine, as in tests/faults. Both curves are the run folders'
`metrics.jsonl`; the marks are the lines of `events.jsonl`. The script fails when the two runs differ in the samples of
any step, or in any loss by more than 1e-4.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

from cluster import node_pool  # noqa: E402
from running import assert_same_curve, losses, run_cli, samples_of_steps, steps_done, tiny_run, write_config  # noqa: E402
from tiny import make_reviews, write_parquet  # noqa: E402
from training import Training, endless_run  # noqa: E402

from raytrain.reports.steps import StepSample  # noqa: E402
from raytrain.storage import Storage  # noqa: E402
from raytrain.training.records import iterate_jsonl, read_jsonl  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "resized_run.png"
NUM_ROWS = 8000
WRONG_LABELS = 0.1  # share of them: the loss then falls slowly, and not to 0
SETTINGS = (
    "training.global_batch_size=32",
    "training.micro_batch_size=6",  # 6 of them, as many for 1, 2 and 3 workers
    "training.optimizer.learning_rate=1.5e-3",
    "model.config.initializer_range=0.2",
    "data.test=null",
)
NOTICE_S = 30
SMOOTHING = 15  # steps; the loss of single batches is noisy
LABELS = {"resize": "node joined", "reclaim": "node reclaimed", "failure": "node killed"}
COLORS = {"resize": "#2a7f3f", "reclaim": "#b36b00", "failure": "#b02020"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True, help="a new folder for the two runs")
    parser.add_argument("--draw-only", action="store_true", help="draw the runs that are in the folder")
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    if not arguments.draw_only:
        train_both(arguments.keep)
    draw(arguments.keep / "runs", arguments.out)


def train_both(folder: Path) -> None:
    """One run through five changes of the cluster, and one of as many steps that nothing disturbs."""
    write_data(folder)
    with node_pool(1) as pool:
        run = Training(pool, folder, *SETTINGS)
        run.wait_for_workers(1)
        for world_size in (2, 3):
            pool.add()
            run.wait_for_workers(world_size)
        pool.kill(pool.node_of(run.nodes()[-1]))
        run.wait_for_workers(2)
        pool.add()
        run.wait_for_workers(3)
        leaving = pool.node_of(run.nodes()[-1])
        pool.drain(leaving, NOTICE_S)
        run.wait_for_workers(2)
        pool.kill(leaving)
        (folder / "output.txt").write_text(run.stop())
    config = endless_run(folder, "undisturbed", steps_done(run.path), *SETTINGS)
    code, output = run_cli("train", write_config(config, folder), timeout_s=900)
    assert code == 0, output
    alone = folder / "runs" / "undisturbed"
    assert samples_of_steps(run.path) == samples_of_steps(alone)
    assert_same_curve(losses(run.path), losses(alone))


def write_data(folder: Path) -> None:
    """The files that both runs share: tokenizer and reviews, some of them with the wrong label."""
    folder.mkdir(parents=True)
    tiny_run(folder, "data")
    rows, draw = make_reviews(NUM_ROWS, seed=0), random.Random(0)
    for row in rows:
        if draw.random() < WRONG_LABELS:
            row["label"] = "negative" if row["label"] == "positive" else "positive"
    write_parquet(folder / "data" / "train.parquet", rows)


def draw(runs: Path, out: Path) -> None:
    """Losses above, workers below, and a line at each change."""
    from matplotlib import pyplot as plt

    disturbed, alone = losses(runs / "elastic"), losses(runs / "undisturbed")
    assert disturbed.keys() == alone.keys()
    difference = max(abs(disturbed[step] - alone[step]) for step in alone)
    figure, (top, below) = plt.subplots(
        2, 1, figsize=(9, 4.6), sharex=True, height_ratios=(4, 1), layout="constrained", dpi=120
    )
    top.plot(*smoothed(alone), color="#9ec5e8", linewidth=5, label="one worker, undisturbed")
    top.plot(*smoothed(disturbed), color="#12395e", linewidth=1.2, label="1 to 3 workers, resized and killed")
    top.set_ylabel(f"training loss\n(mean of {SMOOTHING} steps)")
    title = f"{len(alone)} steps in fp32, with dropout: no loss differs by more than {difference:.0e}"
    top.set_title(title, fontsize=11)
    sizes = {row["step"]: row["world_size"] for row in rows(runs / "elastic")}
    below.step(list(sizes), list(sizes.values()), where="post", color="#12395e")
    below.set(xlabel="optimizer step", ylabel="workers", yticks=(1, 2, 3), ylim=(0.5, 3.5))
    mark(top, below, changes(runs / "elastic"))
    top.legend(loc="lower left", frameon=True)
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, metadata={"Software": None})
    print(f"{out}: {len(alone)} steps, largest difference {difference:.2e}, changes {changes(runs / 'elastic')}")


def mark(top: Any, below: Any, found: list[dict[str, Any]]) -> None:
    """A line at the step from which the run continued after each change; each kind is named once in the legend."""
    named: set[str] = set()
    for event in found:
        kind = event["kind"]
        redone = f" ({event['steps_redone']} steps redone)" if event["steps_redone"] else ""
        label = None if kind in named else f"{LABELS[kind]}{redone}"
        named.add(kind)
        for axes in (top, below):
            axes.axvline(event["step"], color=COLORS[kind], linestyle="--", label=label if axes is top else None)


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, the last attempt at each step."""
    return StepSample(iterate_jsonl(Storage(str(run)), "metrics.jsonl"), most=10**6).rows


def changes(run: Path) -> list[dict[str, Any]]:
    """The changes of the worker group: what kind, from which step it continued, how many steps were redone."""
    found = [event for event in read_jsonl(Storage(str(run)), "events.jsonl") if event["kind"] in LABELS]
    keys = ("kind", "step", "world_size_before", "world_size", "steps_redone")
    return [{key: event[key] for key in keys} for event in found if "world_size" in event]


def smoothed(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    """Steps, and the mean loss of the SMOOTHING steps up to each of them."""
    steps, values = list(curve), list(curve.values())
    windows = [values[max(0, i + 1 - SMOOTHING) : i + 1] for i in range(len(values))]
    return steps, [sum(window) / len(window) for window in windows]


if __name__ == "__main__":
    main()
