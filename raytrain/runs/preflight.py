"""Everything that can be found wrong before Ray is started, in a second or two (P16)."""

import os
import uuid
from dataclasses import dataclass

from raytrain.config import ModelConfig, RunConfig
from raytrain.config.io import load_config, parse_config
from raytrain.config.shipped import communication_variables, config_names
from raytrain.data.sources import check_sources
from raytrain.engine.deepspeed_config import check_deepspeed_overrides, resolve_precision
from raytrain.errors import ConfigError, RaytrainError, did_you_mean
from raytrain.models.files import count_parameters, own_code
from raytrain.models.tokenizer import check_tokenizer, looks_local
from raytrain.ray_core.connect import RaySession, cluster_address
from raytrain.runs.plan import Plan, logical_cpus, make_plan
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.base import Task
from raytrain.tracking.trackers import check_trackers

JOB_FOLDER = "/runtime_resources/working_dir_files/"  # where Ray unpacks what a job brings along


@dataclass(frozen=True)
class Preflight:
    """A config that has passed the checks."""

    config: RunConfig
    """With absolute paths: workers run in other folders than the user."""
    private_cpus: int
    """Logical CPUs of a private Ray."""

    def plan_on(self, session: RaySession, num_samples: int | None = None) -> Plan:
        """The plan on the cluster as it is. Raises ConfigError when the run can't work there."""
        plan = make_plan(
            self.config,
            num_cpus=session.num_cpus,
            num_gpus=session.num_gpus,
            num_samples=num_samples,
            num_parameters=count_parameters(self.config.model),
            can_grow=not session.is_private,
        )
        if not plan.use_gpu:
            resolve_precision(self.config.training.precision, has_gpu=False, gpu_has_bf16=False)
        return plan


def check(config: RunConfig, *, on_this_machine: bool = True, only: str | None = None) -> Preflight:
    """Check what can be checked without Ray.

    Args:
        on_this_machine: Whether a run without a cluster would be this machine's own; False: its CPUs don't matter.
        only: The one split that will be read; None: all of them.

    Raises:
        ConfigError: A model without a tokenizer, a storage path that can't be written, a plan that can't run, ...
        DataError: A file that is missing, empty or broken, a column that is not there.
    """
    given, config = config, absolute_paths(config)
    check_deepspeed_overrides(config.training.deepspeed)
    communication_variables(config.training.communication)
    is_private = on_this_machine and cluster_address(config) is None
    private_cpus = 0
    if is_private:
        private_cpus = logical_cpus(config, os.cpu_count() or 1)
        make_plan(config, num_cpus=private_cpus, num_gpus=None, num_samples=None)
        if config.workers.gpu is False:
            resolve_precision(config.training.precision, has_gpu=False, gpu_has_bf16=False)
    task = make_task(config.task, config.data.max_length)
    _check_metrics(config, task)
    try:
        check_sources(given.data, task, only)  # a path that is missing is named as the user wrote it
        check_tokenizer(config.model)
        _check_trust(config.model)
        if config.training.gradient_checkpointing:
            _check_checkpointing(config, task)
    except RaytrainError as error:
        raise type(error)(f"{error}{_how_to_fetch(given)}") from None
    _check_storage(config)
    check_trackers(config)
    return Preflight(config, private_cpus)


def check_elsewhere(config: RunConfig) -> None:
    """Check what can be checked of a run that will be on a cluster which this machine is not part of. The cluster's own
    `check` does the rest, since only there the files can be seen.

    Raises ConfigError. A relative path is one: it would be looked for in the job's own folder, which goes with the job.
    """
    check_deepspeed_overrides(config.training.deepspeed)
    communication_variables(config.training.communication)
    _check_metrics(config, make_task(config.task, config.data.max_length))
    lost = [(key, path) for key, path in local_paths(config) if not os.path.isabs(path)]
    if lost:
        raise ConfigError(
            "\n".join(
                [
                    "a submitted run needs paths that mean the same on all nodes; these are relative to a folder here:",
                    *(f"  {key}: {path}" for key, path in lost),
                    "Give the absolute paths of a folder that all nodes share, or URIs (s3://, gs://, abfs://), in the "
                    f"config or as overrides ({lost[0][0]}=...); if the nodes do share this folder: "
                    f"{lost[0][0]}={_absolute(lost[0][1])}",
                ]
            )
        )


def local_paths(config: RunConfig) -> list[tuple[str, str]]:
    """(dotted key, path) of everything that the config names in a file system, as it is written."""
    found = [("storage_path", config.storage_path)]
    for split in ("train", "validation", "test"):
        paths = getattr(getattr(config.data, split), "path", None) or []
        found += [(f"data.{split}.path", path) for path in ([paths] if isinstance(paths, str) else paths)]
    if config.data.prepared_path:
        found.append(("data.prepared_path", config.data.prepared_path))
    for key in ("path", "tokenizer"):
        place = getattr(config.model, key)
        if place and (looks_local(place) or os.path.isdir(place)):  # anything else is a hub id
            found.append((f"model.{key}", place))
    return [(key, path) for key, path in found if "://" not in path]


def absolute_paths(config: RunConfig) -> RunConfig:
    """The config with local paths made absolute: workers don't run in the user's folder."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["storage_path"] = _absolute(config.storage_path)
    for split in ("train", "validation", "test"):
        source = raw["data"].get(split)
        if source and source.get("path"):
            paths = source["path"]
            source["path"] = _absolute(paths) if isinstance(paths, str) else [_absolute(path) for path in paths]
    if raw["data"].get("prepared_path"):
        raw["data"]["prepared_path"] = _absolute(raw["data"]["prepared_path"])
    if config.tracking.mlflow is not None:
        raw["tracking"]["mlflow"]["tracking_uri"] = _absolute_database(config.tracking.mlflow.tracking_uri)
    for key in ("path", "tokenizer"):
        place = raw["model"].get(key)
        if place and (looks_local(place) or os.path.isdir(place)):  # anything else is a hub id
            raw["model"][key] = _absolute(place)
    return parse_config(raw)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_database(uri: str) -> str:
    """An MLflow URI of a SQLite file, `sqlite:///path`, with an absolute path; any other as it is."""
    scheme, separator, path = uri.partition(":///")
    return f"{scheme}{separator}{os.path.abspath(path)}" if scheme == "sqlite" and path else uri


def _check_metrics(config: RunConfig, task: Task) -> None:
    """Refuse metrics that the task does not have, before a first evaluation finds out."""
    stopping = config.training.early_stopping
    named = {
        "training.early_stopping.metric": stopping.metric if stopping else None,
        "training.best_metric": config.training.best_metric,
    }
    for option, name in named.items():
        if name is not None and name not in task.metric_names:
            hint = did_you_mean(name, task.metric_names)
            raise ConfigError(
                f"{option} {name!r} is no metric of this task; allowed: {', '.join(task.metric_names)}{hint}"
            )


def _check_trust(model: ModelConfig) -> None:
    """Raises ConfigError for a model that brings its own code and is not trusted."""
    if model.path and not model.trust_remote_code and own_code(model.path, model.revision):
        from raytrain.models.build import read_model_config  # only Transformers knows whether it has the class itself

        read_model_config(model)


def _check_checkpointing(config: RunConfig, task: Task) -> None:
    """Raises ConfigError when the model has no gradient checkpointing: only its class knows."""
    import torch

    with torch.device("meta"):
        task.build_model(config.model, config.task.labels or ["a", "b"], config.training)


def _how_to_fetch(config: RunConfig) -> str:
    """For a shipped config whose data or model is not here: where they come from."""
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
    """Write and delete a small file where the run will be; no folder is made, since nothing may be started.

    Raises ConfigError naming storage_path.
    """
    if JOB_FOLDER in config.storage_path:
        raise ConfigError(
            f"storage_path {config.storage_path} lies in the job's own folder, which Ray deletes after the job: give a "
            "folder that all nodes share by its absolute path, or a URI (s3://, gs://, abfs://)"
        )
    try:
        place = Storage(config.storage_path).at(config.name)
        while (folder := place.local_path()) and not os.path.exists(folder):
            place = Storage(os.path.dirname(folder))
        name = f".raytrain-{uuid.uuid4().hex[:8]}"
        place.write_bytes(name, b"raytrain")
        place.delete(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"storage_path {config.storage_path}: can't write there: {error}") from None
