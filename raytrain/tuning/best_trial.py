"""The best trial of a sweep as a run of its own, on the sweep's data or on training and validation data together."""

from typing import Any

from raytrain.config import Affects, RunConfig
from raytrain.config.fields import affecting
from raytrain.config.io import parse_config
from raytrain.config.yaml import parse_yaml
from raytrain.errors import ConfigError
from raytrain.storage import Storage
from raytrain.tuning.resume import SWEEP
from raytrain.tuning.space.space import Space
from raytrain.tuning.state import trial_config
from raytrain.tuning.trials import TrialRow, TrialTable

NEEDS_SWEEP = (
    "--all-data needs --from-sweep SWEEP, whose winner says for how many steps to train without a validation split. "
    "For a config: list all files in data.train.path, and leave data.validation out"
)
TRIAL_NEEDS_SWEEP = "--trial needs --from-sweep SWEEP, whose trial it is"


def is_sweep(root: Storage) -> bool:
    """Whether a folder is a sweep's."""
    return root.exists(SWEEP)


def read_sweep(root: Storage) -> tuple[dict[str, Any], RunConfig, Space]:
    """What sweep.yaml says of a sweep, and its config and space."""
    raw = parse_yaml(root.read_bytes(SWEEP), origin=root.path_of(SWEEP))
    return raw, RunConfig.model_validate(raw["config"]), Space.model_validate(raw["space"])


def winner_config(root: Storage, config: RunConfig, best: TrialRow, suffix: str = "best") -> RunConfig:
    """The config of the best trial, as a run beside the sweep, with its name and a suffix. `config`: the sweep's."""
    chosen = trial_config(config, root, best.name, best.values_at_best)
    parent, name = root.place()
    return chosen.model_copy(update={"storage_path": parent, "name": f"{name}-{suffix}"})


def train_winner(root: Storage, overrides: list[str], *, all_data: bool, trial: str | None = None) -> RunConfig:
    """The config that trains the winner of a sweep.

    Args:
        trial: Another one than the best, by its name.
        overrides: `dotted.key=value` words.
        all_data: Train on the validation split too, up to the step at which the winner was best: nothing is left that
            early stopping or the choice of a best model could look at. The run's name then ends with `-all-data`.

    Raises:
        ConfigError: The folder is no sweep, no trial was evaluated, there is none of that name, an override is wrong,
            or the two splits can't be one.
    """
    if not is_sweep(root):
        raise ConfigError(f"{root.path_of()} is not a sweep's folder: it has no {SWEEP}")
    sweep, config, _ = read_sweep(root)
    trial_table = TrialTable(root, sweep["compares"]["mode"])
    best = trial_table.best if trial is None else trial_table.rows.get(trial)
    if best is None:
        if trial is not None:
            raise ConfigError(f"--trial {trial}: {root.path_of()} has none of that name; `raytrain report` lists them")
        raise ConfigError(f"no trial of {root.path_of()} has been evaluated yet")
    if all_data and best.best_step is None:
        raise ConfigError(f"--all-data: {best.name} was never evaluated, so it has no step at which it was best")
    raw = winner_config(root, config, best, trial or "best").model_dump(mode="json", exclude_unset=True)
    if all_data:
        raw = with_all_data(raw, best.best_step)
    chosen = parse_config(raw, overrides, origin=f"the best trial of {root.path_of()}")
    if all_data and chosen.data.validation is not None:
        raise ConfigError("--all-data trains on the validation split too: leave data.validation out")
    return chosen


def with_all_data(raw: dict[str, Any], best_step: int | None) -> dict[str, Any]:
    """A raw config whose training data are those of training and validation, and that ends at `best_step`.

    Raises ConfigError when the files of the two splits are read as different formats.
    """
    data, training = dict(raw["data"]), dict(raw.get("training", {}))
    validation = data.pop("validation")
    if validation.get("path") is not None:  # a fraction was held out of the training files
        if validation.get("format", "auto") != data["train"].get("format", "auto"):
            raise ConfigError(
                "--all-data: data.train.format and data.validation.format differ, so their files can't be one split; "
                "leave both at auto, or write the files of the two in one format"
            )
        data["train"] = {**data["train"], "path": [*_as_list(data["train"]["path"]), *_as_list(validation["path"])]}
    for key in ("training.epochs", *affecting(Affects.EVALUATION)):
        training.pop(key.removeprefix("training."), None)
    training["max_steps"] = best_step
    return {**raw, "name": f"{raw['name']}-all-data", "data": data, "training": training}


def _as_list(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths
