"""Decides whether an existing sweep can be resumed: with the same config and space, except for what may change."""

import yaml

from raytrain.config import RunConfig
from raytrain.config.io import to_yaml
from raytrain.errors import ConfigError
from raytrain.runs.resume import changed_keys
from raytrain.storage import Storage
from raytrain.tuning.space.schedulers import Generational
from raytrain.tuning.space.space import Space

SWEEP = "sweep.yaml"
GROWING = ("budget.", "max_failed")  # keys of a space that may change, so that a sweep can be extended


def begin_or_resume(root: Storage, config: RunConfig, space: Space, metric: str, mode: str) -> None:
    """Record what the sweep is, or check that it is the same as before, except for its budget and keys that do not
    affect the results. Raises ConfigError."""
    now = {
        "config": config.model_dump(mode="json", exclude_unset=True),
        "space": space.model_dump(mode="json", exclude_unset=True),
        "compares": {"metric": metric, "mode": mode},
    }
    if root.exists(SWEEP):
        before = yaml.safe_load(root.read_bytes(SWEEP))
        old_config, old_space = RunConfig.model_validate(before["config"]), Space.model_validate(before["space"])
        changes = changed_keys(old_config.model_dump(mode="json"), config.model_dump(mode="json"))
        may_change = () if isinstance(space.scheduler, Generational) else GROWING  # a population's size is fixed
        changes += [
            (f"the space's {key}", was, value)
            for key, was, value in changed_keys(old_space.model_dump(mode="json"), space.model_dump(mode="json"))
            if not key.startswith(may_change)
        ]
        if before["compares"] != now["compares"]:
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
    root.commit_bytes(SWEEP, to_yaml(now).encode())
