"""The end of a generation from a trial's side: its values, its state, and how it waits for the others."""

import contextlib
import math
import time
from typing import Any

from raytrain.checkpoint.store import CheckpointStore
from raytrain.runs.result import read_result
from raytrain.storage import Storage
from raytrain.training.outcome import RunStatus
from raytrain.training.records import read_jsonl
from raytrain.tuning.pool.broker import ANSWER_TIMEOUT_S
from raytrain.tuning.space.space import Values

POPULATION = "population"
POLL_S = 0.5


def num_done(root: Storage) -> int:
    """Number of generations whose exchange is complete. `root`: the sweep's folder."""
    return sum(name.endswith(".done") for name in root.list_names(POPULATION))


def values_of(root: Storage, trial: str) -> Values:
    """What a trial changes in the sweep's config since the last generation. {}: its initial values."""
    number = num_done(root)
    decided = decided_after(root, number - 1) if number else None
    return decided["members"].get(trial, {}).get("values", {}) if decided else {}


def has_paused_at(run: Storage, step: int) -> bool:
    """Whether a trial has trained up to a step, saved, and is to continue. A trial at its end does not wait."""
    result = read_result(run)
    has_paused = result is not None and result.status is RunStatus.STOPPED and result.step == step
    return has_paused and any(step == saved.step for saved in CheckpointStore(run.at("checkpoints")).candidates())


def value_at(run: Storage, step: int, metric: str, sign: float) -> float:
    """A trial's metric at a step, negated if lower is better. Minus infinity if it was not a number."""
    rows = [row for row in read_jsonl(run, "evals.jsonl") if row["split"] == "validation" and row["step"] == step]
    value = rows[-1].get(metric) if rows else None
    return -math.inf if value is None else sign * value


def wait_for_others(broker: str, trial: str, generation: int, value: float) -> bool:
    """Report that a trial reached the end of a generation, and wait for the others. Returns False if the sweep ends.

    `broker`: name of the broker's actor.
    """
    import ray

    actor = ray.get_actor(broker)
    while True:
        with contextlib.suppress(ray.exceptions.GetTimeoutError):  # the machine is busy
            answer: Any = actor.arrive.remote(trial, generation, value)
            num_released, is_stopping = ray.get(answer, timeout=ANSWER_TIMEOUT_S)
            if num_released > generation or is_stopping:
                return bool(num_released > generation)
        time.sleep(POLL_S)


def decision_name(generation: int) -> str:
    """Name of the file with the decisions after a generation, in the sweep's folder."""
    return f"{POPULATION}/{generation:04d}.json"


def done_name(generation: int) -> str:
    """Name of the file that marks the exchange of a generation as complete."""
    return f"{POPULATION}/{generation:04d}.done"


def decided_after(root: Storage, generation: int) -> Any:
    """The decisions after a generation. None: not decided yet."""
    return root.read_json(decision_name(generation)) if root.exists(decision_name(generation)) else None
