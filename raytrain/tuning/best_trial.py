"""Trains the best trial of a sweep as a separate run, on the sweep's data or on training and validation data
together."""

from typing import Any

from raytrain.config import Affects, RunConfig
from raytrain.config.data import FilesConfig
from raytrain.config.fields import affecting
from raytrain.config.io import parse_config
from raytrain.config.yaml import parse_yaml
from raytrain.errors import ConfigError
from raytrain.runs.folder import SWEEP, why_no_sweep
from raytrain.storage import Storage
from raytrain.tuning.space.space import Space
from raytrain.tuning.state import trial_config
from raytrain.tuning.trials import TrialRow, TrialTable

NEEDS_SWEEP = (
    "--all-data needs --from-sweep SWEEP, whose winner determines the number of steps without a validation split. "
    "For a config: list all files in data.train.path, and omit data.validation"
)
TRIAL_NEEDS_SWEEP = "--trial needs --from-sweep SWEEP, the sweep that the trial belongs to"


def is_sweep(root: Storage) -> bool:
    """Whether a folder belongs to a sweep."""
    return root.exists(SWEEP)


def read_sweep(root: Storage) -> tuple[dict[str, Any], RunConfig, Space]:
    """(contents of sweep.yaml, config, space) of a sweep."""
    raw = parse_yaml(root.read_bytes(SWEEP), origin=root.path_of(SWEEP))
    return raw, RunConfig.model_validate(raw["config"]), Space.model_validate(raw["space"])


def winner_suffix(trial: str | None, *, all_data: bool) -> str:
    """What follows the sweep's name in the name of a run that trains its winner, or the named trial."""
    return f"{trial or 'best'}{'-all-data' * all_data}"


def winner_config(root: Storage, config: RunConfig, best: TrialRow, suffix: str = "best") -> RunConfig:
    """The config of the best trial, as a run next to the sweep named with a suffix. `config`: the sweep's."""
    chosen = trial_config(config, root, best.name, best.values_at_best)
    parent, name = root.place()
    return chosen.model_copy(update={"storage_path": parent, "name": f"{name}-{suffix}"})


def train_winner(root: Storage, overrides: list[str], *, all_data: bool, trial: str | None = None) -> RunConfig:
    """The config that trains the winner of a sweep.

    Args:
        trial: Name of another trial to use instead of the best one.
        overrides: `dotted.key=value` words.
        all_data: Train on the validation split too, up to the step at which the winner was best. No data is left for
            early stopping or for choosing a best model. The run's name then ends with `-all-data`.

    Raises:
        ConfigError: The folder is not a sweep's, no trial was evaluated, the named trial does not exist, an override is
            wrong, or the two splits can't be combined.
    """
    if not is_sweep(root):
        raise ConfigError(f"{root.path_of()} is not a sweep's folder: {why_no_sweep(root)}")
    sweep, config, _ = read_sweep(root)
    trial_table = TrialTable(root, sweep["compares"]["mode"])
    best = trial_table.best if trial is None else trial_table.rows.get(trial)
    if best is None:
        if trial is not None:
            raise ConfigError(f"--trial {trial}: {root.path_of()} has no such trial; `raytrain report` lists them")
        raise ConfigError(f"no trial of {root.path_of()} has been evaluated yet")
    if all_data and best.best_step is None:
        raise ConfigError(f"--all-data: {best.name} was never evaluated, so it has no step at which it was best")
    suffix = winner_suffix(trial, all_data=all_data)
    raw = winner_config(root, config, best, suffix).model_dump(mode="json", exclude_unset=True)
    if all_data:
        raw = with_all_data(raw, best.best_step)
    chosen = parse_config(raw, overrides, origin=f"the best trial of {root.path_of()}")
    if all_data and chosen.data.validation is not None:
        raise ConfigError("--all-data trains on the validation split too: leave data.validation out")
    return chosen


def with_all_data(raw: dict[str, Any], best_step: int | None) -> dict[str, Any]:
    """A raw config that trains on the files of training and validation, up to `best_step`.

    Raises ConfigError if the files of the two splits are read in different ways.
    """
    data, training = dict(raw["data"]), dict(raw.get("training", {}))
    validation = data.pop("validation")
    if validation.get("path") is not None and (sources := data["train"].get("sources")):
        if any(source.get("weight") is not None for source in sources):
            raise ConfigError(
                "--all-data: data.train.sources have weights, and the validation files have none. Write a config that "
                "lists them as a source with a weight, or leave out the weights"
            )
        added = {name: value for name, value in validation.items() if name != "fraction"}
        data["train"] = {**data["train"], "sources": [*sources, added]}
    elif validation.get("path") is not None:  # else it is a fraction of the training files
        options = {name: field.default for name, field in FilesConfig.model_fields.items() if name != "path"}
        for name, default in options.items():
            if validation.get(name, default) != data["train"].get(name, default):
                raise ConfigError(
                    f"--all-data: data.train.{name} and data.validation.{name} differ, so their files can't be one "
                    "split; leave both at their default, or write the files of the two in one format"
                )
        data["train"] = {**data["train"], "path": [*_as_list(data["train"]["path"]), *_as_list(validation["path"])]}
    for key in ("training.epochs", *affecting(Affects.EVALUATION)):
        training.pop(key.removeprefix("training."), None)
    training["max_steps"] = best_step
    return {**raw, "data": data, "training": training}


def _as_list(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths
