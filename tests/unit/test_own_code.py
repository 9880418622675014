"""Metrics and losses of the user's: merged as all scores are, tried before anything starts, errors by name. No Ray."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from running import tiny_run

import raytrain
from raytrain.config import RunConfig, SequenceClassificationConfig, TokenClassificationConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError
from raytrain.runs.preflight import check, resolve
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED
from raytrain.tasks.labels import label_state
from raytrain.tasks.own_code import own_loss_sum, try_own_code
from raytrain.training.progress import is_better

SOURCE = '''
import numpy as np
import torch
from raytrain.tasks import Metric


class Cost(Metric):
    """Wrong answers of "no" cost five times those of "yes"."""

    name, mode, num_sums = "cost", "min", 2

    def update(self, predicted, true):
        self.sums += [((predicted != true) * np.where(true == 0, 5, 1)).sum(), true.size]

    def compute(self):
        return self.sums[0] / self.sums[1]


class Sentences(Metric):
    """The share of sentences without a mistake."""

    name, num_sums = "whole", 2

    def update(self, predicted, true):
        self.sums += [(predicted == true).all(), 1]

    def compute(self):
        return self.sums[0] / self.sums[1]


class Undefined(Cost):
    name = "undefined"

    def compute(self):
        return float("nan")


class Accuracy(Cost):
    name = "accuracy"


class Raises(Cost):
    def update(self, predicted, true):
        1 / 0


class Text(Cost):
    def compute(self):
        return "good"


class Forgets(Metric):
    """What it counts is not in its sums, so the other workers' is lost."""

    name = "forgets"

    def __init__(self, labels):
        super().__init__(labels)
        self.right = self.of = 0

    def update(self, predicted, true):
        self.right += (predicted == true).sum()
        self.of += true.size

    def compute(self):
        return self.right / self.of if self.of else 0.0


class OfBatches(Cost):
    """A mean of means, which depends on how the samples are cut into batches."""

    def update(self, predicted, true):
        self.sums += [(predicted == true).mean(), 1]


class Writes(Cost):
    def update(self, predicted, true):
        predicted[:] = true


class OfNothing(Cost):
    def __init__(self):
        pass


class Named(Cost):
    def update(self, predicted, true):
        self.sums += [(true == self.labels.index("yes")).sum(), true.size]


class NoName(Cost):
    name = "two words"


def focal(logits, labels):
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (1 - (-losses).exp()) ** 2 * losses


def plain(logits, labels):
    if labels.is_floating_point():
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def mean(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels)


def of_numpy(logits, labels):
    return plain(logits, labels).detach().numpy()


def coupled(logits, labels):
    return plain(logits, labels) / len(labels)


def without_gradient(logits, labels):
    return plain(logits.detach(), labels)
'''
M = "code_of_mine"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / f"{M}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop(M, None)


def classes(**options: Any) -> SequenceClassificationConfig:
    return SequenceClassificationConfig(kind="sequence_classification", **{"labels": ["no", "yes", "so"], **options})


def test_parts_of_a_split_add_up() -> None:
    task = make_task(classes(metrics=[f"{M}:Cost", f"{M}:Sentences"]), 16)
    assert (task.modes["cost"], task.modes["whole"]) == ("min", "max")
    generator = np.random.default_rng(0)
    predicted, true = (list(generator.integers(0, 3, (50, 1), dtype=np.int32)) for _ in range(2))
    state = label_state(["no", "yes", "so"])
    workers = [task.scores(state) for _ in range(3)]
    for worker, places in zip(workers, np.array_split(np.arange(50), 3), strict=True):
        for some in np.array_split(places, 4):
            worker.update([predicted[i] for i in some], [true[i] for i in some])
    for other in workers[1:]:
        workers[0].merge(other.state())
    found = workers[0].compute()
    wrong = np.concatenate(predicted) != np.concatenate(true)
    assert found.values["cost"] == pytest.approx((wrong * np.where(np.concatenate(true) == 0, 5, 1)).mean())
    assert found.values["accuracy"] == pytest.approx(1 - wrong.mean()) and "confusion" in found.tables
    assert sum(value.size for value in workers[0].state().values()) < 100, "constant memory"
    assert not task.scores(state).compute().values, "of nothing"


def test_a_metric_that_is_not_defined_is_not_the_best() -> None:
    scores = make_task(classes(metrics=[f"{M}:Undefined"]), 16).scores(label_state(["no", "yes", "so"]))
    scores.update([np.array([1])], [np.array([1])])
    assert np.isnan(scores.compute().values["undefined"])
    assert not is_better(scores.compute().values["undefined"], None, "max")


def test_several_labels_and_sentences_come_in_their_shapes() -> None:
    multi = make_task(classes(metrics=[f"{M}:Sentences"], multi_label=True), 16).scores(label_state(["a", "b", "c"]))
    multi.update([np.array([1, 0, 1]), np.array([0, 0, 1])], [np.array([1, 0, 1]), np.array([0, 1, 1])])
    assert multi.compute().values["whole"] == 0.0, "the two samples came as one matrix"
    tags = TokenClassificationConfig(kind="token_classification", labels=["O", "X"], metrics=[f"{M}:Sentences"])
    scores = make_task(tags, 16).scores(label_state(["O", "X"]))
    scores.update([np.array([1, 0]), np.array([0])], [np.array([1, 0]), np.array([1])])
    assert scores.compute().values["whole"] == 0.5


def test_a_loss_is_summed_over_what_has_a_label() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, IGNORED, 2, 2])
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    assert own_loss_sum(classes(loss=f"{M}:plain"), logits, labels, None) == pytest.approx(float(expected.sum()))
    weighted = own_loss_sum(classes(loss=f"{M}:plain"), logits, labels, weights)
    assert weighted == pytest.approx(float((expected * weights).sum()))
    focal = own_loss_sum(classes(loss=f"{M}:focal"), logits, labels, None)
    assert 0 < focal < expected.sum()
    blank = own_loss_sum(classes(loss=f"{M}:plain"), logits.requires_grad_(), torch.full((5,), IGNORED), None)
    blank.backward()
    assert blank == 0 and logits.grad is not None, "a blank micro-batch takes part in the backward pass"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": [f"{M}:Accuracy"]}, "the name 'accuracy' is taken; give it another one"),
        ({"metrics": [f"{M}:Cost", f"{M}:Cost"]}, "the name 'cost' is taken; give it another one"),
        ({"metrics": [f"{M}:Raises"]}, r"update failed: ZeroDivisionError: .*code_of_mine.py, line \d+"),
        ({"metrics": [f"{M}:Forgets"]}, "of the same samples one worker gets 0.[0-9]+ and several get"),
        ({"metrics": [f"{M}:OfBatches"]}, "of the same samples one worker gets 0.[0-9]+ and several get"),
        ({"metrics": [f"{M}:Writes"]}, r"update failed: ValueError: .*read-only.*code_of_mine.py, line \d+"),
        ({"metrics": [f"{M}:OfNothing"]}, r"it can't be made: TypeError: .*__init__\(\) takes 1"),
        ({"metrics": [f"{M}:Named"]}, None),
        (
            {"metrics": [f"{M}:Named"], "labels": None},
            "update failed: ValueError.*tried with the labels 0, 1, 2, since",
        ),
        ({"metrics": [f"{M}:Text"]}, "compute returned 'good'; return a number"),
        ({"metrics": [f"{M}:NoName"]}, "its attribute `name` is 'two words'; give letters"),
        ({"metrics": [f"{M}:Cots"]}, "has no 'Cots'; did you mean Cost"),
        ({"metrics": [f"{M}:focal"]}, "is not a subclass of raytrain.tasks.Metric"),
        ({"loss": f"{M}:mean"}, r"it returned shape \(\); return each sample's loss, shape \(4,\)"),
        ({"loss": f"{M}:of_numpy"}, "it returned .*; return each sample's loss"),
        ({"loss": f"{M}:coupled"}, "the loss of a sample depends on the other samples of its batch"),
        ({"loss": f"{M}:without_gradient"}, "its result has no gradient"),
        ({"loss": f"{M}:plain", "multi_label": True, "metrics": [f"{M}:Cost"]}, None),
    ],
)
def test_a_mistake_is_found_before_training(options: dict[str, Any], said: str | None) -> None:
    with pytest.raises(ConfigError, match=f"(?s)^task.(metrics|loss) {M}:.*{said}") if said else nullcontext():
        try_own_code(classes(**options))
        _ = make_task(classes(**options), 16).modes


def with_metric(folder: Path) -> RunConfig:
    raw = tiny_run(folder, "a").model_dump(mode="json", exclude_unset=True)
    words = [f"task.metrics=['{M}:Cost']", f"task.loss={M}:plain", "training.best_metric=cost"]
    return parse_config(raw, words)


def test_its_files_are_part_of_the_experiment_and_a_model_needs_them_not(tmp_path: Path, here: Path) -> None:
    config = check(with_metric(tmp_path)).config
    assert set(config.task.sources) == {f"{M}:Cost", f"{M}:plain"}  # type: ignore[union-attr]
    (here / f"{M}.py").write_text(SOURCE + "# changed\n")
    assert resolve(with_metric(tmp_path)).task != config.task
    with pytest.raises(ConfigError, match=r"the files of this package are not those .* leave out task.sources"):
        make_task(config.task, 16).scores(label_state(["no", "yes"]))
    sys.modules.pop(M)
    (here / f"{M}.py").unlink()
    task = make_task(config.task, 16)  # as `predict` does, where the user's folder is not
    assert task.encode_targets is not None and pa is not None
    with pytest.raises(ConfigError, match="there is no module 'code_of_mine'"):
        _ = task.modes


def test_a_metric_of_ones_own_may_pick_the_best_model(tmp_path: Path) -> None:
    with pytest.raises(raytrain.ConfigError, match=r"training.best_metric 'costs' is not a metric.*did you mean cost"):
        raytrain.train(with_metric(tmp_path), "training.best_metric=costs")
