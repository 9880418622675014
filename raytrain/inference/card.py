"""The model that a user names, and its card: what `raytrain.json` beside the weights says about how it was trained.

Everything that decides a prediction comes from there and not from today's defaults: the labels, `max_length`, the rules
of data.clean, the columns.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytrain.config import RunConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError, TrainingError
from raytrain.inference.formats import Format
from raytrain.models.card import BEST, FACTS, FACTS_VERSION
from raytrain.runs.folder import CONFIG, read_run_config
from raytrain.storage import Storage
from raytrain.tasks.base import Task, TaskState
from raytrain.tasks.predicting import DEFAULT_THRESHOLD, Decoding, Predicting, threshold_by_id
from raytrain.tuning.best_trial import is_sweep, read_sweep
from raytrain.tuning.trials import TRIALS, TrialTable

RUNS = "runs"  # the default of storage_path, where a bare name is looked for
MANY = 1 << 30  # a step of this many samples has room for any number of workers
SOURCE = "data.test"
"""The section of the config that says how the input is read, as `raytrain eval` has it."""
READING = ("format", "delimiter", "encoding", "word_column", "tag_column", "query", "order_by")
"""Its options that say how files are read; which they are, is said by the command."""
ALLOWED = (*(f"{SOURCE}.{name}" for name in READING), "model.trust_remote_code")
OF_THE_BASE = ("model.path", "model.revision")  # where it is now; its weights are compared
JUDGING = ("data.max_quarantined",)
"""Further keys that may be changed where answers are compared with targets."""
SECTIONS = ("workers.", "ray.")
SECTIONS_OF_FACTS = ("task", "state", "config", "files")
NEEDED = ("task", "state", "max_length", "config")


@dataclass(frozen=True)
class ModelCard:
    """A trained model and how its inputs are made."""

    folder: str
    """The path or URI of best/."""
    name: str
    """Name of the run."""
    step: int
    state: TaskState
    files: dict[str, str]
    """Name -> SHA-256 of each file of the model."""
    raw: dict[str, Any]
    """The config that reads the task's inputs as in training, as a mapping, without data and workers."""
    format: Format = Format.HF
    """What the weights are."""
    is_adapter: bool = False
    """Whether the folder holds an adapter, and the model of `raw` is its base."""
    class_weights: dict[str, float] | None = None
    """Label -> weight of its loss in training; None: all are 1."""
    threshold: float | dict[str, float] | None = None
    """With several labels per row: the probability from which on a label is given, or label -> that of it, as `raytrain
    eval --tune-threshold` has chosen it; None: it has not."""

    @property
    def hash(self) -> str:
        """Of the hashes of all its files, and of its threshold, which is in none of them."""
        decides = [self.files] if self.threshold is None else [self.files, self.threshold]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    @property
    def judging_state(self) -> TaskState:
        """The state with the class weights, where there are any, as an evaluation in training has it."""
        weights = {} if self.class_weights is None else {"class_weights": list(self.class_weights.values())}
        return {**self.state, **weights}

    def decoding(self, decoding: Decoding, task: Task) -> Decoding:
        """The decoding with the card's threshold, or the default, in place of None.

        Raises ConfigError for a threshold that is not a probability, or where the task has none.
        """
        given, has_threshold = decoding.threshold, isinstance(task, Predicting) and task.uses_threshold
        if given is None and not has_threshold:
            return decoding
        if given is None:
            chosen = threshold_by_id(self.threshold, self.state.get("labels", []))
            return replace(decoding, threshold=DEFAULT_THRESHOLD if chosen is None else chosen)
        if not has_threshold:
            raise ConfigError(
                f"threshold {given}: it is for models that give several labels per row (task.multi_label); this one "
                "gives the most probable"
            )
        for value in given if isinstance(given, tuple) else (given,):
            if not 0.0 < value < 1.0:
                raise ConfigError(f"threshold {value:g}: give a probability between 0 and 1, such as 0.5")
        return decoding

    def config(self, overrides: Sequence[str] = (), source: Any = "-", more: Sequence[str] = ()) -> RunConfig:
        """The config that prepares inputs for this model.

        Args:
            overrides: `dotted.key=value` words: of ALLOWED and SECTIONS, and the columns of the task.
            source: Path of the input, or several.
            more: Further keys that are allowed.

        Raises ConfigError for an override that is wrong, or that would make another model of it.
        """
        for word in overrides:
            key = word.partition("=")[0]
            says_where = key.startswith("task.") and key.endswith(("_column", ".label_separator", ".image_folder"))
            says_where = says_where or (self.is_adapter and key in OF_THE_BASE)
            if key not in (*ALLOWED, *more) and not key.startswith(SECTIONS) and not says_where:
                is_source = key == SOURCE or key.startswith(f"{SOURCE}.")
                why = "INPUT names the files" if is_source else "the model was trained with it"
                raise ConfigError(
                    f"{key} can't be changed for a prediction: {why}. Allowed: task.*_column, {SOURCE}.{READING[0]}, "
                    f"{', '.join(f'.{name}' for name in READING[1:])}, {''.join(f'{one}, ' for one in more)}workers.*, "
                    "ray.*, model.trust_remote_code"
                )
        data = {**self.raw["data"], "train": {"path": source}, "test": {"path": source}}
        raw = {**self.raw, "data": data, "storage_path": RUNS}
        raw["training"] = {"global_batch_size": MANY}
        return parse_config(raw, overrides=list(overrides), origin=f"{self.folder}/{FACTS}")


def find_model(model: str) -> Storage:
    """The folder of the model that a user names: best/ itself, a run or its name, or a sweep, of which it is the best
    trial's. Raises ConfigError when there is none."""
    place = Storage(model)
    if not place.exists() and "/" not in model and Storage(RUNS).exists():
        place = Storage(RUNS).at(model)
    if os.path.isfile(place.local_path() or ""):
        raise ConfigError(f"{place.path_of()} is a file: give the folder of a run, of a sweep, or a best/")
    if place.exists(FACTS):
        return place
    if is_sweep(place):
        place = _winner(place)
    if place.exists(f"{BEST}/{FACTS}"):
        return place.at(BEST)
    if not place.exists(CONFIG) and place.exists("config.json"):
        raise ConfigError(
            f"{place.path_of()} holds a model of Transformers without the {FACTS} that raytrain writes beside it, so "
            "its labels and the preparation of its inputs are not known. Give a run's folder, or its best/"
        )
    read_run_config(place)  # says what is wrong with the folder
    raise ConfigError(f"{place.path_of()} has no {BEST}/ model yet; train the run first")


def _winner(sweep: Storage) -> Storage:
    """The best trial's folder."""
    table = TrialTable(sweep, read_sweep(sweep)[0]["compares"]["mode"])
    if table.best is None:
        raise ConfigError(f"no trial of {sweep.path_of()} has been evaluated yet")
    return sweep.at(TRIALS, table.best.name)


def read_card(folder: Storage) -> ModelCard:
    """The card of a model. Raises ConfigError when it can't be read, or a newer raytrain has written it."""
    path = folder.path_of(FACTS)
    try:
        facts = folder.read_json(FACTS)
    except OSError as error:
        raise TrainingError(f"{path} can't be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it from a backup, or train the model again") from None
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name, {}), dict) for name in SECTIONS_OF_FACTS):
        raise ConfigError(f"{path} is not the description of a model: restore it from a backup")
    version = facts.get("version", 1)
    if version > FACTS_VERSION:
        raise ConfigError(
            f"{path} has version {version}, written by raytrain {facts.get('versions', {}).get('raytrain', '')}; this "
            f"raytrain reads up to version {FACTS_VERSION}. Install that raytrain, or a newer one"
        )
    if missing := [name for name in NEEDED if name not in facts]:
        raise ConfigError(f"{path} is not the description of a model: it has no {missing[0]}")
    _check_threshold(path, facts)
    config, task, state = facts["config"], dict(facts["task"]), facts["state"]
    if "labels" in state and task["kind"] != "python":
        task["labels"] = state["labels"]
    data = {"max_length": facts["max_length"], "on_error": "quarantine"}
    if clean := config.get("data", {}).get("clean"):
        data["clean"] = clean
    # Whether its code is trusted is for the user to say, and not for a file that came with it.
    model = {**config.get("model", {}), "trust_remote_code": False}
    if is_adapter := "adapter" in facts:
        base = facts["base_model"]
        model = {"path": base["path"], "revision": base["revision"], "tokenizer": folder.path_of(), **model}
        model["adapter"] = facts["adapter"]
    elif task["kind"] != "python":
        model = {"path": folder.path_of()}
    else:
        model["adapter"] = None  # merged
    raw = {"name": facts.get("name", "model"), "task": task, "model": model, "data": data}
    kind = Format.HF if is_adapter else facts.get("export", {}).get("format", Format.HF)
    if kind not in list(Format):
        raise ConfigError(f"{path}: an export in the format {kind!r}; this raytrain reads {', '.join(Format)}")
    return ModelCard(
        folder.path_of(),
        raw["name"],
        facts.get("step", 0),
        state,
        facts.get("files", {}),
        raw,
        Format(kind),
        is_adapter,
        facts.get("class_weights"),
        facts.get("threshold"),
    )


def _check_threshold(path: str, facts: dict[str, Any]) -> None:
    """Raises ConfigError where the threshold of a card is none."""
    given, labels = facts.get("threshold"), facts["state"].get("labels", [])
    if given is None:
        return
    values = list(given.values()) if isinstance(given, dict) else [given]
    is_number = all(isinstance(one, float) and 0 < one < 1 for one in values)
    if not is_number or (isinstance(given, dict) and sorted(given) != sorted(labels)):
        raise ConfigError(
            f"{path}: threshold {json.dumps(given)[:80]}: meant is a probability between 0 and 1, or one for each "
            "label; choose it again with `raytrain eval --tune-threshold`"
        )
