"""Regression: targets of any scale, exact metrics in constant memory, and predictions in the units of the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from saved_models import model_config, save_best
from scipy.stats import pearsonr
from tiny import TINY_BERT, context, make_reviews, tiny_tokenizer

import raytrain
from raytrain.config import ModelConfig, RegressionConfig, TrainingConfig
from raytrain.errors import DataError
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks import make_task
from raytrain.training.evaluate import to_tensors

RNG = np.random.default_rng(0)
PRICE, STARS = 1e6 + 30 * RNG.normal(size=40), RNG.integers(1, 6, 40)
ROWS = pa.table({"text": [row["text"] for row in make_reviews(40, 0)], "price": PRICE, "stars": STARS})
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    folder = tiny_tokenizer(tmp_path_factory.mktemp("words"))
    return load_tokenizer(ModelConfig(config=TINY_BERT, tokenizer=folder))


def task_of(*columns: str) -> Any:
    return make_task(RegressionConfig(kind="regression", target_columns=list(columns or ("price", "stars"))), 24)


def state_of(task: Any) -> dict[str, Any]:
    return task.state_from([task.survey(ROWS.slice(i, 7), "train") for i in range(0, 40, 7)])


def test_the_scale_is_that_of_the_training_data_alone() -> None:
    task = task_of()
    state = task.state_from(
        [task.survey(ROWS.slice(0, 25), "train"), task.survey(ROWS, "validation"), task.survey(ROWS.slice(25), "train")]
    )
    assert state["mean"] == pytest.approx([PRICE.mean(), STARS.mean()], rel=1e-12)
    assert state["deviation"] == pytest.approx([PRICE.std(), STARS.std()], rel=1e-9)


def test_loss_blank_and_scores(tokenizer: Any) -> None:
    task = task_of()
    state = state_of(task)
    table = task.encode(ROWS, tokenizer, state).table
    torch.manual_seed(0)
    model = ModelConfig(config={**TINY_BERT, "initializer_range": 0.3}, tokenizer="unused")
    built = task.build_model(model, state, TrainingConfig(dropout=0.0)).eval()
    batch = task.collate(table, context(40))
    with torch.no_grad():
        tensors = to_tensors(batch, CPU)
        outputs = built(**{name: tensors[name] for name in ("input_ids", "attention_mask")}).logits.double().numpy()
        loss, predictions = task.predict(built, tensors)
    true = np.stack([(PRICE - PRICE.mean()) / PRICE.std(), (STARS - STARS.mean()) / STARS.std()], 1)
    assert float(loss) == pytest.approx(((outputs - true) ** 2).mean(1).sum(), rel=1e-4)
    assert task.target_weight(batch) == 40.0
    blank = task.blank(batch)
    assert task.target_weight(blank) == 0.0
    assert task.loss_sum(built, to_tensors(blank, CPU)).item() == 0.0
    assert task.targets(blank) == []

    whole, merged = task.scores(state), task.scores(state)
    whole.update(predictions, task.targets(batch))
    for begin in (20, 0):
        part = task.scores(state)
        part.update(predictions[begin : begin + 20], task.targets(batch)[begin : begin + 20])
        merged.merge(part.state())
    found = whole.compute()
    assert found.values == merged.compute().values, "the order may not matter"
    units = np.array([PRICE.std(), STARS.std()])
    errors = (outputs - true) * units
    assert found.values["mae"] == pytest.approx(abs(errors).mean(), rel=1e-4)
    assert found.values["mse"] == pytest.approx((errors**2).mean(), rel=1e-4)
    assert found.values["r2"] == pytest.approx((1 - ((outputs - true) ** 2).mean(0) / true.var(0)).mean(), rel=1e-3)
    wanted = [pearsonr(outputs[:, i], true[:, i]).statistic for i in range(2)]
    assert found.values["pearson"] == pytest.approx(np.mean(wanted), abs=1e-5)
    assert [row[0] for row in found.tables["per_target"]["rows"]] == ["price", "stars"]
    assert task.scores(state).compute().values == {}


def test_rows_without_a_number_are_named() -> None:
    values = ["3.5", "", None, "good", "nan", "inf", "1e3"]
    rows = pa.table({"text": ["a"] * 7, "stars": values})
    found = task_of("stars").check_targets(rows, {})
    assert [(one.row, one.reason) for one in found] == [
        (1, "stars is empty"),
        (2, "stars is empty"),
        (3, "stars is 'good' and not a number"),
        (4, "stars is nan and not a finite number"),
        (5, "stars is inf and not a finite number"),
    ]
    rows = pa.table({"text": ["a"] * 2, "stars": [True, False]})
    assert "which is a boolean and not a number" in task_of("stars").check_targets(rows, {})[0].reason


def test_a_target_that_never_varies_is_refused() -> None:
    rows = pa.table({"text": ["a"] * 3, "stars": [4.0] * 3})
    task = task_of("stars")
    with pytest.raises(DataError, match="all of its 3 training values are 4, so there is nothing to learn"):
        task.state_from([task.survey(rows, "train")])


@pytest.mark.parametrize("values", [[1e308, 1e308, 1.0], [1e200, -1e200, 1.0]])
def test_targets_that_are_too_large_for_a_scale_are_refused(values: list[float]) -> None:
    rows = pa.table({"text": ["a"] * 3, "stars": values})
    task = task_of("stars")
    with pytest.raises(DataError, match="target_columns stars: its training values are so large"):
        task.state_from([task.survey(rows, "train")])


def test_predictions_are_in_the_units_of_the_data(tmp_path: Path) -> None:
    config = model_config(tmp_path, {"kind": "regression", "target_columns": ["price", "stars"]})
    state = state_of(task_of())
    loaded = raytrain.load(save_best(config, state, tmp_path), device="cpu")
    found = loaded.predict(ROWS["text"].to_pylist())
    assert list(found[0]) == ["predicted_price", "predicted_stars"]
    prices = np.array([row["predicted_price"] for row in found])
    assert prices.std() > 0
    assert abs(prices - PRICE.mean()).max() < 20 * PRICE.std()
    assert loaded(ROWS["text"][3].as_py()) == pytest.approx(found[3], rel=1e-6)
