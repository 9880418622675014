"""The files of best/ other than the weights: the tokenizer, raytrain.json and the model card."""

import copy
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from raytrain.config import RunConfig
from raytrain.data.class_weights import class_weights_of
from raytrain.data.prepared import Manifest
from raytrain.errors import CheckpointError
from raytrain.models.card import ADAPTER_VERSION, BASE_HASH, BEST, CARD, FACTS, PLAIN_VERSION, model_card
from raytrain.models.tokenizer import load_tokenizer
from raytrain.redaction import redact_tree
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks import TextTask, make_task
from raytrain.tasks.base import Task, TaskState
from raytrain.tasks.labels import labels_in
from raytrain.tasks.predicting import Predicting, threshold_by_id
from raytrain.training.records import read_jsonl, scores_of

SECTIONS = ("seed", "task", "model", "data", "training")  # sections of the config that determine the model


def save_tokenizer(config: RunConfig, folder: str) -> None:
    """Save the model's tokenizer, or what prepares its images. A tokenizer truncates at data.max_length when truncation
    is on: otherwise a text longer than the model's positions raises an IndexError in Transformers' pipelines."""
    if (loaded := load_tokenizer(config.model)) is None:  # a custom task may not need one
        return
    if config.model.image is not None:
        loaded.save_pretrained(folder)
        return
    tokenizer = copy.deepcopy(loaded)  # the loaded one is cached and shared
    if isinstance(task := make_task(config.task, config.data.max_length), TextTask):
        tokenizer = task.saved_tokenizer(tokenizer)
    tokenizer.model_max_length = config.data.max_length
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.enable_truncation(config.data.max_length, direction=tokenizer.truncation_side)
    tokenizer.save_pretrained(folder)


def describe(config: RunConfig, manifest: Manifest, step: int, epoch: int, frozen: str | None = None) -> dict[str, Any]:
    """The contents of raytrain.json: what raytrain needs to use the model again, and its provenance.

    Args:
        epoch: The epoch that `step` is in, from 1.
        frozen: Hash of the frozen weights, by which an adapter's base is known.
    """
    adapter = config.model.adapter
    facts = {
        "version": PLAIN_VERSION if adapter is None else ADAPTER_VERSION,
        "name": config.name,
        "task": config.task.model_dump(mode="json"),
        "state": manifest.task_state,
        "class_weights": class_weights_of(config, manifest),
        "max_length": config.data.max_length,
        "step": step,
        "epoch": epoch,
        "base_model": base_model(config, frozen),
        "data": {split: _split(config, manifest, split) for split in manifest.splits},
        "data_content": manifest.content,
        "config": _config(config),
        "versions": versions(with_peft=adapter is not None),
    }
    if adapter is not None:
        facts["adapter"] = adapter.model_dump(mode="json")
    return dict(redact_tree(facts))


def save_description(facts: dict[str, Any], run: Storage, folder: str) -> None:
    """Write raytrain.json, with the hashes of the files that are there, and the model card into a local folder."""
    facts = {**facts, "files": {name: Storage(folder).sha256(name) for name in sorted(os.listdir(folder))}}
    with open(os.path.join(folder, FACTS), "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
    with open(os.path.join(folder, CARD), "w", encoding="utf-8") as file:
        file.write(model_card(facts, results_of(run, facts["step"])))


def check_exported(folder: str, names: Sequence[str], facts: dict[str, Any]) -> None:
    """Compare files of an exported model with the hashes in its raytrain.json. Raises CheckpointError."""
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            raise CheckpointError(f"{path} is missing: restore it from a backup; no checkpoint has the best model")
        if Storage(folder).sha256(name) != facts["files"][name]:
            raise CheckpointError(
                f"{path} was changed after it was written (SHA-256 differs): restore it from a backup, or load the "
                "folder with Transformers to measure what it holds now"
            )


def update_card(run: Storage, best: str) -> None:
    """Write the model card of the run's best model again, with all results measured so far."""
    facts = run.read_json(f"{best}/{FACTS}")
    run.commit_bytes(f"{best}/{CARD}", model_card(facts, results_of(run, facts["step"])).encode())


def results_of(run: Storage, step: int) -> dict[str, dict[str, float]]:
    """Split -> metrics of the model of a step in evals.jsonl, the newest for each split."""
    rows = [row for row in read_jsonl(run, "evals.jsonl") if row.get("step") == step]
    found = {row["split"]: scores_of(row) for row in rows if "split" in row}
    return {split: found[split] for split in ("validation", "test") if split in found}


def base_model(config: RunConfig, frozen: str | None) -> dict[str, Any] | None:
    """The model that the training started from, and of an adapter the hash of its weights; None: random weights."""
    path = config.model.path
    if path is None:
        return None
    found = {"path": path, "is_folder": os.path.isdir(path), "revision": config.model.revision}
    return found if config.model.adapter is None else {**found, BASE_HASH: frozen}


def versions(*, with_peft: bool) -> dict[str, str]:
    """Versions of the software that made the model."""
    import raytrain

    names = ("torch", "transformers", *(("peft",) if with_peft else ()))
    return {"raytrain": raytrain.__version__, **{name: version(name) for name in names}}


def _split(config: RunConfig, manifest: Manifest, split: str) -> dict[str, Any]:
    source = getattr(config.data, split, None)
    paths = source.paths if source is not None else []
    if not paths and source is not None:  # a fraction of the training data
        paths = [f"{source.fraction:g} of train"]
    info = manifest.splits[split]
    return {
        "paths": paths,
        "num_samples": info.num_samples,
        "num_tokens": info.num_tokens,
        "num_truncated": info.num_truncated,
        "num_quarantined": info.num_quarantined,
    }


def _config(config: RunConfig) -> dict[str, Any]:
    """The config of the sections that determine the model. Environment variables belong to a cluster and are left
    out."""
    raw = config.model_dump(mode="json", exclude_unset=True, include=set(SECTIONS))
    raw.get("training", {}).pop("communication", None)
    return {section: raw[section] for section in SECTIONS if section in raw}


def facts_of(run: Storage) -> dict[str, Any]:
    """The contents of the best model's raytrain.json."""
    path = f"{BEST}/{FACTS}"
    return dict(retrying(lambda: run.read_json(path), f"reading {run.path_of(path)}"))


def at_threshold(task: Task, facts: dict[str, Any], state: TaskState) -> Task:
    """The task with the threshold that was chosen for a model; itself where none was. `facts`: of `facts_of`."""
    chosen = facts.get("threshold")
    if chosen is None or not isinstance(task, Predicting) or not task.uses_threshold:
        return task
    found = copy.copy(task)
    found.threshold = threshold_by_id(chosen, labels_in(state))
    return found


def local_copy_of_best(run: Storage) -> str:
    """A local folder with the best model: its own, or a copy of it."""
    return retrying(lambda: run.local_copy(BEST), f"reading {run.path_of(BEST)}")
