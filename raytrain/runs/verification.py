"""Trains the first steps of a run again at another number of workers, and compares them (P9)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.config import Precision, RunConfig
from raytrain.config.io import parse_config
from raytrain.elastic.allocation import Terms
from raytrain.errors import ConfigError, FailureCode, TrainingError
from raytrain.runs.folder import read_run_config, used_gpu
from raytrain.runs.observer import Observer
from raytrain.runs.run import run_training
from raytrain.runs.same_data import check_same_data
from raytrain.storage import Storage
from raytrain.training.records import iterate_jsonl
from raytrain.training.run_log import METRICS

VERIFICATIONS = "verify"
"""Folder in a run's folder with the runs that verify it."""
ALLOWED = ("workers.", "ray.", "data.prepared_path")
"""Prefixes of the keys that may differ in a repetition."""
TOLERANCES = {Precision.FP32: 1e-4, Precision.BF16: 2**-4, Precision.FP16: 2**-7}
"""Difference of two losses by precision. Of bf16 and fp16: eight units of the last place of a number near 1."""


@dataclass(frozen=True)
class Verification:
    """How the first steps of a run and of its repetition agree."""

    run_path: str
    repeated_path: str
    """The folder of the repetition."""
    num_steps: int
    """Steps that were compared."""
    world_sizes: tuple[int, ...]
    """Those of the run in these steps, each once."""
    workers: int
    """Those of the repetition."""
    worst_loss: float
    """The largest difference of the two losses of a step; nan if one is missing."""
    worst_step: int
    tolerance: float
    other_samples: int | None
    """The first step with other samples; None: there is none. Without data.record_samples in the run only their numbers
    of samples and tokens are compared."""
    has_samples: bool
    """Whether the run has recorded its samples."""
    other_updates: int | None
    """The first step whose loss scale, learning rate or count of skipped updates differs; None: there is none."""

    @property
    def agrees(self) -> bool:
        """Whether the promise holds for this run."""
        return self.other_samples is None and self.other_updates is None and self.worst_loss <= self.tolerance


def verify_run(
    path: str,
    num_steps: int = 20,
    workers: int | None = None,
    observer: Observer | None = None,
    overrides: Sequence[str] = (),
) -> Verification:
    """Train the first steps of a run again at another number of workers, in its folder `verify/`, and compare.

    Args:
        num_steps: Steps to compare, or as many as the run has done.
        workers: See `repetition`.
        overrides: `dotted.key=value` words that say where the repetition runs.

    Raises:
        ConfigError: The folder is not a run's, an override changes the experiment, or see `repetition`.
        TrainingError: The repetition failed or was stopped.
    """
    run = Storage(path)
    for override in overrides:
        if not override.startswith(ALLOWED):
            raise ConfigError(
                f"{override.partition('=')[0]} can't be changed when a run is verified; allowed: workers.*, ray.*, "
                "data.prepared_path"
            )
    config = read_run_config(run, overrides)
    repeated, num_steps, workers = repetition(run, config, num_steps, workers)
    check_same_data(run, config)
    terms = Terms(until_step=num_steps)
    result = run_training(repeated, observer, overwrite=True, terms=terms)
    if result.step < num_steps:
        raise TrainingError(
            f"the repetition ended at step {result.step} of {num_steps}: {result.message or result.status}",
            result.failure_code or FailureCode.STOPPED,
        )
    return compare(run, Storage(result.run_path), config, num_steps, workers)


def steps_of(run: Storage, num_steps: int) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl of steps 1 to `num_steps`, of the last attempt that did each."""
    found: dict[int, dict[str, Any]] = {}
    for row in iterate_jsonl(run, METRICS):
        step = row.get("step")
        if step is not None and step <= num_steps and row["attempt"] >= found.get(step, row)["attempt"]:
            found[step] = row
    return dict(sorted(found.items()))


def samples_of(run: Storage, num_steps: int) -> dict[int, list[int]]:
    """Sorted sample ids of steps 1 to `num_steps` over all workers, of the last attempt that did each."""
    found: dict[int, tuple[int, list[int]]] = {}
    for name in run.list_names("samples"):
        for row in iterate_jsonl(run, f"samples/{name}"):
            step, attempt = row["step"], row["attempt"]
            if step > num_steps or attempt < found.get(step, (0, []))[0]:
                continue
            known = found[step][1] if step in found and found[step][0] == attempt else []
            found[step] = (attempt, known + row["ids"])
    return {step: sorted(ids) for step, (_, ids) in found.items()}


def repetition(run: Storage, config: RunConfig, num_steps: int, workers: int | None) -> tuple[RunConfig, int, int]:
    """The config that trains the first steps of a run again.

    Args:
        config: The run's.
        num_steps: Steps to compare, at most.
        workers: World size of the repetition; None: 1 if the run had more, else 2 if a step has two micro-batches.

    Returns:
        The config, how many of the steps the run has done, and the world size.

    Raises:
        ConfigError: The run has no steps, is a trial whose values have changed, or `workers` is more than its steps
        have micro-batches.
    """
    done = steps_of(run, num_steps)
    if not done:
        raise ConfigError(f"{run.path_of()} has no steps yet: there is nothing to verify")
    most = config.training.num_micro_batches
    if workers is None:
        had_more = any(row["world_size"] > 1 for row in done.values())
        workers = 1 if had_more else min(2, most)
    if workers > most:
        raise ConfigError(f"--workers {workers} is more than the {most} micro-batches of a step of this run")
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw |= {"storage_path": run.path_of(VERIFICATIONS), "name": f"workers_{workers}"}
    raw["workers"] = {**raw.get("workers", {}), "min": workers, "max": workers}
    raw["data"] |= {
        "record_samples": True,
        "prepared_path": config.data.prepared_path or f"{config.storage_path}/_prepared",
    }
    raw["tracking"] = {"tensorboard": False}
    raw["checkpoint"] = {"snapshot_every_steps": None, "keep_best": False}
    return parse_config(raw), max(done), workers


def compare(run: Storage, repeated: Storage, config: RunConfig, num_steps: int, workers: int) -> Verification:
    """Compare steps 1 to `num_steps`. `config`: the run's."""
    one, two = steps_of(run, num_steps), steps_of(repeated, num_steps)
    samples, again = samples_of(run, num_steps), samples_of(repeated, num_steps)
    differences = {step: _difference(one.get(step, {}), two.get(step, {})) for step in range(1, num_steps + 1)}
    worst = max(differences, key=lambda step: math.inf if math.isnan(differences[step]) else differences[step])
    counts = ("samples_seen", "tokens_seen")
    other_counts = _first_other(one, two, counts)
    others = [step for step in sorted(samples) if samples[step] != again.get(step)]
    return Verification(
        run_path=run.path_of(),
        repeated_path=repeated.path_of(),
        num_steps=num_steps,
        world_sizes=tuple(dict.fromkeys(row["world_size"] for row in one.values())),
        workers=workers,
        worst_loss=differences[worst],
        worst_step=worst,
        tolerance=TOLERANCES[_precision(run, config, one.values())],
        other_samples=min([*others, *other_counts], default=None),
        has_samples=bool(samples),
        other_updates=min(_first_other(one, two, ("lr", "loss_scale", "skipped_steps")), default=None),
    )


def _difference(row: dict[str, Any], other: dict[str, Any]) -> float:
    one, two = row.get("loss"), other.get("loss")
    return math.nan if one is None or two is None else abs(one - two)


def _first_other(one: dict[int, dict[str, Any]], two: dict[int, dict[str, Any]], keys: Iterable[str]) -> list[int]:
    """[] or the first step in which one of these fields differs."""

    def different() -> Iterator[int]:
        for step, row in one.items():
            if any(row.get(key) != two.get(step, {}).get(key) for key in keys):
                yield step

    return [step for step, _ in zip(different(), range(1), strict=False)]


def _precision(run: Storage, config: RunConfig, rows: Iterable[dict[str, Any]]) -> Precision:
    """The precision of these steps. `auto` is fp32 without a GPU, and else bf16, or fp16, which has a loss scale."""
    precision = config.training.precision
    if precision is not Precision.AUTO:
        return precision
    if not used_gpu(run):
        return Precision.FP32
    return Precision.FP16 if any(row.get("loss_scale") is not None for row in rows) else Precision.BF16
