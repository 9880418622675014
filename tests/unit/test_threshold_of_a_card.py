"""The threshold that was chosen for a model, in its card: garbage is refused, folders are not published, and a watch
tells of another one. And differences that are not numbers."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from saved_models import model_config, save_best

from raytrain.data.items import EvalBatch
from raytrain.errors import ConfigError
from raytrain.inference.card import read_card
from raytrain.inference.judging import LOSS
from raytrain.inference.significance import Pairs
from raytrain.models.card import without_folders
from raytrain.storage import Storage
from raytrain.tasks import make_task
from raytrain.tasks.predicting import Judged
from raytrain.training.evaluate import evaluate
from raytrain.training.export import at_threshold
from raytrain.watching.watch import WatchRequest, watch_source

TASK = {"kind": "sequence_classification", "multi_label": True}
LABELS = ["good", "bad"]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return Path(save_best(model_config(folder, TASK), {"labels": LABELS}, folder))


def changed(best: Path, folder: Path, change: dict[str, Any]) -> dict[str, Any]:
    """The facts of the model with a change, and a card of them in the folder."""
    facts = {**json.loads((best / "raytrain.json").read_text()), **change}
    (folder / "raytrain.json").write_text(json.dumps(facts))
    return facts


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": "high"},
        {"threshold": True},
        {"threshold": 1.5},
        {"threshold": math.nan},
        {"threshold": [0.5, 0.5]},
        {"threshold": {"good": 0.5}},
        {"threshold": {"good": 0.5, "bad": None}},
        {"state": []},
        {"files": None},
        {"task": "tags"},
    ],
)
def test_a_card_with_garbage_is_refused(best: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    changed(best, tmp_path, change)
    with pytest.raises(ConfigError, match=r"raytrain\.json"):
        read_card(Storage(str(tmp_path)))


def test_a_card_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raytrain.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not the description of a model"):
        read_card(Storage(str(tmp_path)))


def test_the_folder_of_the_rows_that_a_threshold_was_chosen_on_is_not_published(best: Path, tmp_path: Path) -> None:
    facts = changed(best, tmp_path, {"threshold": 0.4, "threshold_chosen": {"rows_of": "/home/ada/secret/rows.csv"}})
    assert without_folders(facts)["threshold_chosen"] == {"rows_of": "rows.csv"}


@pytest.mark.parametrize("threshold", [None, 0.3, {"good": 0.9, "bad": 0.2}])
def test_a_finished_model_is_evaluated_by_its_threshold(
    best: Path, tmp_path: Path, threshold: float | dict[str, float] | None
) -> None:
    """`eval --split` gives the labels that `predict` and `eval --data` give, and says by which threshold."""
    facts = {**json.loads((best / "raytrain.json").read_text()), "threshold": threshold}
    rng, state = np.random.default_rng(0), {"labels": LABELS}
    logits = rng.normal(0, 2, (200, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (200, 2))

    class Model(torch.nn.Module):
        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.from_numpy(logits))

    plain = make_task(read_card(Storage(str(best))).config().task, 16)
    task = at_threshold(plain, facts, state)
    arrays = {"input_ids": np.ones((200, 1), np.int64), "labels": labels.astype(np.float32)}
    batch = EvalBatch(arrays, False, np.arange(200))
    found = evaluate(Model(), [batch], task, state, torch.device("cpu"), Alone(), lambda: None)  # type: ignore[arg-type]
    limits = np.array([0.5, 0.5] if threshold is None else [threshold] * 2)
    if isinstance(threshold, dict):
        limits = np.array([threshold[name] for name in LABELS])
    chosen = 1 / (1 + np.exp(-logits.astype(np.float64))) > limits
    assert found.values["subset_accuracy"] == pytest.approx((chosen == labels).all(1).mean())
    assert len(found.notes) == (threshold is not None)
    of_training = evaluate(Model(), [batch], plain, state, torch.device("cpu"), Alone(), lambda: None)  # type: ignore[arg-type]
    assert not of_training.notes, "the task of the training is left as it is"
    assert threshold is None or of_training.values != found.values


class Alone:
    """One worker."""

    def gather_to_first(self, part: Any) -> list[Any]:
        return [part]

    def from_first(self, value: Any) -> Any:
        return value


def test_a_watch_tells_of_another_threshold(best: Path, tmp_path: Path) -> None:
    notes: list[str] = []

    class Observer:
        def note(self, text: str) -> None:
            notes.append(text)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    source = tmp_path / "texts.txt"
    source.write_text("a fine film\n")
    request = WatchRequest(str(source), str(tmp_path / "out"), is_once=True)
    before = (best / "raytrain.json").read_text()
    try:
        for threshold in (None, None, 0.001):
            changed(best, best, {"threshold": threshold})
            watch_source(str(best), request, Observer())  # type: ignore[arg-type]
            with source.open("a") as file:
                file.write("a bad film\n")
    finally:
        (best / "raytrain.json").write_text(before)
    assert sum("another one than before" in note for note in notes) == 1
    *_, last = (tmp_path / "out/predictions/00000.jsonl").read_text().splitlines()
    assert json.loads(last)["predicted_labels"] == LABELS


def test_a_loss_that_is_no_number_is_no_difference() -> None:
    pairs = Pairs([object(), object()])  # type: ignore[list-item]
    rows, targets = np.arange(4), [np.zeros(1, np.int32)] * 4
    losses = np.array([1.0, math.nan, 1.0, 1.0]), np.ones(4)
    pairs.add(0, rows, [Judged(targets, targets, one, np.ones(4)) for one in losses])
    (difference,) = pairs.differences(resamples=100)
    assert difference.metric == LOSS
    assert math.isnan(difference.p_value) and math.isnan(difference.low), "not 1/101, which would mean certainty"
