"""What an evaluation of a finished run may change, and its result. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.config import SPLITS, PreferenceConfig, RunConfig
from raytrain.errors import ConfigError
from raytrain.models.card import BEST, FACTS
from raytrain.runs.folder import read_run_config
from raytrain.storage import Storage
from raytrain.tasks.predicting import DEFAULT_THRESHOLD, threshold_by_id

MEASURED_SPLITS = ("validation", "test")
# Prefixes of the keys that an evaluation may change beside its own split; no other key concerns the model in best/.
ALLOWED = (
    "data.on_error",
    "data.max_quarantined",
    "data.prepared_path",
    "workers.",
    "ray.",
    "training.micro_batch_size",
)
MANY = 1 << 20  # times a step's micro-batches: more than there are workers
# Changing these leaves the prepared data of the run valid.
NOT_THE_DATA = ("data.prepared_path", "workers.", "ray.", "training.")


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a run's best model on a split."""

    run_path: str
    split: str
    """`validation` or `test`, or the path of the files when they are not the run's own, as in evals.jsonl."""
    step: int
    """The step of the best model."""
    num_samples: int
    metrics: dict[str, float] = field(default_factory=dict)
    """By name, such as accuracy."""
    threshold: float | tuple[float, ...] | None = None
    """Where rows may have several labels, the probability from which on a label is given: one, or one for each in
    the order of their ids."""


def threshold_used(config: RunConfig, facts: dict[str, Any]) -> float | tuple[float, ...] | None:
    """That of the model with these facts, in an evaluation of a split; None: its task has none."""
    if not getattr(config.task, "multi_label", False):
        return None
    chosen = threshold_by_id(facts.get("threshold"), facts["state"].get("labels", []))
    return DEFAULT_THRESHOLD if chosen is None else chosen


def allowed_overrides(split: str, overrides: Sequence[str]) -> list[str]:
    """Check the overrides of an evaluation. Validation files replace the fraction held out of the training data.

    Raises ConfigError for a split that can't be evaluated, and for an override that has no effect on an evaluation.
    """
    if split not in MEASURED_SPLITS:
        raise ConfigError(f"--split {split!r} can't be evaluated; allowed: {', '.join(MEASURED_SPLITS)}")
    for override in overrides:
        key = override.partition("=")[0]
        says_where = key.startswith("task.") and key.endswith(("_column", ".label_separator"))
        if key.startswith((f"data.{split}", *ALLOWED)) or says_where:
            continue
        hint = f"; to measure those files, add --split {key.split('.')[1]}" if key.startswith(_other(split)) else ""
        raise ConfigError(
            f"{key} can't be changed in an evaluation of the {split} split{hint}; allowed: data.{split}.*, "
            "task.*_column, task.label_separator, data.on_error, data.max_quarantined, data.prepared_path, "
            "training.micro_batch_size, workers.*, ray.*"
        )
    replaces_fraction = any(override.startswith("data.validation.path=") for override in overrides)
    held_out = {"fraction": "null", "group_column": "null", "stratify": "false"} if replaces_fraction else {}
    return [*overrides, *(f"data.validation.{name}={value}" for name, value in held_out.items())]


def read_evaluated_config(run: Storage, split: str, overrides: Sequence[str]) -> RunConfig:
    """The run's config with the overrides of an evaluation of a split.

    A training has at most as many workers as a step has micro-batches. An evaluation has no steps: with more workers, a
    larger global batch, which nothing reads, makes the config valid.

    Raises ConfigError like `allowed_overrides`, or when the folder is not a run's.
    """
    words = allowed_overrides(split, overrides)
    try:
        return read_run_config(run, words)
    except ConfigError:
        batch = read_run_config(run).training.global_batch_size
        words += ["data.drop_last=false", f"training.global_batch_size={batch * MANY}"]
        wanted = read_run_config(run, words)  # raises what else is wrong
        needed = wanted.workers.max * wanted.training.samples_per_micro_batch
        return read_run_config(run, [*words[:-1], f"training.global_batch_size={batch * -(-needed // batch)}"])


def check_can_be_measured(run: Storage, config: RunConfig, split: str) -> None:
    """Raises ConfigError when the run has no best model yet, or does not have this split."""
    if not run.exists(f"{BEST}/{FACTS}"):
        raise ConfigError(f"{run.path_of()} has no best/ model yet; train the run first")
    if getattr(config.data, split) is None:
        splits = [name for name in SPLITS if getattr(config.data, name) is not None]
        raise ConfigError(
            f"the run's config has no data.{split}; its splits: {', '.join(splits)}. To measure a file of your own, "
            f"add data.{split}.path=FILE"
        )


def reads_other_data(overrides: Sequence[str]) -> bool:
    """Whether the evaluation reads samples other than those that the run has prepared."""
    return any(not override.startswith(NOT_THE_DATA) for override in overrides)


def for_other_data(config: RunConfig, run: Storage) -> RunConfig:
    """The config that prepares other data for the model in best/: with the model's labels in their order, and with its
    tokenizer, so that neither the training data nor the original model has to exist any longer, except an adapter's
    base, and the reference of a preference loss."""
    if config.task.kind in ("python", "regression"):
        raise ConfigError(
            f"other files can't be evaluated with task.kind {config.task.kind}: what its class learned from the "
            "training data is only known for the run's own data. Name the files as data.validation or data.test when "
            "the run is trained"
        )
    facts = run.read_json(f"{BEST}/{FACTS}")
    # Weights of `auto` were counted in the training data, which may be gone.
    weights = {"class_weights": facts.get("class_weights")}
    labels = {name: value for name, value in facts["state"].items() if name == "labels"}
    changes: dict[str, Any] = {
        "task": config.task.model_copy(update=labels),
        "training": config.training.model_copy(update=weights),
        "data": config.data.model_copy(update={"balance": None, "augment": None}),  # for training data
    }
    if (path := run.local_path(BEST)) is not None:  # on an object store the workers can't open it as a folder
        model: dict[str, Any] = {
            "path": path,
            "config": None,
            "tokenizer": None,
            "revision": None,
            "add_tokens": [],
        }
        task = config.task
        has_reference = isinstance(task, PreferenceConfig) and task.loss.has_reference
        if config.model.adapter is not None or has_reference:  # best/ does not have the model that training began with
            model = {"tokenizer": path}
        changes["model"] = config.model.model_copy(update=model)
    return config.model_copy(update=changes)


def _other(split: str) -> tuple[str, ...]:
    return tuple(f"data.{other}" for other in MEASURED_SPLITS if other != split)
