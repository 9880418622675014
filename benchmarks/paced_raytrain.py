"""The command `raytrain`, with a sleep in each step that stands in for a GPU's work.

    python benchmarks/paced_raytrain.py 0.025 train CONFIG     as `raytrain train CONFIG`, and 0.025 s a sample

The sleep comes before the step, in proportion to the samples that the worker has in it.
"""

import sys
import time
from typing import Any


def paced(seconds_per_sample: float) -> type:
    """raytrain's worker with the sleep in its steps."""
    from raytrain.elastic.training_worker import Assignment, TrainingWorker, WorkerExit
    from raytrain.training.job import Job

    class PacedWorker(TrainingWorker):
        def work(self, assignment: Assignment, job: Job) -> WorkerExit:
            from raytrain.engine.engine import Engine

            train_step = getattr(Engine, "unpaced_step", Engine.train_step)
            Engine.unpaced_step = train_step  # this process may have been in a group before

            def paced_step(engine: Engine, micro_batches: list[dict[str, Any]], *args: Any) -> Any:
                num_samples = sum(len(micro_batch["labels"]) for micro_batch in micro_batches)
                time.sleep(seconds_per_sample * num_samples)
                return train_step(engine, micro_batches, *args)

            Engine.train_step = paced_step
            return super().work(assignment, job)

    return PacedWorker


def main() -> None:
    import raytrain.elastic.training_worker
    from raytrain.cli.main import main as raytrain_main

    raytrain.elastic.training_worker.worker_class = paced(float(sys.argv.pop(1)))
    raytrain_main()


if __name__ == "__main__":
    main()
