"""Where the training loop spends its time: waiting for data, forward, backward, update, agreeing, writing, saving.

    python benchmarks/loop_profile.py

Real runs of raytrain, once with one worker and once with two, with a clock around the parts of the loop on worker 0.
With several workers the gradients are reduced inside backward and update (ZeRO), so waiting for slower workers shows
there and under "agree".
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import (
    LIKE_THE_PLAIN_LOOPS,
    arguments_with,
    publish,
    table,
    temporary_storage,
    training_only,
)

PARTS = ["data wait", "forward", "backward", "update", "agree", "write metrics", "save"]
PROFILE = "profile.json"


class Clock:
    """Adds up the seconds that are spent in functions, from a given training step on."""

    def __init__(self, warmup: int):
        self.seconds: dict[str, float] = defaultdict(float)
        self.num_steps = -warmup
        self.started_at_s = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time added to `part`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started_at_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - started_at_s

        return call

    def step_begins(self) -> None:
        """Count a step; the clock starts anew after the warm-up."""
        if self.num_steps == 0:
            self.seconds.clear()
            self.started_at_s = time.perf_counter()
        self.num_steps += 1

    def result(self) -> dict[str, float]:
        """Seconds of each part and of the whole, a step."""
        total_s = time.perf_counter() - self.started_at_s
        return {part: self.seconds[part] / self.num_steps for part in PARTS} | {"step": total_s / self.num_steps}


def install(clock: Clock, on_end: Callable[[], None]) -> None:
    """Put the clock around the parts of the loop in this process."""
    from raytrain.data.stream import Stream
    from raytrain.engine.engine import Engine
    from raytrain.training.agreement import Control
    from raytrain.training.run_log import RunLog
    from raytrain.training.saving import Saver

    train_step, finish = Engine.train_step, Saver.finish

    def timed_step(engine: Engine, micro_batches: Any, loss_sum_fn: Any, *args: Any) -> Any:
        clock.step_begins()
        if "backward" not in vars(engine.deepspeed):
            engine.deepspeed.backward = clock.timed("backward", engine.deepspeed.backward)
            engine.deepspeed.step = clock.timed("update", engine.deepspeed.step)
        return train_step(engine, micro_batches, clock.timed("forward", loss_sum_fn), *args)

    def end_and_finish(saver: Saver) -> None:
        on_end()
        finish(saver)

    Engine.train_step, Saver.finish = timed_step, end_and_finish
    Stream.next_step = clock.timed("data wait", Stream.next_step)
    Control.sum = clock.timed("agree", Control.sum)
    RunLog.step = clock.timed("write metrics", RunLog.step)
    Saver.save = clock.timed("save", Saver.save)


def profiled_worker(out: Path) -> type:
    """A worker with a clock; that of rank 0 leaves the result in a file."""
    from raytrain.elastic.training_worker import Assignment, TrainingWorker, WorkerExit
    from raytrain.training.job import Job

    class ProfiledWorker(TrainingWorker):
        def work(self, assignment: Assignment, job: Job) -> WorkerExit:
            clock, is_written = Clock(WARMUP), []

            def on_end() -> None:
                if assignment.world_rank == 0 and not is_written:
                    is_written.append(out.write_text(json.dumps(clock.result())))

            install(clock, on_end)
            return super().work(assignment, job)

    return ProfiledWorker


def profile(num_workers: int, threads: int, arguments: argparse.Namespace, storage: Path) -> dict[str, float]:
    """Seconds of each part of a step, from one run."""
    import raytrain.elastic.training_worker
    from raytrain.config.io import load_config
    from raytrain.runs.run import run_training

    out = storage / f"profile_{num_workers}" / PROFILE
    raytrain.elastic.training_worker.worker_class = profiled_worker(out)
    workers = [f"workers.min={num_workers}", f"workers.max={num_workers}", f"workers.cpus={threads}"]
    places = [f"name=profile_{num_workers}", f"storage_path={storage}", f"data.prepared_path={storage / 'prepared'}"]
    save = [f"checkpoint.save_every_steps={arguments.save_every}"]
    config = training_only(storage, WARMUP + arguments.steps)
    result = run_training(load_config(config, [*LIKE_THE_PLAIN_LOOPS, *workers, *places, *save]))
    if result.exit_code:
        raise RuntimeError(result.message)
    return json.loads(out.read_text())


WARMUP = 5  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = arguments_with(parser, steps=80, save_every=20, cores=2)
    found: dict[str, dict[str, float]] = {}
    with temporary_storage() as storage:
        for num_workers in (1, 2):
            threads = max(1, arguments.cores // num_workers)
            name = f"{num_workers} worker{'s' * (num_workers > 1)} x {threads} thread{'s' * (threads > 1)}"
            found[name] = profile(num_workers, threads, arguments, storage)
            print(f"{name}: {found[name]}", flush=True)
    rows = []
    for part in [*PARTS, "everything else", "step"]:
        row = [part]
        for times_s in found.values():
            others_s = times_s["step"] - sum(times_s[name] for name in PARTS)
            seconds = others_s if part == "everything else" else times_s[part]
            row.append(f"{1000 * seconds:.1f} ms ({seconds / times_s['step']:.1%})")
        rows.append(row)
    head = f"MiniLM on the movie reviews, fp32, batch 32, ZeRO-2, a save every {arguments.save_every} steps; worker 0."
    publish("Where a step's time goes", f"{head}\n\n" + table(["part of a step", *found], rows), arguments)


if __name__ == "__main__":
    main()
