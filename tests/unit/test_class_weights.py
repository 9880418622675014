"""Class weights: whose they are, and a mean loss that is exact however a batch is split (P7). No Ray."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import tiny_run
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from raytrain.config import RunConfig, SequenceClassificationConfig
from raytrain.config.io import parse_config
from raytrain.data.class_weights import class_weights_of, state_of
from raytrain.data.copies import describe_epoch
from raytrain.data.prepare import _place_of
from raytrain.data.prepared import Manifest, SplitInfo
from raytrain.errors import ConfigError
from raytrain.runs.evaluation import for_other_data
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.exact_weights import exact_weights
from raytrain.training.evaluate import to_tensors
from raytrain.training.export import describe
from tests.tiny import context

CPU = torch.device("cpu")
LABELS = ["a", "b", "c"]
TRAIN = ["a"] * 6 + ["b"] * 3 + ["c"]


def run(class_weights: Any, *overrides: str) -> RunConfig:
    raw = {
        "name": "a",
        "task": {"kind": "sequence_classification"},
        "model": {"path": "m"},
        "data": {"train": {"path": "a.csv"}},
        "training": {"class_weights": class_weights},
    }
    return parse_config(raw, list(overrides))


def manifest_of(train: dict[str, int] | None, labels: list[str] = LABELS) -> Manifest:
    counts = {"validation": {"c": 50}} | ({} if train is None else {"train": train})
    infos = {split: SplitInfo(sum(one.values()), 0, 0, 0, [], "", one) for split, one in counts.items()}
    return Manifest("f", {"labels": labels}, 0, infos, "c")


def test_auto_is_scikit_learns_balanced_of_the_training_data() -> None:
    found = class_weights_of(run("auto"), manifest_of(dict(Counter(TRAIN))))
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=TRAIN)
    assert found is not None and list(found) == LABELS
    assert np.allclose(list(found.values()), expected, atol=2**-11)
    assert class_weights_of(run("auto"), manifest_of({"a": 2, "b": 2})) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert class_weights_of(run(None), manifest_of({"a": 2})) is None


def test_a_weight_for_each_label() -> None:
    manifest = manifest_of({"a": 6}, ["a", "b"])
    chosen = run({"b": 2, "a": 0.5})
    assert state_of(chosen, manifest) == {"labels": ["a", "b"], "class_weights": [0.5, 2.0]}
    assert state_of(run(None), manifest) == {"labels": ["a", "b"]}
    assert describe_epoch(chosen, manifest) == ["training.class_weights: 'a' 0.5, 'b' 2"]
    with pytest.raises(ConfigError, match="has no weight for 'c'; give one for each of: a, b, c"):
        class_weights_of(chosen, manifest_of({"a": 6}))
    with pytest.raises(ConfigError, match="names 'z', which is not a label"):
        class_weights_of(run({"b": 2, "a": 0.5, "z": 1}), manifest)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.labels=[a, b, c]"], "training.class_weights has no weight for 'c'"),
        (["task.labels=[a]"], "training.class_weights names 'b', which is not a label"),
        (["task.multi_label=true"], "training.class_weights needs one label per sample"),
        (["task.kind=token_classification"], "training.class_weights needs one label per sample"),
    ],
)
def test_what_the_config_refuses(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run({"b": 2, "a": 0.5}, *overrides)


def test_all_weights_share_one_store(tmp_path: Path) -> None:
    """They weigh the loss alone: a sweep over them prepares once."""
    options = [[], ["training.class_weights=auto"], ["training.class_weights={negative: 1, positive: 2}"]]
    assert len({_place_of(tiny_run(tmp_path, "a", *overrides))[3] for overrides in options}) == 1


def test_another_evaluation_weighs_as_the_training_did(tmp_path: Path) -> None:
    """Weights of auto come from the training data, which may be gone by then: best/ keeps them."""
    config = tiny_run(tmp_path, "a", "training.class_weights=auto", "data.balance={}", "data.augment.typo=0.1")
    facts = describe(config, manifest_of({"negative": 30, "positive": 10}, ["negative", "positive"]), 3, 1)
    best = tmp_path / "runs" / "a" / "best"
    best.mkdir(parents=True)
    (best / "raytrain.json").write_text(json.dumps(facts))
    other = for_other_data(config, Storage(str(best.parent)))
    weights = class_weights_of(other, manifest_of(None, ["negative", "positive"]))
    assert weights == {"negative": pytest.approx(2 / 3, abs=1e-3), "positive": 2.0}
    assert (other.data.balance, other.data.augment) == (None, None), "they are for training data"


def test_the_loss_is_torchs_weighted_mean() -> None:
    task = make_task(SequenceClassificationConfig(kind="sequence_classification"), 16)
    state = {"labels": ["a", "b"], "class_weights": [0.5, 3.0]}
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
