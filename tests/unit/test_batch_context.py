"""Random numbers of a batch belong to its samples: the same at any number of workers, others in each epoch. No Ray."""

import numpy as np

from tests.tiny import context


def drawn(ids: list[int], **changes: object) -> dict[int, float]:
    given = context(len(ids), **{"ids": np.array(ids), **changes})
    return {i: given.generator(place).random() for place, i in enumerate(ids)}


def test_a_sample_has_its_own_wherever_it_is() -> None:
    together = drawn([5, 3, 9, 1])
    assert len(set(together.values())) == 4
    assert {**drawn([1, 9]), **drawn([3]), **drawn([5])} == together


def test_they_differ_by_epoch_copy_seed_and_split() -> None:
    changes = [{}, {"epoch": 1}, {"copies": np.array([1])}, {"seed": 1}, {"split": "validation"}]
    assert len({drawn([7], **change)[7] for change in changes}) == len(changes)
