"""How long a step takes, as a run of the same config has measured it."""

import json
import statistics
from dataclasses import dataclass

from raytrain.config import RunConfig
from raytrain.config.fields import declared
from raytrain.config.io import flatten
from raytrain.errors import ConfigError, RaytrainError
from raytrain.reports.steps import StepSample
from raytrain.runs.folder import read_run_config
from raytrain.steps.batches import BatchPlan
from raytrain.storage import Storage
from raytrain.training.records import iterate_jsonl

# The first steps of a worker group open devices and fill caches.
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Calibration:
    """Seconds of a step, by the world sizes that a run had."""

    run_path: str
    num_steps: int
    """Steps that were looked at; of a long run some."""
    step_s: dict[int, float]
    """Median, by world size."""

    def step_s_at(self, config: RunConfig, world_size: int) -> float:
        """Seconds of a step at a world size: measured, else scaled from the nearest measured one by the samples that
        the busiest worker has."""
        nearest = min(self.step_s, key=lambda size: (abs(size - world_size), size))
        busiest = BatchPlan.of(config, world_size).max_samples_per_worker
        return self.step_s[nearest] * busiest / BatchPlan.of(config, nearest).max_samples_per_worker


def find_calibration(
    config: RunConfig, run_path: str | None = None, *, use_gpu: bool
) -> tuple[Calibration | None, str]:
    """What a run has measured, and a sentence on what was found.

    Args:
        config: The config that is planned.
        run_path: Folder of the run to go by; None: the config's own.
        use_gpu: Whether the workers that are planned hold GPUs.

    Raises:
        ConfigError: There is nothing at `run_path`.
    """
    run = Storage(run_path) if run_path else Storage(config.storage_path).at(config.name)
    sample = StepSample(iterate_jsonl(run, "metrics.jsonl"))
    rows = [row for row in sample.rows if row.get("step_s")]
    place = run.path_of()
    if not rows and run_path:
        raise ConfigError(f"--calibrate {run_path}: no run with steps is there; give a run's folder, or leave it out")
    if not rows:
        return None, f"no time: {place} has no steps yet; after a few steps of this run the plan tells the time"
    try:
        measured = read_run_config(run)
    except RaytrainError as error:
        return None, f"no time: the config of {place} can't be read: {error}"
    different = different_fields(config, measured)
    if _used_gpu(run) is not use_gpu:
        different.insert(0, "device")
    if different:
        return None, f"no time: {place} was measured with another {', '.join(different[:3])}"
    by_size: dict[int, list[float]] = {}
    for row in _without_warm_up(rows, sample.attempts.first):
        by_size.setdefault(int(row["world_size"]), []).append(float(row["step_s"]))
    sizes = {size: times for size, times in by_size.items() if size <= config.canonical_shards}
    if not sizes:
        return None, f"no time: {place} has too few steps yet"
    medians = {size: statistics.median(times) for size, times in sorted(sizes.items())}
    num_steps = sum(map(len, sizes.values()))
    return Calibration(place, num_steps, medians), f"time: from {num_steps} steps of {place}"


def different_fields(config: RunConfig, other: RunConfig) -> list[str]:
    """Dotted fields that decide how long a step takes, and differ."""
    one, two = flatten(config.model_dump(mode="json")), flatten(other.model_dump(mode="json"))
    return [key for key in one | two if declared(key).decides_step_time and one.get(key) != two.get(key)]


def _used_gpu(run: Storage) -> bool | None:
    """Whether a run's workers held GPUs; None: it doesn't say."""
    try:
        return json.loads(run.read_bytes("plan.json"))["use_gpu"]
    except (OSError, ValueError, KeyError):
        return None


def _without_warm_up(rows: list[dict], first: dict[int, int]) -> list[dict]:
    """Rows but for the first few of each attempt, unless there are no others. `first`: the first step of each
    attempt."""
    warm = [row for row in rows if row["step"] >= first[row.get("attempt", 0)] + WARM_UP_STEPS]
    return warm or rows
