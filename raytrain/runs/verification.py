"""Trains the first steps of a run again at another number of workers, and compares them (P9)."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.config import Exactness, Precision, RunConfig
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
ALLOWED = ("workers.cpus", "workers.data_cpus", "workers.gpu", "workers.wait_", "ray.", "data.prepared_path")
"""Prefixes of the keys that may differ in a repetition."""
OF_UPDATES = ("lr", "loss_scale", "skipped_steps", "skipped_spikes")  # columns that say which updates were applied
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
    num_missing: int
    """Steps of which a line of metrics.jsonl is lost, of either run; they are not compared."""
    worst_loss: float
    """The largest difference of the two losses of a step, relative to the loss where that is above 1; nan if only one
    of them is finite."""
    worst_step: int
    tolerance: float
    other_samples: int | None
    """The first step with other samples; None: there is none. Without data.record_samples in the run only their numbers
    of samples and tokens are compared."""
    has_samples: bool
    """Whether the run has recorded its samples."""
    other_updates: int | None
    """The first step whose loss scale, learning rate or count of skipped updates differs; None: there is none."""
    other_device: bool
    """Whether one of them ran on GPUs and the other did not, where other numbers are drawn from the same seeds."""
    is_bitwise: bool
    """Whether the run has training.exactness=bitwise."""
    other_weights: int | None
    """The first step after which the bits of the weights differ, by their checksums in metrics.jsonl. None: there is
    none, or the run is not bitwise."""

    @property
    def agrees(self) -> bool:
        """Whether the promise holds for this run."""
        is_equal = self.other_samples is None and self.other_updates is None and self.other_weights is None
        return is_equal and not self.other_device and self.worst_loss <= self.tolerance


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
                f"{override.partition('=')[0]} can't be changed when a run is verified; allowed: "
                f"{', '.join(f'{key}*' for key in ALLOWED)}. For the number of workers there is --workers"
            )
    config = read_run_config(run, overrides)
    if config.training.exactness is Exactness.BITWISE and any(word.startswith("workers.cpus") for word in overrides):
        raise ConfigError(
            "workers.cpus can't be changed when a run with training.exactness=bitwise is verified: the number of "
            "threads decides how a CPU's kernels divide their sums"
        )
    repeated, num_steps, workers = repetition(run, config, num_steps, workers)
    check_same_data(run, config)
    if run.exists("trial.json") and run.read_json("trial.json").get("sources"):
        raise ConfigError(f"{run.path_of()} is a trial that has continued others' models: its steps can't be repeated")
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


def repetition(run: Storage, config: RunConfig, num_steps: int, workers: int | None) -> tuple[RunConfig, int, int]:
    """The config that trains the first steps of a run again.

    Args:
        config: The run's.
        num_steps: Steps to compare, at most.
        workers: World size of the repetition; None: 1 if the run had more, else 2.

    Returns:
        The config, how many of the steps the run has done, and the world size.

    Raises:
        ConfigError: The run has no steps, they have fewer micro-batches than `workers`, or it had as many workers.
    """
    done = steps_of(run, num_steps)
    if not done:
        raise ConfigError(f"{run.path_of()} has no steps yet: there is nothing to verify")
    most = config.training.num_micro_batches
    sizes = {row["world_size"] for row in done.values()}
    if workers is None:
        workers = 1 if max(sizes) > 1 else 2
    if workers > most:
        raise ConfigError(f"--workers {workers}: a step of this run has {most} micro-batches, and so as many workers")
    if sizes == {workers}:
        raise ConfigError(f"--workers {workers}: the run had as many in these steps; give another number")
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw |= {"storage_path": run.path_of(VERIFICATIONS), "name": f"workers_{workers}"}
    raw["workers"] = {**raw.get("workers", {}), "min": workers, "max": workers}
    raw["data"] |= {
        "record_samples": True,
        "prepared_path": config.data.prepared_path or f"{config.storage_path}/_prepared",
    }
    raw["tracking"] = {"tensorboard": False}
    raw["checkpoint"] = {"snapshot_every_steps": None, "keep_best": False}
    raw.get("training", {}).pop("early_stopping", None)  # it may have been added later
    if used_gpu(run) is not None and "gpu" not in raw["workers"]:
        raw["workers"]["gpu"] = used_gpu(run)
    return parse_config(raw), max(done), workers


def compare(run: Storage, repeated: Storage, config: RunConfig, num_steps: int, workers: int) -> Verification:
    """Compare steps 1 to `num_steps`. `config`: the run's."""
    one, two = steps_of(run, num_steps), steps_of(repeated, num_steps)
    both = [step for step in one if step in two]
    differences = {step: _difference(one[step]["loss"], two[step]["loss"]) for step in both}
    worst = max(both, key=lambda step: math.inf if math.isnan(differences[step]) else differences[step])
    samples, again = _samples_of(run, one), _samples_of(repeated, two)
    others = [step for step in both if step in samples and samples[step] != again.get(step)]
    others += _first_other(one, two, both, ("samples_seen", "tokens_seen"))
    is_bitwise = config.training.exactness is Exactness.BITWISE
    return Verification(
        run_path=run.path_of(),
        repeated_path=repeated.path_of(),
        num_steps=num_steps,
        world_sizes=tuple(dict.fromkeys(row["world_size"] for row in one.values())),
        workers=workers,
        num_missing=num_steps - len(both),
        worst_loss=differences[worst],
        worst_step=worst,
        tolerance=0.0 if is_bitwise else TOLERANCES[_precision(repeated, config, two.values())],
        other_samples=min(others, default=None),
        has_samples=bool(samples),
        other_updates=min(_first_other(one, two, both, OF_UPDATES), default=None),
        other_device=used_gpu(run) not in (None, used_gpu(repeated)),
        is_bitwise=is_bitwise,
        other_weights=min(_first_other(one, two, both, ("weights",)), default=None),
    )


def _samples_of(run: Storage, rows: dict[int, dict[str, Any]]) -> dict[int, list[int]]:
    """Sorted sample ids of steps over all workers, as far as all of them are recorded. `rows`: see `steps_of`."""
    found: dict[int, list[int]] = {}
    for name in run.list_names("samples"):
        for line in iterate_jsonl(run, f"samples/{name}"):
            step = line["step"]
            if step in rows and line["attempt"] == rows[step]["attempt"]:
                found.setdefault(step, []).extend(line["ids"])
    # The lines of a worker that was killed may not have reached an object store.
    return {step: sorted(ids) for step, ids in found.items() if _num_samples(rows, step) in (None, len(ids))}


def _num_samples(rows: dict[int, dict[str, Any]], step: int) -> int | None:
    """Samples of a step, by the counts after it and after the step before; None if that is not known."""
    before = rows.get(step - 1, {"samples_seen": 0 if step == 1 else None})["samples_seen"]
    return None if before is None else rows[step]["samples_seen"] - before


def _difference(loss: float | None, other: float | None) -> float:
    """0 if neither is finite, as in a step that fp16 has skipped."""
    if loss is None or other is None:
        return 0.0 if loss is other else math.nan
    return abs(loss - other) / max(1.0, abs(loss))


def _first_other(
    one: dict[int, dict[str, Any]], two: dict[int, dict[str, Any]], steps: Iterable[int], keys: Iterable[str]
) -> list[int]:
    """[] or the first of these steps in which one of these fields differs."""
    different = (step for step in steps if any(one[step].get(key) != two[step].get(key) for key in keys))
    return list(itertools.islice(different, 1))


def _precision(run: Storage, config: RunConfig, rows: Iterable[dict[str, Any]]) -> Precision:
    """The precision of these steps. `auto` is fp32 without a GPU, and else bf16, or fp16, which has a loss scale."""
    precision = config.training.precision
    if precision is not Precision.AUTO:
        return precision
    if not used_gpu(run):
        return Precision.FP32
    return Precision.FP16 if any(row.get("loss_scale") is not None for row in rows) else Precision.BF16
