"""Class weights: whose they are, and a mean loss that is exact however a batch is split (P7). No Ray."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from raytrain.config import SequenceClassificationConfig
from raytrain.errors import ConfigError
from raytrain.tasks import make_task
from raytrain.tasks.base import exact_weights
from raytrain.training.evaluate import to_tensors
from tests.tiny import context

CPU = torch.device("cpu")


def weighted(class_weights: Any, **options: Any) -> Any:
    config = SequenceClassificationConfig(kind="sequence_classification", class_weights=class_weights, **options)
    return make_task(config, 16)


def table(labels: list[str]) -> pa.Table:
    return pa.table({"text": ["good"] * len(labels), "label": labels})


@pytest.mark.parametrize("declared", [None, ["a", "b", "c"]])
def test_balanced_is_scikit_learns_of_the_training_data(declared: list[str] | None) -> None:
    task, train = weighted("balanced", labels=declared), ["a"] * 6 + ["b"] * 3 + ["c"]
    assert task.declared_state() is None, "the labels alone don't say it"
    surveys = [task.survey(table(train[:4]), "train"), task.survey(table(train[4:]), "train")]
    state = task.state_from([*surveys, task.survey(table(["c"] * 50), "validation")])
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=train)
    assert state["labels"] == ["a", "b", "c"]
    assert np.allclose(state["class_weights"], expected, atol=2**-11)


def test_rows_that_are_quarantined_do_not_count() -> None:
    """A row without a text is not trained on, whatever its label."""
    task = weighted("balanced")
    train = pa.table({"text": ["good", "good", "bad", "", None], "label": ["a", "a", "b", "b", "b"]})
    state = task.state_from([task.survey(train, "train")])
    assert np.allclose(state["class_weights"], [3 / 4, 3 / 2], atol=2**-11)


def test_a_weight_for_each_label() -> None:
    task = weighted({"b": 2, "a": 0.5}, labels=["a", "b"])
    assert task.declared_state() == {"labels": ["a", "b"], "class_weights": [0.5, 2.0]}
    with pytest.raises(ConfigError, match="has no weight for 'c'; give one for each of: a, b, c"):
        weighted({"b": 2, "a": 0.5}, labels=["a", "b", "c"]).declared_state()
    with pytest.raises(ConfigError, match="names 'z', which is not a label"):
        weighted({"b": 2, "a": 0.5, "z": 1}, labels=["a", "b"]).declared_state()


def test_the_loss_is_torchs_weighted_mean() -> None:
    task, state = weighted({"a": 0.5, "b": 3.0}, labels=["a", "b"]), {"labels": ["a", "b"], "class_weights": [0.5, 3.0]}
    logits, labels = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), [0, 1, 1, 0, 1]
    samples = pa.table({"input_ids": pa.array([[2, 3]] * 5, pa.list_(pa.int32())), "labels": labels})
    batch = task.collate(samples, context(5, state=state))
    mean = task.loss_sum(_Gives(logits), to_tensors(batch, CPU)) / task.target_weight(batch)
    wanted = functional.cross_entropy(logits, torch.tensor(labels), weight=torch.tensor([0.5, 3.0]))
    assert mean.item() == pytest.approx(wanted.item())
    blank = task.blank(batch)
    assert task.target_weight(blank) == 0.0
    assert task.loss_sum(_Gives(logits[:1]), to_tensors(blank, CPU)).item() == 0.0


class _Gives(nn.Module):
    """A model with given logits."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, **_: torch.Tensor) -> "_Gives":
        return self


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40), st.integers(1, 7))
def test_the_sum_of_weights_is_the_same_however_a_batch_is_split(raw: list[float], num_workers: int) -> None:
    weights = exact_weights(np.array(raw)).astype(np.float64)
    parts = [float(weights[rank::num_workers].sum()) for rank in range(num_workers)]
    assert sum(parts) == sum(reversed(parts)) == float(weights.sum())
    assert np.all(weights > 0)
