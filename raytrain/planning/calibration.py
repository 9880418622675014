"""Reads the duration of a step from a run with the same settings."""

import statistics
from dataclasses import dataclass

from raytrain.config import RunConfig
from raytrain.config.fields import declared
from raytrain.config.io import flatten
from raytrain.errors import ConfigError, RaytrainError, counted
from raytrain.reports.steps import StepSample
from raytrain.runs.folder import read_run_config, used_gpu
from raytrain.steps.batches import BatchPlan
from raytrain.storage import Storage
from raytrain.training.records import iterate_jsonl

# The first steps of a worker group initialize devices and fill caches.
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Calibration:
    """Measured step times of a run by world size."""

    run_path: str
    num_steps: int
    """Number of steps that were used; a sample in a long run."""
    step_s: dict[int, float]
    """World size -> median seconds of a step."""

    def step_s_at(self, config: RunConfig, world_size: int) -> float:
        """Seconds of a step at a world size: measured, or scaled from the nearest measured world size by the samples of
        the busiest worker."""
        nearest = min(self.step_s, key=lambda size: (abs(size - world_size), size))
        busiest = BatchPlan.of(config, world_size).max_samples_per_worker
        return self.step_s[nearest] * busiest / BatchPlan.of(config, nearest).max_samples_per_worker


def find_calibration(
    config: RunConfig, run_path: str | None = None, *, use_gpu: bool
) -> tuple[Calibration | None, str]:
    """Find the calibration for a config. Returns it, or None, and a sentence that explains the result.

    Args:
        config: The config to plan.
        run_path: Directory of the run to use; None: the config's own.
        use_gpu: Whether the planned workers have GPUs.

    Raises:
        ConfigError: `run_path` has no run with steps.
    """
    run = Storage(run_path) if run_path else Storage(config.storage_path).at(config.name)
    sample = StepSample(iterate_jsonl(run, "metrics.jsonl"))
    rows = [row for row in sample.rows if row.get("step_s")]
    place = run.path_of()
    if not rows and run_path:
        raise ConfigError(f"--calibrate {place}: no run with steps is there; give a run's folder, or leave it out")
    if not rows:
        return None, f"no time: {place} has no steps yet; after a few steps of this run the plan tells the time"
    try:
        measured = read_run_config(run)
    except RaytrainError as error:
        return None, f"no time: the config of {place} can't be read: {error}"
    different = different_fields(config, measured)
    if used_gpu(run) is not use_gpu:
        different.insert(0, "device")
    if different:
        return None, f"no time: {place} was measured with another {', '.join(different[:3])}"
    by_size: dict[int, list[float]] = {}
    for row in _without_warm_up(rows, sample.attempts.first):
        by_size.setdefault(int(row["world_size"]), []).append(float(row["step_s"]))
    sizes = {size: times for size, times in by_size.items() if size <= config.training.num_micro_batches}
    if not sizes:
        return None, f"no time: {place} has too few steps yet"
    medians = {size: statistics.median(times) for size, times in sorted(sizes.items())}
    num_steps = sum(map(len, sizes.values()))
    return Calibration(place, num_steps, medians), f"time: from {counted(num_steps, 'step')} of {place}"


def different_fields(config: RunConfig, other: RunConfig) -> list[str]:
    """The dotted fields that affect the duration of a step and differ between two configs."""
    one, two = flatten(config.model_dump(mode="json")), flatten(other.model_dump(mode="json"))
    return [key for key in one | two if declared(key).decides_step_time and one.get(key) != two.get(key)]


def _without_warm_up(rows: list[dict], first: dict[int, int]) -> list[dict]:
    """The rows without the first steps of each attempt, or all rows if there are no others. `first`: attempt -> its
    first step."""
    warm = [row for row in rows if row["step"] >= first[row.get("attempt", 0)] + WARM_UP_STEPS]
    return warm or rows
