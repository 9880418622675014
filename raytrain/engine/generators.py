"""The generators from which a forward pass draws."""

import random

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed torch's generators (of the CPU and of every GPU), numpy's and Python's. `seed`: in [0, 2**63).

    Transformers draws from torch (dropout, layer drop) and, in some models, from numpy (masks of spans); a module of
    the user's own may draw from any of them.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
