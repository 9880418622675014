"""What pydantic found wrong, in sentences: the dotted option, its value, what is allowed, what was probably meant."""

import difflib
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from raytrain.config import RunConfig
from raytrain.config.fields import all_fields, models_in, type_below
from raytrain.errors import did_you_mean

OTHER_WORDS = {
    "lr": "training.optimizer.learning_rate",
    "wd": "training.optimizer.weight_decay",
    "eps": "training.optimizer.epsilon",
    "adam_beta1": "training.optimizer.beta1",
    "adam_beta2": "training.optimizer.beta2",
    "adam_epsilon": "training.optimizer.epsilon",
    "lr_scheduler": "training.schedule.kind",
    "lr_scheduler_type": "training.schedule.kind",
    "scheduler": "training.schedule.kind",
    "warmup": "training.schedule.warmup_ratio",
    "clip": "training.gradient_clipping",
    "grad_clip": "training.gradient_clipping",
    "max_grad_norm": "training.gradient_clipping",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "steps": "training.max_steps",
    "bs": "training.global_batch_size",
    "batch_size": "training.global_batch_size",
    "train_batch_size": "training.global_batch_size",
    "per_device_train_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "eval_steps": "training.eval_every_steps",
    "metric_for_best_model": "training.best_metric",
    "save_steps": "checkpoint.save_every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "max_len": "data.max_length",
    "seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "train_file": "data.train.path",
    "validation_file": "data.validation.path",
    "test_file": "data.test.path",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "tokenizer_name": "model.tokenizer",
    "output_dir": "storage_path",
    "run_name": "name",
    "report_to": "tracking",
    "gpus": "workers.max",
    "num_gpus": "workers.max",
    "devices": "workers.max",
    "num_workers": "workers.max",
    "world_size": "workers.max",
    "nproc_per_node": "workers.max",
}
"""What other trainers call a field, and people type first."""


def describe(detail: ErrorDetails, root: type[BaseModel] = RunConfig) -> str:
    """One pydantic error as a sentence: dotted path, what is wrong, the value, what is allowed.

    `root`: the class that was validated.
    """
    location, section = resolve(detail["loc"], root)
    path = ".".join(location)
    kind, given, context = detail["type"], detail.get("input"), detail.get("ctx") or {}
    if kind == "extra_forbidden":
        return f"  {path}: unknown key{_nearest(detail['loc'], root)}"
    if kind == "missing":
        return f"  {path}: required, but not given"
    if kind == "union_tag_invalid":
        tags = str(context.get("expected_tags")).replace("'", "").split(", ")
        hint = did_you_mean(str(context.get("tag")), tags)
        return f"  {path}.kind: {context.get('tag')!r} is not known; allowed: {', '.join(tags)}{hint}"
    if kind == "union_tag_not_found":
        allowed = ", ".join(tag for option in models_in(section) for tag in _tags(option))
        return f"  {path}.kind: required, but not given; allowed: {allowed}"
    if kind == "value_error":  # most of our own validators name the dotted path themselves
        text = str(context["error"])
        return f"  {text}" if path in text else f"  {path}: {text}"
    if kind in ("model_type", "model_attributes_type"):
        return f"  {path}: expected a section with keys, got {given!r}"
    message = detail["msg"].replace("Input should be ", "must be ")
    if kind == "string_pattern_mismatch" and path == "name":
        message = "must be letters, digits, dots, dashes and underscores, since it names a folder"
    if kind in ("enum", "literal_error") and isinstance(given, str):
        close = difflib.get_close_matches(given, str(context.get("expected", "")).replace("'", "").split(" "), 1)
        message += f"; did you mean {close[0].strip(',')}?" if close else ""
    return f"  {path}: {message}, got {given!r}"


def _nearest(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """'; did you mean x?' for an unknown key, or else the keys that are allowed there."""
    path, section = resolve(location[:-1], root)
    here = [".".join((*path, name)) for model in models_in(section) for name in model.model_fields]
    key = nearest_field(str(location[-1]), ".".join(path), here, root)
    if key is not None:
        return f"; did you mean {key}?"
    allowed = dict.fromkeys(key.rpartition(".")[2] for key in here)
    return f"; allowed here: {', '.join(allowed)}" if allowed else ""


def nearest_field(
    name: str, section: str = "", here: Sequence[str] = (), root: type[BaseModel] = RunConfig
) -> str | None:
    """Dotted key of the field that is most likely meant by a word that is not a field.

    Args:
        section: Dotted key of the section that the word was given in; "": at the top.
        here: Dotted keys of that section's own fields.
    """
    if root is RunConfig and name in OTHER_WORDS:
        return OTHER_WORDS[name]
    everywhere = sorted(all_fields(root), key=lambda key: key.count("."))
    top = [key for key in everywhere if "." not in key]
    below = [key for key in everywhere if key.startswith(f"{section}.")] if section else everywhere
    # A namesake is nearer than what looks a little alike, and the same section is nearer than another one.
    tries = [(here, 0.75), (below, 1.0), (everywhere, 1.0), (here, 0.6), (top, 0.8), (below, 0.8)]
    for keys, cutoff in [*tries, (everywhere, 0.8)]:
        by_name = {key.rpartition(".")[2]: key for key in reversed(keys)}
        if close := difflib.get_close_matches(name, by_name, 1, cutoff=cutoff):
            return by_name[close[0]]
    return None


def resolve(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], Any]:
    """Pydantic's location without the tags of unions, and the type of what is there."""
    path: list[str] = []
    annotation: Any = root
    for part in location:
        models = models_in(annotation)
        if tagged := [model for model in models if len(models) > 1 and part in _tags(model)]:
            annotation = tagged[0]
            continue
        path.append(str(part))
        annotation = type_below(annotation, part)
    return path, annotation


def _tags(option: type[BaseModel]) -> tuple[Any, ...]:
    """What `kind` is in a member of a union."""
    return typing.get_args(option.model_fields["kind"].annotation) if "kind" in option.model_fields else ()
