"""Weights that are not trained: checkpoints don't contain them, but identify them by a hash."""

from torch import nn

from raytrain.errors import ConfigError
from raytrain.models.frozen import combined_hash, frozen_parameters, hash_of_parameter
from raytrain.training.agreement import Control


def hash_of_frozen(model: nn.Module, control: Control) -> str | None:
    """SHA-256 over the names and values of all parameters without `requires_grad`; None if there are none.

    Buffers are not part of it: a checkpoint contains the persistent ones, and the others are computed from the config.

    Collective: every worker holds the same model and hashes a part of it. The result does not depend on the number of
    workers.
    """
    if not (frozen := frozen_parameters(model)):
        return None
    world = control.world
    mine = {name: hash_of_parameter(parameter) for name, parameter in frozen[world.world_rank :: world.world_size]}
    return combined_hash({name: value for part in control.gather(mine) for name, value in part.items()})


def check_frozen(found: str | None, saved: str | None, step: int) -> None:
    """Raises ConfigError when the state of this step was saved with other frozen weights than the model has."""
    if found != saved:
        raise ConfigError(
            f"the checkpoint of step {step} holds the trained weights only, and its frozen weights are not those of "
            f"this model (SHA-256 {saved or 'of none'}, here {found or 'of none'}). Restore the model that the run "
            "began with at model.path, give the run another name, or start over with --overwrite"
        )
