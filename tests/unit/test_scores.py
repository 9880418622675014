"""Scores as counts: scikit-learn's and seqeval's numbers, whatever batches and workers samples come in. No Ray."""

import tracemalloc
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from sklearn import metrics as sk

from raytrain.tasks.base import Metrics, Scores
from raytrain.tasks.entities import EntityCounts, TagScores, has_entities
from raytrain.tasks.scores import DENSE_LABELS, MOST_PAIRS, SHOWN_PAIRS, MultiLabelScores, SingleLabelScores

TAGS = ["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B", "I-a-b", "NOUN"]
LABELS = ["a", "b", "c", "d"]
FEW = settings(max_examples=60, deadline=None)


def on_workers(make: Any, predicted: Sequence[Any], true: Sequence[Any], num_workers: int) -> Metrics:
    """The samples dealt to workers, which take batches of two."""
    workers: list[Scores] = [make() for _ in range(num_workers)]
    for start in range(0, len(true), 2):
        batch = slice(start, start + 2)
        arrays = ([np.array(values, np.int32) for values in side[batch]] for side in (predicted, true))
        workers[start // 2 % num_workers].update(*arrays)
    for worker in workers[1:]:
        workers[0].merge(worker.state())
    return workers[0].compute()


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@FEW
@given(pairs, st.integers(1, 3))
def test_one_label(samples: list[tuple[int, int]], num_workers: int) -> None:
    predicted, true = zip(*samples, strict=True)
    one = [[p] for p in predicted], [[t] for t in true]
    found = on_workers(lambda: SingleLabelScores(LABELS), *one, num_workers)
    options: dict[str, Any] = {"zero_division": 0}
    assert found.values == pytest.approx(
        {
            "accuracy": sk.accuracy_score(true, predicted),
            "macro_f1": sk.f1_score(true, predicted, average="macro", **options),
            "weighted_f1": sk.f1_score(true, predicted, average="weighted", **options),
        }
    )
    wanted = sk.precision_recall_fscore_support(true, predicted, labels=range(4), **options)
    assert np.allclose([row[1:] for row in found.tables["per_class"]["rows"]], np.transpose(wanted))
    assert found.tables["confusion"]["counts"] == sk.confusion_matrix(true, predicted, labels=range(4)).tolist()


MANY = [f"label{i}" for i in range(DENSE_LABELS + 50)]


@FEW
@given(
    st.lists(st.tuples(st.integers(0, len(MANY) - 1), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(1, 3),
)
def test_many_labels(samples: list[tuple[int, int]], num_workers: int) -> None:
    """Their metrics are the same; instead of a matrix there are the pairs that are confused."""
    predicted, true = ([p for p, _ in samples], [t for _, t in samples])
    found = on_workers(lambda: SingleLabelScores(MANY), [[p] for p in predicted], [[t] for t in true], num_workers)
    assert found.values == pytest.approx(
        {
            "accuracy": sk.accuracy_score(true, predicted),
            "macro_f1": sk.f1_score(true, predicted, average="macro", zero_division=0),
            "weighted_f1": sk.f1_score(true, predicted, average="weighted", zero_division=0),
        }
    )
    pairs = Counter((t, p) for p, t in samples if p != t)
    rows = found.tables["most_confused"]["rows"]
    assert "confusion" not in found.tables and len(rows) == min(len(pairs), SHOWN_PAIRS)
    assert [row[2] for row in rows] == sorted(pairs.values(), reverse=True)[: len(rows)]
    for true_name, predicted_name, count, share in rows:
        pair = MANY.index(true_name), MANY.index(predicted_name)
        assert (count, share) == (pairs[pair], pytest.approx(pairs[pair] / true.count(pair[0])))


def test_many_labels_need_little_memory() -> None:
    """A matrix of 50,000 labels would have 20 GB."""
    labels = [f"label{i}" for i in range(50_000)]
    rng, scores = np.random.default_rng(0), SingleLabelScores(labels)
    tracemalloc.start()
    for _ in range(30):  # 600,000 pairs, hardly one of them twice, and one that is frequent
        true, predicted = rng.integers(0, len(labels), (2, 20_000), dtype=np.int32)
        true[:100], predicted[:100] = 7, 8
        scores.update([predicted], [true])
    assert sum(array.nbytes for array in scores.state().values()) <= 16 * MOST_PAIRS + 24 * len(labels)
    row = scores.compute().tables["most_confused"]["rows"][0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row[:3] == ["label7", "label8", 3000] and peak < 100 << 20


flags = st.lists(st.integers(0, 1), min_size=3, max_size=3)


@FEW
@given(st.lists(st.tuples(flags, flags), min_size=1, max_size=20), st.integers(1, 3))
def test_several_labels(samples: list[tuple[list[int], list[int]]], num_workers: int) -> None:
    predicted, true = (np.array(side) for side in zip(*samples, strict=True))
    found = on_workers(lambda: MultiLabelScores(LABELS[:3]), predicted, true, num_workers)
    scores = {
        f"{average}_f1": sk.f1_score(true, predicted, average=average, zero_division=0)
        for average in ("micro", "macro", "weighted")
    }
    assert found.values == pytest.approx({"subset_accuracy": sk.accuracy_score(true, predicted), **scores})


sentences = st.lists(
    st.lists(st.tuples(st.integers(0, len(TAGS) - 1), st.integers(0, len(TAGS) - 1)), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


@FEW
@given(sentences, st.integers(1, 3))
def test_tags(samples: list[list[tuple[int, int]]], num_workers: int) -> None:
    predicted = [[p for p, _ in words] for words in samples]
    true = [[t for _, t in words] for words in samples]
    found = on_workers(lambda: TagScores(TAGS), predicted, true, num_workers)
    flat = [tag for words in true for tag in words], [tag for words in predicted for tag in words]
    assert found.values["token_micro_f1"] == pytest.approx(sk.accuracy_score(*flat))
    assert found.values["token_macro_f1"] == pytest.approx(sk.f1_score(*flat, average="macro", zero_division=0))
    named = [[[TAGS[i] for i in words] for words in side] for side in (true, predicted)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(*named, output_dict=True, zero_division=0)
    overall = report.get("micro avg", {"precision": 0.0, "recall": 0.0, "f1-score": 0.0})
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert found.values[f"entity_{name}"] == pytest.approx(overall[key])
    wanted = {
        kind: [row["precision"], row["recall"], row["f1-score"], row["support"]]
        for kind, row in report.items()
        if kind not in ("micro avg", "macro avg", "weighted avg")
    }
    rows = {row[0]: row[1:] for row in found.tables["entities"]["rows"]}
    assert rows.keys() == wanted.keys() and all(np.allclose(rows[kind], wanted[kind]) for kind in rows)


def test_what_is_sent_does_not_grow_with_the_split() -> None:
    """Rank 0 once held every prediction of a split, and all workers' at that."""
    for scores in (SingleLabelScores(LABELS), MultiLabelScores(LABELS), TagScores(TAGS)):
        size = sum(array.nbytes for array in scores.state().values())
        for _ in range(50):
            scores.update([np.zeros(4, np.int32)] * 9, [np.zeros(4, np.int32)] * 9)
        assert sum(array.nbytes for array in scores.state().values()) == size


@pytest.mark.parametrize(
    ("predicted", "true", "note"),
    [
        ([0, 0, 0], [1, 2, 0], "nothing but O is predicted"),
        ([0, 0, 3], [1, 2, 0], "none of the 1 predicted entities is right"),
        ([0, 3, 0], [0, 0, 0], "this split has no entity"),
        ([1, 2, 3], [1, 2, 0], None),
    ],
)
def test_why_entity_scores_are_all_zero(predicted: list[int], true: list[int], note: str | None) -> None:
    found = on_workers(lambda: TagScores(TAGS), [predicted, [0]], [true, [0]], 2)
    assert (found.values["entity_f1"] == 0) == (note is not None)
    assert found.notes == (() if note is None else (f"all entity scores are 0: {note}",))


def test_a_sentence_without_entities_counts_none() -> None:
    counts = EntityCounts(["O", "B-A"])
    counts.add([np.array([0, 0])], [np.array([0, 0])])
    assert not counts.counts.any()


# An entity of three words, one of one word, and one of two words right after another of its type, in each scheme.
SCHEMES = {
    "IOB2": "B-A I-A I-A O B-B O B-A I-A B-A I-A",
    "IOB1": "I-A I-A I-A O I-B O I-A I-A B-A I-A",
    "IOE2": "I-A I-A E-A O E-B O I-A E-A I-A E-A",
    "IOBES": "B-A I-A E-A O S-B O B-A E-A B-A E-A",
    "BILOU": "B-A I-A L-A O U-B O B-A L-A B-A L-A",
    "BMEWO": "B-A M-A E-A O W-B O B-A E-A B-A E-A",
    "suffix": "A-B A-I A-I O B-B O A-B A-I A-B A-I",
    "underscore": "B_A I_A I_A O B_B O B_A I_A B_A I_A",
    "suffix, underscore, BILOU": "A_B A_I A_L O B_U O A_B A_L A_B A_L",
}


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_every_scheme_counts_the_same_entities(scheme: str) -> None:
    true = SCHEMES[scheme].split()
    tags = sorted({*true})
    assert has_entities(tags)
    counts = EntityCounts(tags)
    cut = [*true]
    cut[2] = "O"  # the first entity ends too early, and is wrong
    counts.add([np.array([tags.index(tag) for tag in cut])], [np.array([tags.index(tag) for tag in true])])
    rows = {row[0]: row[1:] for row in counts.compute().tables["entities"]["rows"]}
    assert rows == {"A": [pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), 3], "B": [1, 1, 1, 1]}


@pytest.mark.parametrize("tags", ["NN NNS VB", "O X", "O PER LOC", "B O", "A-B A-C O"])
def test_tags_without_entities(tags: str) -> None:
    assert not has_entities(tags.split())
