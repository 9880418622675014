"""The order of lists: what scikit-learn says of each, at any number of workers and in bounded memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import ndcg_score
from tiny import TINY_BERT, context, make_reviews, tiny_tokenizer

from raytrain.config import ModelConfig, RegressionConfig
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks import make_task
from raytrain.tasks.ranking import NDCG, RankedLists, list_number

RNG = np.random.default_rng(3)
LISTS = RNG.integers(0, 40, 900)
PREDICTED = RNG.normal(size=900).round(1)  # some are equal
TRUE = RNG.integers(0, 4, 900).astype(float)
TRUE[LISTS == 7] = 0  # nothing to find


def of(places: Any, most_rows: int = 10_000) -> RankedLists:
    lists = RankedLists(most_rows)
    numbers = np.array([list_number(f"reader {one}") for one in LISTS[places]])
    lists.add(numbers, PREDICTED[places], TRUE[places])
    return lists


def test_it_is_that_of_scikit_learn() -> None:
    each = [
        ndcg_score([TRUE[one == LISTS]], [PREDICTED[one == LISTS]], k=10)
        for one in range(40)
        if one != 7 and (one == LISTS).sum() > 1
    ]
    assert of(np.arange(900)).ndcg() == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("most_rows", [10_000, 300])
def test_workers_and_order_change_nothing(most_rows: int) -> None:
    at_once = of(np.arange(900), most_rows)
    first, *others = [of(part, most_rows) for part in np.array_split(RNG.permutation(900), 3)]
    for other in others:
        first.merge(other.state())
    assert first.ndcg() == pytest.approx(at_once.ndcg(), abs=1e-12)
    assert first.num_rows == at_once.num_rows <= most_rows
    assert at_once.is_whole is (most_rows > 900)
    whole = {number: (one == LISTS).sum() for one in range(40) for number in [list_number(f"reader {one}")]}
    kept, counts = np.unique(at_once.state()["lists"], return_counts=True)
    assert {int(a): int(b) for a, b in zip(kept, counts, strict=True)} == {int(a): whole[int(a)] for a in kept}


def test_a_regression_with_lists(tmp_path: Path) -> None:
    texts = [row["text"] for row in make_reviews(12, 0)]
    rows = pa.table({"text": texts, "target": np.arange(12.0), "reader": ["a", "b", None] * 4})
    task = make_task(RegressionConfig(kind="regression", ranking_column="reader"), 24)
    tokenizer = load_tokenizer(ModelConfig(config=TINY_BERT, tokenizer=tiny_tokenizer(tmp_path)))
    state = task.state_from([task.survey(rows, "train")])
    encoded = task.encode(rows, tokenizer, state)
    assert [one.row for one in encoded.rejected] == [2, 5, 8, 11] and "reader is empty" in encoded.rejected[0].reason
    targets = task.targets(task.collate(encoded.table, context(8)))
    right, wrong = task.scores(state), task.scores(state)
    right.update([one[:1] for one in targets], targets)
    wrong.update([-one[:1] for one in targets], targets)
    assert right.compute().values[NDCG] == 1.0 > wrong.compute().values[NDCG]
    assert right.compute().values["mse"] == pytest.approx(0, abs=1e-9)
    assert task.metrics[NDCG] == "max"
