"""Checks that find mistakes before Ray is started, within a second or two (P16)."""

import functools
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raytrain.config import Mark, ModelConfig, PairsConfig, RunConfig
from raytrain.config.chat import ChatConfig
from raytrain.config.fields import marked, with_paths
from raytrain.config.io import flatten, load_config, parse_config
from raytrain.config.shipped import communication_variables, config_names
from raytrain.config.yaml import to_word
from raytrain.data.chat_format import chat_format
from raytrain.data.custom_augment import CUSTOM
from raytrain.data.parallel import Checked
from raytrain.data.sources import check_sources
from raytrain.engine.deepspeed_config import check_bitwise, check_deepspeed_overrides, resolve_precision
from raytrain.errors import ConfigError, RaytrainError, first_line
from raytrain.models.files import count_parameters, own_code
from raytrain.models.tokenizer import check_tokenizer, load_tokenizer, looks_local
from raytrain.ray_core.connect import RaySession, cluster_address
from raytrain.runs.plan import Plan, logical_cpus, make_plan
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import Task
from raytrain.tasks.chat import Chat
from raytrain.tasks.chat_template import CHATML
from raytrain.tasks.imported import import_named, source_hash
from raytrain.tasks.own_code import LOSS, METRICS, LabelTaskConfig, try_own_code
from raytrain.tasks.pair_task import PairTask
from raytrain.tracking.trackers import check_trackers
from raytrain.training.progress import mode_of, watched_mode
from raytrain.training.schedule import try_schedule

JOB_FOLDER = "/runtime_resources/working_dir_files/"  # where Ray unpacks the working directory of a job


@dataclass(frozen=True)
class Preflight:
    """A config that has passed the checks."""

    config: RunConfig
    """With absolute paths, since workers run in other folders than the user."""
    private_cpus: int
    """Logical CPUs for a private Ray."""
    num_trained: int | None = None
    """Parameters that are trained; None: unknown before the model is built."""

    def plan_on(self, session: RaySession, num_samples: int | None = None) -> Plan:
        """The plan on the cluster as it is now. Raises ConfigError when the run can't work there."""
        plan = make_plan(
            self.config,
            num_cpus=session.num_cpus,
            num_gpus=session.num_gpus,
            num_samples=num_samples,
            num_trained=self.num_trained,
            can_grow=not session.is_private,
        )
        if not plan.use_gpu:
            resolve_precision(self.config.training.precision, has_gpu=False, gpu_has_bf16=False)
        return plan


def check(
    config: RunConfig, *, on_this_machine: bool = True, only: str | None = None, checked: Checked | None = None
) -> Preflight:
    """Run all checks that don't need Ray.

    Args:
        on_this_machine: Whether a run without a cluster would run on this machine; False: its CPUs don't matter.
        only: The only split that will be read; None: all splits.
        checked: Is told how many source files are checked, if there are many.

    Raises:
        ConfigError: A model without a tokenizer, a storage path that can't be written, a plan that can't run, ...
        DataError: A file is missing, empty or broken, or a column does not exist.
    """
    given, config = config, resolve(config)
    check_deepspeed_overrides(config.training.deepspeed)
    check_bitwise(config.training)
    communication_variables(config.training.communication)
    is_private = on_this_machine and cluster_address(config) is None
    private_cpus = 0
    if is_private:
        private_cpus = logical_cpus(config, os.cpu_count() or 1)
        make_plan(config, num_cpus=private_cpus, num_gpus=None, num_samples=None)
        if config.workers.gpu is False:
            resolve_precision(config.training.precision, has_gpu=False, gpu_has_bf16=False)
    task, num_trained = make_task(config.task, config.data.max_length), count_parameters(config.model)
    try_own_code(config.task)
    try_schedule(config.training.schedule)
    _check_metrics(config, task)
    if config.training.optimizer.target is not None:
        from raytrain.engine.own_optimizer import layout_of  # it imports torch

        layout_of(config.training.optimizer)
    try:
        check_sources(given.data, task, only, checked)  # a missing path is named as the user wrote it
        check_tokenizer(config.model)
        _check_trust(config.model)
        _check_template(config, task)
        _check_samples(config, task)
        if _depends_on_the_model(config):
            num_trained = _check_options(config, task)
    except RaytrainError as error:
        raise type(error)(f"{error}{_how_to_fetch(given)}", error.code) from None
    _check_storage(config)
    check_trackers(config)
    return Preflight(config, private_cpus, num_trained)


def _depends_on_the_model(config: RunConfig) -> bool:
    """Whether there are options that some models lack."""
    training, model = config.training, config.model
    of_training = training.gradient_checkpointing, training.neftune_alpha, training.layerwise_lr_decay < 1.0
    return any(of_training) or model.adapter is not None or model.attention != "auto" or bool(model.add_tokens)


def _check_template(config: RunConfig, task: Task) -> None:
    """Raises ConfigError for a chat template that the tokenizer lacks, or that can't be used with it."""
    if isinstance(task, Chat | PairTask):
        task.template(load_tokenizer(config.model))


def _check_samples(config: RunConfig, task: Task) -> None:
    """Raises ConfigError for prompts that the first evaluation could not continue."""
    if getattr(config.task, "sample_prompts", []):
        from raytrain.training.sampler import Sampler  # it imports torch

        Sampler.of(config, task)


def check_model(config: RunConfig) -> None:
    """Raises ConfigError when the model can't run on the longest sample, or lacks rows for the tokenizer's tokens. It
    imports torch and Transformers, which takes seconds, so it comes before the data is prepared and not in `check`."""
    from raytrain.sizing.shape import refuse_unfit

    task = make_task(config.task, config.data.max_length)
    refuse_unfit(config, task, task.assumed_state())


def check_elsewhere(config: RunConfig) -> None:
    """Check what this machine can check of a run on a cluster that it is not part of. The cluster's own `check` does
    the rest, since the files are visible only there.

    Raises ConfigError, also for relative paths: those would be relative to the job's own folder, which is deleted with
    the job.
    """
    check_deepspeed_overrides(config.training.deepspeed)
    check_bitwise(config.training)
    communication_variables(config.training.communication)
    _check_metrics(config, make_task(config.task, config.data.max_length))
    lost = [(key, path) for key, path in local_paths(config) if not os.path.isabs(path)]
    databases = _named_by(config, Mark.DATABASE) + _named_by(config, Mark.PATH)
    lost += [(key, uri) for key, uri in databases if _absolute_database(uri) != uri]
    if lost:
        key = lost[0][0]  # its whole value is shown: a list has other paths too
        value = with_paths(flatten(config.model_dump(mode="json"))[key], lambda p: _absolute_database(_absolute(p)))
        raise ConfigError(
            "\n".join(
                [
                    "a submitted run needs paths that mean the same on all nodes; these are relative to a folder here:",
                    *(f"  {key}: {path}" for key, path in lost),
                    "Give the absolute paths of a folder that all nodes share, or URIs (s3://, gs://, abfs://), in the "
                    f"config or as overrides ({key}=...); if the nodes do share this folder: "
                    f"{key}={value if isinstance(value, str) else to_word(value)}",
                ]
            )
        )


def local_paths(config: RunConfig) -> list[tuple[str, str]]:
    """(dotted key, path) of every path in the config that is on a file system, as written."""
    found = _named_by(config, Mark.PATH)
    found += [(key, place) for key, place in _named_by(config, Mark.PATH_OR_HUB_ID) if _is_local(place)]
    return [(key, path) for key, path in found if "://" not in path]


def _named_by(config: RunConfig, mark: Mark) -> list[tuple[str, str]]:
    """(dotted key, value) of the fields with a mark; for a list, one pair per item."""
    values = flatten(config.model_dump(mode="json"))
    found: list[tuple[str, str]] = []

    def note(key: str, place: str) -> str:
        found.append((key, place))
        return place

    for key in marked(mark):
        with_paths(values.get(key), functools.partial(note, key))
    return found


def resolve(config: RunConfig) -> RunConfig:
    """The config with local paths made absolute, since workers don't run in the user's folder, and with the hashes of
    the files that define a `python` task and a custom function. Raises ConfigError when one can't be imported."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["storage_path"] = config.storage_path  # its default is relative too
    makers: dict[Mark, Callable[[str], str]] = {
        Mark.PATH: lambda path: _absolute_database(_absolute(path)),
        Mark.PATH_OR_HUB_ID: lambda place: _absolute(place) if _is_local(place) else place,
        Mark.DATABASE: _absolute_database,
    }
    for mark, make_absolute in makers.items():
        for key in marked(mark):
            *sections, name = key.split(".")
            section: Any = raw
            for part in sections:
                section = (section or {}).get(part)
            if section and section.get(name):
                section[name] = with_paths(section[name], make_absolute)
    if config.task.kind == "python" and config.task.source is None:  # a run's own config says it already
        raw["task"]["source"] = source_hash(config.task.target)
    if isinstance(config.task, ChatConfig):
        raw["task"].update({"format": chat_format(config.task, config.data)} if config.task.format is None else {})
    if isinstance(config.task, ChatConfig | PairsConfig):
        raw["task"].update(_resolved_template(config.task.chat_template))
    if (clean := config.data.clean) is not None and clean.custom is not None and clean.custom_source is None:
        raw["data"]["clean"]["custom_source"] = source_hash(clean.custom, "data.clean.custom")
    augment = config.data.augment
    if augment is not None and augment.custom is not None and augment.custom_source is None:
        import_named(augment.custom, CUSTOM)
        raw["data"]["augment"]["custom_source"] = source_hash(augment.custom, CUSTOM)
    if isinstance(config.task, LabelTaskConfig):
        named = [(target, METRICS) for target in config.task.metrics]
        named += [(config.task.loss, LOSS)] if config.task.loss is not None else []
        if sources := {target: source_hash(target, option) for target, option in named if not config.task.sources}:
            raw["task"]["sources"] = sources
    optimizer = config.training.optimizer
    if optimizer.target is not None and optimizer.source is None and not optimizer.target.startswith("torch."):
        raw["training"]["optimizer"]["source"] = source_hash(optimizer.target, "training.optimizer.target")
    schedule = config.training.schedule
    if schedule.target is not None and schedule.source is None:
        raw["training"]["schedule"]["source"] = source_hash(schedule.target, "training.schedule.target")
    return parse_config(raw)


def _resolved_template(path: str | None) -> dict[str, Any]:
    """The text of a chat template in place of its file. Raises ConfigError."""
    if path is None or path == CHATML or "{" in path:  # it is a template already
        return {}
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return {"chat_template": file.read()}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"task.chat_template {path}: this file can't be read ({first_line(str(error))}). Give a file with a "
            "template in Jinja, or chatml"
        ) from None


def _is_local(place: str) -> bool:
    """Whether it is a folder, or looks like one; anything else is a model id of a hub."""
    return looks_local(place) or os.path.isdir(place)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_database(uri: str) -> str:
    """Make the path of an SQLite URI (`sqlite:///path`) absolute; return anything else unchanged."""
    scheme, separator, path = uri.partition(":///")
    return f"{scheme}{separator}{os.path.abspath(path)}" if scheme == "sqlite" and path else uri


def _check_metrics(config: RunConfig, task: Task) -> None:
    """Reject metrics that the task does not have now, not at the first evaluation."""
    if config.training.best_metric is not None:
        mode_of(config.training.best_metric, task, "training.best_metric")
    if config.training.early_stopping is not None:
        watched_mode(config.training.early_stopping, task)


def _check_trust(model: ModelConfig) -> None:
    """Raises ConfigError for a model that needs its own code when that is not trusted."""
    if model.path and not model.trust_remote_code and own_code(model.path, model.revision):
        from raytrain.models.build import read_model_config  # only Transformers knows whether it has the class

        read_model_config(model)


def _check_options(config: RunConfig, task: Task) -> int:
    """The number of trained parameters. Raises ConfigError when the model does not support gradient checkpointing, or
    has no modules of the adapter's names: only its class knows."""
    import torch

    with torch.device("meta"):
        model = task.build_model(config.model, task.assumed_state(), config.training)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _how_to_fetch(config: RunConfig) -> str:
    """A hint on where to get the data or the model of a shipped config."""
    if config.name not in config_names():
        return ""
    shipped = load_config(config.name)
    paths = [(config.data.train.path, shipped.data.train.path), (config.model.path, shipped.model.path)]
    if not any(path == theirs and isinstance(path, str) and not os.path.exists(path) for path, theirs in paths):
        return ""
    return (
        ". This shipped config reads what examples/fetch_data.py fetches in a clone of raytrain's repository; the top "
        f"of `raytrain configs show {config.name}` gives the command. Run raytrain in that folder, or name your "
        "own files with data.train.path=... and model.path=..."
    )


def _check_storage(config: RunConfig) -> None:
    """Write and delete a small file where the run will be. No folder is created, since the run may not start.

    Raises ConfigError naming storage_path.
    """
    if JOB_FOLDER in config.storage_path:
        raise ConfigError(
            f"storage_path {config.storage_path} is in the job's own folder, which Ray deletes after the job: give the "
            "absolute path of a folder that all nodes share, or a URI (s3://, gs://, abfs://)"
        )
    try:
        place = Storage(config.storage_path).at(config.name)
        while (folder := place.local_path()) and not os.path.exists(folder):
            place = Storage(os.path.dirname(folder))
        name = f".raytrain-{uuid.uuid4().hex[:8]}"
        try:
            place.write_bytes(name, b"raytrain")
        finally:
            place.delete(name)  # a full disk leaves an empty file
    except (OSError, ValueError) as error:
        raise ConfigError(f"storage_path {config.storage_path}: can't write there: {error}") from None
