"""Puts a sleep into raytrain's steps, in every Python process that has this folder in PYTHONPATH.

    PYTHONPATH=benchmarks/pace:$PYTHONPATH SLEEP_S_A_SAMPLE=0.1 raytrain tune CONFIG --space SPACE

The sleep stands in for a GPU's work: it comes before each step, in proportion to the samples that the worker has in
it. A sweep's workers are started by other processes than the command's, so the environment carries it, whichever
process starts them; only one that imports raytrain's engine notices.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from typing import Any

ENGINE = "raytrain.engine.engine"


class PaceOnImport(importlib.abc.MetaPathFinder):
    """Finds the engine as everybody else does, and has its class changed once it is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_pace(module: Any) -> None:
            load(module)
            pace(module.Engine, float(os.environ["SLEEP_S_A_SAMPLE"]))

        spec.loader.exec_module = load_and_pace  # type: ignore[method-assign]
        return spec


def pace(engine_class: Any, seconds_per_sample: float) -> None:
    train_step = engine_class.train_step

    def paced_step(engine: Any, micro_batches: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds_per_sample * sum(len(micro_batch["labels"]) for micro_batch in micro_batches))
        return train_step(engine, micro_batches, *args, **kwargs)

    engine_class.train_step = paced_step


if "SLEEP_S_A_SAMPLE" in os.environ:
    sys.meta_path.insert(0, PaceOnImport())
