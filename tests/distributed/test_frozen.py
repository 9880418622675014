"""Frozen weights are told apart by a hash that no number of workers changes."""

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import make_model
from torch import nn

from raytrain.errors import ConfigError
from raytrain.steps.batches import World
from raytrain.training.agreement import Control
from raytrain.training.frozen import check_frozen, hash_of_frozen


def test_the_hash_is_of_the_frozen_weights_alone() -> None:
    hashes = [run_workers(_hashes, world_size) for world_size in (1, 3)]
    assert len({str(found) for result in hashes for found in result}) == 1
    base, other_trained, other_base, none_frozen = hashes[0][0]
    assert base == other_trained != other_base
    assert none_frozen is None
    check_frozen(base, other_trained, 5)
    for saved in (other_base, None):
        with pytest.raises(ConfigError, match=r"checkpoint of step 5 .*frozen weights.*model\.path"):
            check_frozen(base, saved, 5)


def _hashes() -> list[str | None]:
    control = Control(World(dist.get_rank(), dist.get_world_size()), timeout_s=60)
    other_base = make_model(seed=0)
    with torch.no_grad():
        other_base.frozen.weight[0, 0] += 1e-3
    models = [make_model(seed=0), make_model(seed=1), other_base, nn.Linear(2, 2)]
    models[0].hidden.requires_grad_(False), models[1].hidden.load_state_dict(models[0].hidden.state_dict())
    models[1].hidden.requires_grad_(False), models[2].hidden.requires_grad_(False)
    return [hash_of_frozen(model, control) for model in models]
