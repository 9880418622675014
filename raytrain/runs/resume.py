"""Whether a run's folder can be gone on with: the same config, give or take what does not touch the experiment."""

import json
from typing import Any

import yaml

from raytrain.checkpoint.store import CheckpointStore
from raytrain.config import RunConfig
from raytrain.config.io import dump_config, flatten
from raytrain.errors import ConfigError
from raytrain.storage import Storage

# Changing these leaves the model that comes out the same (P6, P10), so a run may be resumed with other values.
FREE = (
    "workers.",
    "checkpoint.",
    "tracking.",
    "ray.",
    "storage_path",
    "name",
    "training.early_stopping",
    "training.best_metric",
    "training.eval_every_",
    "training.micro_batch_size",
    "training.gradient_checkpointing",
    "training.communication.bucket_elements",
    "training.communication.overlap",
    "training.communication.network",
    "training.communication.environment",
    "training.zero_stage",
    "data.record_samples",
    "data.prepared_path",
)
# Where a run that is begun anew has left nothing; the rest of its folder is written anew.
LOGS = (
    "metrics.jsonl",
    "evals.jsonl",
    "events.jsonl",
    "summary.json",
    "goodput.json",
    "commands.jsonl",
    "samples",
    "tensorboard",
    "tracking.json",
    "wandb",
    "plots",
    "ray_train",
    "best",
)


def begin_or_resume(
    run: Storage, config: RunConfig, *, overwrite: bool, may_change: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """Make the run's folder ready for `config`.

    Args:
        may_change: Beginnings of dotted keys that may differ as well.

    Returns:
        The summary of the run when it is done already, else None.

    Raises:
        ConfigError: The folder holds a run of another config; the keys that differ are named.
    """
    if overwrite:
        for name in (*LOGS, "checkpoints", "config.yaml", "plan.json", "report.html"):
            run.delete(name)
    if not run.exists("config.yaml"):
        return None
    before, now = yaml.safe_load(run.read_bytes("config.yaml")), yaml.safe_load(dump_config(config))
    changes = [change for change in changed_keys(before, now) if not change[0].startswith(may_change)]
    has_checkpoint = bool(CheckpointStore(run.at("checkpoints")).candidates())
    if not changes and run.exists("summary.json"):
        summary = json.loads(run.read_bytes("summary.json"))
        if summary["status"] in ("finished", "stopped_early"):
            return {**summary, "message": "this run is done already"}
    if changes and has_checkpoint:
        raise ConfigError(_refusal(run, config, changes))
    if changes or not has_checkpoint:  # nothing was saved: the run begins anew, and so do its logs
        for name in LOGS:
            run.delete(name)
    return None


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of each change that would make it another experiment."""
    old, new = flatten(before), flatten(now)
    return [
        (key, old.get(key), new.get(key))
        for key in dict.fromkeys([*new, *old])
        if old.get(key) != new.get(key) and not key.startswith(FREE)
    ]


def _refusal(run: Storage, config: RunConfig, changes: list[tuple[str, Any, Any]]) -> str:
    lines = [f"  {key}: was {before!r}, is now {now!r}" for key, before, now in changes]
    return "\n".join(
        [
            f"{run.path_of()} holds checkpoints of a run with another config, so it can't be resumed with this one:",
            *lines,
            f"Put the old value back to go on, give the run another name (name={config.name}-2), or start anew with "
            "--overwrite, which deletes that run",
        ]
    )
