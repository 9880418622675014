"""Decides whether an existing sweep can be resumed: with the same config and space, except for what may change."""

from raytrain.config import Mark, RunConfig
from raytrain.config.fields import marked
from raytrain.config.yaml import parse_yaml, to_yaml
from raytrain.errors import ConfigError
from raytrain.runs.folder import SWEEP
from raytrain.runs.resume import changed_keys
from raytrain.storage import Storage
from raytrain.tuning.space.schedulers import Generational
from raytrain.tuning.space.space import Space


def begin_or_resume(root: Storage, config: RunConfig, space: Space, metric: str, mode: str) -> None:
    """Record what the sweep is, or check that it is the same as before, except for its budget and keys that do not
    affect the results. Raises ConfigError."""
    check_same(root, config, space, metric)
    now = {
        "config": config.model_dump(mode="json", exclude_unset=True),
        "space": space.model_dump(mode="json", exclude_unset=True),
        "compares": {"metric": metric, "mode": mode},
    }
    root.commit_bytes(SWEEP, to_yaml(now).encode())


def check_same(root: Storage, config: RunConfig, space: Space, metric: str | None) -> None:
    """Check that the folder has no sweep, or the same one as before; see `begin_or_resume`. Raises ConfigError.

    Args:
        metric: What trials are compared by; None: the data has to be prepared to know it, so it is not checked.
    """
    if root.exists("config.yaml"):
        raise ConfigError(f"{root.path_of()} holds a run: give the config of this sweep another name")
    if not root.exists(SWEEP):
        return
    before = parse_yaml(root.read_bytes(SWEEP), origin=root.path_of(SWEEP))
    old_config, old_space = RunConfig.model_validate(before["config"]), Space.model_validate(before["space"])
    changes = changed_keys(old_config.model_dump(mode="json"), config.model_dump(mode="json"))
    # A population has one size; any other sweep may be given a larger budget.
    may_change = () if isinstance(space.scheduler, Generational) else marked(Mark.MID_RUN, Space)
    changes += [
        (f"the space's {key}", was, value)
        for key, was, value in changed_keys(old_space.model_dump(mode="json"), space.model_dump(mode="json"), Space)
        if key not in may_change
    ]
    if metric is None:
        changes = [change for change in changes if change[0] != "training.best_metric"]
    elif before["compares"]["metric"] != metric:
        changes.append(("the metric", before["compares"]["metric"], metric))
    if changes:
        lines = [f"  {key}: was {was!r}, is now {value!r}" for key, was, value in changes]
        raise ConfigError(
            "\n".join(
                [
                    f"{root.path_of()} holds a different sweep, which can't be resumed with this config and space:",
                    *lines,
                    "Restore the old values to resume it, give the config another name, or delete that folder",
                ]
            )
        )
