"""Decides whether an existing run directory can be resumed: only with the same config, except for fields that don't
change the experiment (P6, P10).
"""

from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from raytrain.checkpoint.folder import delete_folder
from raytrain.checkpoint.store import CheckpointStore
from raytrain.config import RunConfig
from raytrain.config.fields import declared
from raytrain.config.io import dump_config, flatten
from raytrain.config.mistakes import described
from raytrain.config.yaml import parse_yaml
from raytrain.errors import ConfigError
from raytrain.models.card import BEST
from raytrain.runs.folder import SWEEP
from raytrain.runs.result import RunResult, read_result
from raytrain.storage import Storage

# Logs to delete, with best/, when a run that has saved nothing starts again; the rest of its folder is overwritten.
LOGS = (
    "metrics.jsonl",
    "evals.jsonl",
    "events.jsonl",
    "segments",
    "summary.json",
    "goodput.json",
    "commands.jsonl",
    "data.json",
    "data_summary.json",
    "samples",
    "tensorboard",
    "tracking.json",
    "wandb",
    "plots",
    "ray_train",
    "verify",
    "errors",
)


def begin_or_resume(
    run: Storage, config: RunConfig, *, overwrite: bool, may_change: tuple[str, ...] = ()
) -> RunResult | None:
    """Make the run's folder ready for `config`.

    Args:
        may_change: More dotted keys that are allowed to differ.

    Returns:
        The run's result if it is already done, else None.

    Raises:
        ConfigError: The folder holds a run of another config; the message names the keys that differ. Or it holds a
        sweep.
    """
    if run.exists(SWEEP):
        raise ConfigError(f"{run.path_of()} holds a sweep: give this run another name (name={config.name}-run)")
    if overwrite:
        _delete_logs(run)
        for name in ("checkpoints", "config.yaml", "plan.json", "report.html"):
            run.delete(name)
    if not run.exists("config.yaml"):
        return None
    path = run.path_of("config.yaml")
    before = parse_yaml(run.read_bytes("config.yaml"), origin=path)
    if not isinstance(before, dict):
        raise ConfigError(
            f"{path} is damaged: expected `key: value` lines, found {described(before)}. Restore it, give this run "
            f"another name (name={config.name}-2), or start over with --overwrite, which deletes that run"
        )
    now = parse_yaml(dump_config(config))
    changes = [change for change in changed_keys(before, now) if change[0] not in may_change]
    has_checkpoint = bool(CheckpointStore(run.at("checkpoints")).candidates())
    if not changes and (result := read_result(run)) is not None and result.is_done:
        return replace(result, message="this run is already done")
    if changes and has_checkpoint:
        raise ConfigError(_refusal(run, config, changes))
    if changes or not has_checkpoint:  # nothing was saved: the run starts again, and so do its logs
        _delete_logs(run)
    return None


def _delete_logs(run: Storage) -> None:
    delete_folder(run, BEST)
    for name in LOGS:
        run.delete(name)


def changed_keys(
    before: dict[str, Any], now: dict[str, Any], root: type[BaseModel] = RunConfig
) -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of each change that makes it a different experiment. `root`: their
    schema."""
    old, new = flatten(before), flatten(now)
    return [
        (key, old.get(key), new.get(key))
        for key in dict.fromkeys([*new, *old])
        if old.get(key) != new.get(key) and declared(key, root).decides_weights
    ]


def _refusal(run: Storage, config: RunConfig, changes: list[tuple[str, Any, Any]]) -> str:
    lines = [f"  {key}: was {before!r}, is now {now!r}" for key, before, now in changes]
    return "\n".join(
        [
            f"{run.path_of()} holds checkpoints of a run with another config, so it can't be resumed with this one:",
            *lines,
            f"Restore the old value to resume it, give this run another name (name={config.name}-2), or start over "
            "with --overwrite, which deletes that run",
        ]
    )
