"""An evaluation of named data says what the evaluation of a training says of the same rows, and what it adds to it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from saved_models import model_config, save_best
from test_predictor import TAGS, TASKS
from tiny import context, make_reviews
from typer.testing import CliRunner

import raytrain
from raytrain.cli.main import app
from raytrain.data.items import EvalBatch
from raytrain.errors import ConfigError, DataError
from raytrain.inference.card import find_model, read_card
from raytrain.inference.evaluation import DataEvaluation, EvaluationRequest, evaluate_data
from raytrain.inference.evaluation_page import write_page
from raytrain.inference.formats import TunedFor
from raytrain.inference.judging import Judging, judge_rows
from raytrain.inference.predictor import Predictor
from raytrain.inference.significance import Pairs
from raytrain.inference.thresholds import GRID, ThresholdCounts, keep_threshold
from raytrain.inference.totals import MOST_SLICES, OTHER, JudgedTotals
from raytrain.storage import Storage
from raytrain.tasks.base import BatchContext
from raytrain.tasks.entities import TagScores
from raytrain.tasks.predicting import PLAIN, Judged
from raytrain.tasks.scores import CountedScores, MultiLabelScores, SingleLabelScores
from raytrain.training.evaluate import evaluate

WEIGHTS = {"negative": 0.25, "positive": 3.0}


class Alone:
    """What the workers of an evaluation agree through, for one of them."""

    def gather_to_first(self, part: Any) -> list[Any]:
        return [part]

    def from_first(self, value: Any) -> Any:
        return value


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    found = {}
    for name, (task, labels, _) in TASKS.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = save_best(model_config(folder, task, max_length=12), {"labels": labels}, folder)
    facts = Path(found["classes"]) / "raytrain.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "class_weights": WEIGHTS}))
    return found


def evaluated(model: str, data: Any, **options: Any) -> DataEvaluation:
    return evaluate_data(model, EvaluationRequest(data, **options))


@pytest.mark.parametrize("name", TASKS)
def test_the_numbers_are_those_of_the_evaluation_of_a_training(models: dict[str, str], name: str) -> None:
    """As `training.evaluate` makes them of padded batches of six, with the class weights of the training."""
    rows, card = TASKS[name][2], read_card(find_model(models[name]))
    predictor = Predictor.load(card, device="cpu")
    task: Any = predictor.task
    table = task.encode(rows, predictor.tokenizer, card.state).table
    batches = []
    for begin in range(0, len(table), 6):
        part, ids = table.slice(begin, 6), np.arange(min(6, len(table) - begin))
        about = BatchContext(card.judging_state, "test", ids, 0, ids, 0, context(6).pad_token_id)
        batches.append(EvalBatch(task.collate(part, about), False, ids))
    alone: Any = Alone()
    expected = evaluate(predictor.model, batches, task, card.state, torch.device("cpu"), alone, lambda: None)
    found = evaluated(models[name], rows)
    assert found.num_samples == len(rows) and found.num_refused == 0
    assert list(found.metrics) == list(expected.values)
    for metric, value in expected.values.items():
        assert found.metrics[metric] == pytest.approx(value, rel=1e-6 if metric == "loss" else 1e-12), metric
    assert found.tables == expected.tables and found.notes == expected.notes
    if name == "classes":
        plain = loss_without_weights(predictor, rows)
        assert abs(found.metrics["loss"] - plain) > 1e-3, "the weights make no difference, so nothing is shown"


def loss_without_weights(predictor: Predictor, rows: pa.Table) -> float:
    samples = predictor.task.encode(rows, predictor.tokenizer, predictor.card.state).table
    logits = torch.tensor(np.array(predictor.outputs(samples)))
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(samples["labels"].to_pylist())))


def test_a_task_that_judges_nothing_itself_is_asked_sample_by_sample(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = TASKS["classes"][2]
    before = evaluated(models["classes"], rows)
    from raytrain.tasks.sequence_classification import SequenceClassification

    monkeypatch.setattr(SequenceClassification, "judge", lambda *_: None)
    after = evaluated(models["classes"], rows)
    assert after.metrics == pytest.approx(before.metrics, rel=1e-6)
    assert [(one.row, one.true) for one in after.worst] == [(one.row, one.true) for one in before.worst]


def scores_with_answers(name: str) -> tuple[CountedScores, list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(1)
    if name == "one":
        ids = random.integers(0, 4, (2, 60, 1))  # the label 4 occurs nowhere
        return SingleLabelScores(list("abcde")), list(ids[0]), list(ids[1])
    if name == "several":
        on = random.integers(0, 2, (2, 60, 3))
        return MultiLabelScores(list("abc")), list(on[0]), list(on[1])
    lengths = [0, *random.integers(1, 9, 59)]
    sides = [[random.integers(0, len(TAGS), length) for length in lengths] for _ in range(2)]
    return TagScores(TAGS), sides[0], sides[1]


@pytest.mark.parametrize("name", ["one", "several", "tags"])
def test_metrics_follow_from_sums_of_the_counts_of_rows(name: str) -> None:
    scores, predictions, targets = scores_with_answers(name)
    scores.update(predictions, targets)
    counts = scores.counts_of(predictions, targets)
    assert len(counts) == 60
    together = scores.values_of(np.stack([counts.sum(0), counts[:20].sum(0)]))
    assert {name: value[0] for name, value in together.items()} == pytest.approx(scores.compute().values, rel=1e-12)
    fresh = scores_with_answers(name)[0]
    fresh.update(predictions[:20], targets[:20])
    assert {name: value[1] for name, value in together.items()} == pytest.approx(fresh.compute().values, rel=1e-12)


def test_slices_and_worst_rows(models: dict[str, str]) -> None:
    rows = [{**row, "group": f"g{number % 25:02d}" if number % 2 else None} for number, row in enumerate(REVIEWS)]
    found = evaluated(models["classes"], rows, by="group")
    assert sum(one.num_rows for one in found.slices) == len(rows) == found.num_samples
    assert len(found.slices) == MOST_SLICES + 1 and found.slices[-1].value == OTHER
    assert found.slices[0].value == "(null)" and found.slices[0].num_rows == len(rows) / 2
    assert [one.num_rows for one in found.slices[:-1]] == sorted(one.num_rows for one in found.slices[:-1])[::-1]
    alone = evaluated(models["classes"], [row for row in rows if row["group"] is None])
    assert found.slices[0].metrics == pytest.approx(alone.metrics, rel=1e-6)  # in other batches
    mean = sum(one.num_rows * one.metrics["accuracy"] for one in found.slices) / len(rows)
    assert mean == pytest.approx(found.metrics["accuracy"])
    losses = [one.loss for one in found.worst]
    assert losses == sorted(losses, reverse=True) and len(losses) == 20
    worst = found.worst[0]
    assert rows[worst.row - 1]["text"] == worst.text and rows[worst.row - 1]["label"] == worst.true
    answer = raytrain.load(models["classes"])(worst.text, probabilities=True)
    assert worst.loss == pytest.approx(-math.log(answer[f"probability_{worst.true}"]), rel=1e-3)
    assert worst.predicted == answer["predicted_label"]


REVIEWS = make_reviews(120, seed=4)


def test_rows_that_can_not_be_used_are_counted_up_to_the_limit(models: dict[str, str]) -> None:
    rows = [*REVIEWS, {"text": "a film", "label": "neutral"}, {"text": "", "label": "negative"}]
    with pytest.raises(DataError, match=r"2 of 122 rows of data can't be used, more than data\.max_quarantined 0\.01"):
        evaluated(models["classes"], rows)
    found = evaluated(models["classes"], rows, overrides=("data.max_quarantined=0.02",))
    assert (found.num_samples, found.num_refused) == (120, 2)
    assert any("label 'neutral' is none of" in line and "data, row 121" in line for line in found.reasons)
    assert found.metrics == evaluated(models["classes"], REVIEWS).metrics


@pytest.mark.parametrize(
    ("data", "options", "told"),
    [
        ([{"text": "a"}], {}, "no column 'label'"),
        (REVIEWS, {"by": "grup"}, "no column 'grup'"),
        (REVIEWS, {"threshold": 0.4}, "several labels per row"),
        (REVIEWS, {"against": "SELF"}, "given twice"),
        (REVIEWS, {"against": "tags"}, "different tasks"),
        (REVIEWS, {"predictions": "out.csv"}, "written for files"),
        (REVIEWS, {"overrides": ("data.max_length=3",)}, "can't be changed"),
        ({"a": 1}, {}, "data is of type"),
    ],
)
def test_mistakes_are_told(models: dict[str, str], data: Any, options: dict[str, Any], told: str) -> None:
    if "against" in options:
        options = {**options, "against": models["classes" if options["against"] == "SELF" else "tags"]}
    with pytest.raises(ConfigError, match=told):
        evaluated(models["classes"], data, **options)


def judged_of(is_right: np.ndarray, losses: np.ndarray) -> Judged:
    """Rows with the label 0, and the answer 0 where it is right."""
    wrong = [np.array([0 if right else 1], np.int32) for right in is_right]
    return Judged(wrong, [np.zeros(1, np.int32)] * len(wrong), losses, np.ones(len(wrong)))


def test_the_bootstrap_agrees_with_the_formula_for_a_mean() -> None:
    """The accuracy is a mean over rows, so the standard error of the difference is known."""
    random, size = np.random.default_rng(3), 900
    sides = [random.random(size) < share for share in (0.7, 0.8)]
    losses = [random.random(size), random.random(size)]
    judged = [judged_of(right, loss) for right, loss in zip(sides, losses, strict=True)]
    pairs = Pairs([SingleLabelScores(["a", "b"])] * 2)
    for begin in (450, 0):  # in another order than the rows have
        part = slice(begin, begin + 450)
        parts = [judged_of(right[part], loss[part]) for right, loss in zip(sides, losses, strict=True)]
        pairs.add(0, np.arange(begin, begin + 450), parts)
    by_name = {one.metric: one for one in pairs.differences(4000)}
    gained = sides[1].astype(float) - sides[0]
    accuracy, deviation = by_name["accuracy"], gained.std() / math.sqrt(size)
    assert accuracy.difference == pytest.approx(gained.mean())
    assert (accuracy.low, accuracy.high) == pytest.approx(
        (gained.mean() - 1.96 * deviation, gained.mean() + 1.96 * deviation), abs=0.1 * deviation
    )
    assert accuracy.p_value < 0.01
    lost = losses[1] - losses[0]
    normal = math.erfc(abs(lost.mean()) / (lost.std() / math.sqrt(size)) / math.sqrt(2))
    assert by_name["loss"].p_value == pytest.approx(normal, abs=0.02)
    again = Pairs([SingleLabelScores(["a", "b"])] * 2)
    again.add(0, np.arange(size), judged)
    assert again.differences(500) == pairs.differences(500), "the order of the pieces or the seed decides"
    same = Pairs([SingleLabelScores(["a", "b"])] * 2)
    same.add(0, np.arange(size), [judged[0], judged[0]])
    assert all((one.difference, one.low, one.high, one.p_value) == (0, 0, 0, 1) for one in same.differences(500))


def test_groups_of_rows_give_about_the_interval_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from raytrain.inference import significance

    random, size = np.random.default_rng(5), 3000
    judged = [judged_of(random.random(size) < share, random.random(size)) for share in (0.7, 0.72)]
    widths = []
    for most in (4000, 600):
        monkeypatch.setattr(significance, "MOST_GROUPS", most)
        pairs = Pairs([SingleLabelScores(["a", "b"])] * 2)
        for key in range(3):
            rows = slice(1000 * key, 1000 * (key + 1))
            parts = [
                Judged(one.predictions[rows], one.targets[rows], one.losses[rows], one.weights[rows]) for one in judged
            ]
            pairs.add(key, np.arange(1000), parts)
        one = {one.metric: one for one in pairs.differences(1000)}["macro_f1"]
        widths.append((one.difference, one.high - one.low))
    assert widths[0][0] == pytest.approx(widths[1][0])
    assert widths[0][1] == pytest.approx(widths[1][1], rel=0.15)


def test_two_models_are_compared_on_the_same_rows(models: dict[str, str], tmp_path: Path) -> None:
    """The second knows one label more, so that it can judge a row that the first can't."""
    config = model_config(tmp_path, {"kind": "sequence_classification"}, max_length=30)
    second = save_best(config, {"labels": ["negative", "neutral", "positive"]}, tmp_path)
    rows = [*REVIEWS, {"text": "a film", "label": "neutral"}]
    found = evaluated(models["classes"], rows, against=second)
    assert found.other is not None and found.other.num_samples == found.num_samples == 120 and found.num_refused == 1
    for one, model in ((found, models["classes"]), (found.other, second)):
        assert one.metrics == pytest.approx(evaluated(model, REVIEWS).metrics, rel=1e-12)
    for difference in found.differences:
        assert difference.first == pytest.approx(found.metrics[difference.metric], rel=1e-9)
        assert difference.second == pytest.approx(found.other.metrics[difference.metric], rel=1e-9)
        assert difference.low <= difference.difference <= difference.high
    page = Path(write_page(found, str(tmp_path / "page.html"))).read_text()
    assert "paired bootstrap" in page and found.worst[0].text in page and "neutral" in page


@pytest.mark.parametrize("tuned_for", TunedFor)
def test_the_threshold_is_the_best_of_all(tuned_for: TunedFor) -> None:
    random = np.random.default_rng(2)
    true = (random.random((300, 3)) < [0.5, 0.2, 0.0]).astype(np.int32)
    probabilities = np.clip(0.3 * true + random.random((300, 3)) * 0.6, 0, 1)
    counts = ThresholdCounts(["a", "b", "c"])
    counts.add_rows(probabilities[:100], true[:100])
    counts.add_rows(probabilities[100:], true[100:])
    tuned = counts.tuned(tuned_for)

    def value(thresholds: Any) -> float:
        scores = MultiLabelScores(["a", "b", "c"])
        scores.update(list((probabilities > thresholds).astype(np.int32)), list(true))
        return scores.compute().values[tuned.metric]

    chosen = tuned.threshold
    thresholds = np.array([chosen[name] for name in "abc"]) if isinstance(chosen, dict) else chosen
    assert value(thresholds) == pytest.approx(tuned.value) and value(0.5) == pytest.approx(tuned.before)
    assert tuned.value >= max(value(threshold) for threshold in GRID[::7]) > tuned.before
    if isinstance(chosen, dict):
        assert chosen["c"] == 0.5, "no row has this label, so nothing speaks for another threshold"


def test_a_kept_threshold_is_used_from_then_on(tmp_path: Path) -> None:
    task, labels, rows = TASKS["several"]
    best = save_best(model_config(tmp_path, task, max_length=12), {"labels": labels}, tmp_path)
    text = "a good film"
    each = raytrain.load(best)(text, probabilities=True)
    sure = {name: each[f"probability_{name}"] for name in labels}
    with pytest.raises(ConfigError, match=r"not the best/ of a run.*--data FILE"):
        raytrain.tune_threshold(best)
    with pytest.raises(ConfigError, match="tune_for 'f1'"):
        raytrain.tune_threshold(best, tune_for="f1")
    tuned = raytrain.tune_threshold(best, data=rows, tune_for="labels")
    facts = json.loads((Path(best) / "raytrain.json").read_text())
    assert facts["version"] == 2 and facts["threshold"] == tuned.threshold and isinstance(tuned.threshold, dict)
    expected = [name for name in labels if sure[name] > tuned.threshold[name]]
    assert raytrain.load(best)(text)["predicted_labels"] == expected
    assert raytrain.load(best)(text, threshold=0.5)["predicted_labels"] == [n for n in labels if sure[n] > 0.5]
    found = evaluated(best, rows)
    assert found.metrics["macro_f1"] == pytest.approx(tuned.value) and tuned.value > tuned.before
    assert evaluated(best, rows, threshold=0.5).metrics["macro_f1"] == pytest.approx(tuned.before)
    assert facts["threshold_chosen"]["rows_of"] == "data"


def test_one_label_per_row_has_no_threshold_to_choose(models: dict[str, str]) -> None:
    for name in ("classes", "tags"):
        with pytest.raises(ConfigError, match="no threshold to choose"):
            raytrain.tune_threshold(models[name], data=TASKS[name][2])


def test_pieces_in_any_order_give_the_same_numbers(models: dict[str, str]) -> None:
    from raytrain.data.readers.base import ROW

    predictor = Predictor.load(read_card(find_model(models["classes"])), device="cpu")
    table = pa.Table.from_pylist([{**row, ROW: number} for number, row in enumerate(REVIEWS, 1)])
    parts = [judge_rows([predictor], table.slice(i, 30), Judging(by="label"), PLAIN).table for i in range(0, 120, 30)]
    told = []
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        totals = JudgedTotals([(predictor.task, predictor.card.judging_state)], is_sliced=True)
        for number in order:
            totals.add("file", 0, parts[number])
        assert totals.slices is not None
        told.append((totals.totals[0].metrics(), totals.worst.found(), totals.slices.found()))
    assert told[0] == told[1]


def test_an_older_card_is_not_changed_but_by_a_threshold(tmp_path: Path) -> None:
    task, labels, _ = TASKS["several"]
    best = save_best(model_config(tmp_path, task), {"labels": labels}, tmp_path)
    before = json.loads((Path(best) / "raytrain.json").read_text())
    assert before["version"] == 1 and "threshold" not in before
    counts = ThresholdCounts(labels)
    counts.add_rows(np.full((4, 3), 0.7), np.ones((4, 3), np.int32))
    keep_threshold(Storage(best), counts.tuned(TunedFor.MICRO_F1), "validation")
    after = json.loads((Path(best) / "raytrain.json").read_text())
    assert {name: after[name] for name in before if name != "version"} == {
        n: before[n] for n in before if n != "version"
    }
    assert raytrain.load(best).labels == labels


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("a --by source", "--by needs --data FILE"),
        ("a b", "'b' is not KEY=VALUE; to compare two models, name the rows with --data FILE"),
        ("a b c --data x.csv", "two models at most"),
        ("a --data x.csv --split test", "--split is for the data of the run"),
        ("a --tune-threshold --split test", "the test split is for measuring"),
        ("a b --data x.csv --tune-threshold", "--tune-threshold excludes a second model"),
    ],
)
def test_options_that_exclude_each_other_are_refused(words: str, told: str) -> None:
    found = CliRunner().invoke(app, ["eval", *words.split()])
    assert isinstance(found.exception, ConfigError) and told in str(found.exception)
