"""The command `raytrain`, with a sleep in each step that stands in for a GPU's work.

    python benchmarks/paced_raytrain.py 0.025 train CONFIG     as `raytrain train CONFIG`, and 0.025 s a sample

The sleep comes before the step, in proportion to the samples that the worker has in it.
"""

import sys
import time
from collections.abc import Callable
from typing import Any


def paced(seconds_per_sample: float) -> Callable[[dict[str, Any]], None]:
    """raytrain's `train_worker` with the sleep in its steps."""

    def paced_worker(raw: dict[str, Any]) -> None:
        from raytrain.training.engine import Engine
        from raytrain.training.entry import train_worker

        train_step = Engine.train_step

        def paced_step(engine: Engine, micro_batches: list[dict[str, Any]], *args: Any) -> Any:
            num_samples = sum(len(micro_batch["labels"]) for micro_batch in micro_batches)
            time.sleep(seconds_per_sample * num_samples)
            return train_step(engine, micro_batches, *args)

        Engine.train_step = paced_step
        train_worker(raw)

    return paced_worker


def main() -> None:
    import raytrain.elastic.group
    from raytrain.cli import main as raytrain_main

    raytrain.elastic.group.train_worker = paced(float(sys.argv.pop(1)))
    raytrain_main()


if __name__ == "__main__":
    main()
