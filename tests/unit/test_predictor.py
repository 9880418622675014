"""A trained model's answers are those of its evaluation: same inputs, same numbers, whatever rows are batched."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from saved_models import model_config, save_best
from tiny import context, make_reviews, make_sentences

import raytrain
from raytrain.errors import CheckpointError, ConfigError, DataError
from raytrain.inference import predictor as predictor_module
from raytrain.inference.card import find_model, read_card
from raytrain.inference.pool import Backlog
from raytrain.inference.predictor import Predictor, batches_by_size
from raytrain.storage import Storage
from raytrain.training.evaluate import to_tensors

TAGS = ["O", "B-LOC", "B-PER", "I-PER"]
REVIEWS = pa.Table.from_pylist([{**row, "labels": [row["label"]]} for row in make_reviews(41, seed=0)])
SENTENCES = pa.Table.from_pylist(
    [
        {"tokens": [word for word, _ in words], "tags": [tag for _, tag in words], "document": number // 7}
        for number, words in enumerate(make_sentences(41, seed=0))
    ]
)
TASKS: dict[str, tuple[dict[str, Any], list[str], pa.Table]] = {
    "classes": ({"kind": "sequence_classification"}, ["negative", "positive"], REVIEWS),
    "several": (
        {"kind": "sequence_classification", "multi_label": True, "label_column": "labels"},
        ["positive", "other", "negative"],
        REVIEWS,
    ),
    "tags": ({"kind": "token_classification"}, TAGS, SENTENCES),
    "documents": ({"kind": "token_classification", "document_context": True, "case_feature": True}, TAGS, SENTENCES),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name in TASKS -> a best/ folder; `max_length` 12 cuts some rows."""
    torch.set_num_threads(1)  # more would wait for each other: the models are tiny
    found = {}
    for name, (task, labels, _) in TASKS.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = save_best(model_config(folder, task, max_length=12), {"labels": labels}, folder)
    return found


def load(folder: str, *overrides: str) -> Predictor:
    return Predictor.load(read_card(find_model(folder)), overrides, "cpu")


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_those_of_the_evaluation(
    models: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `evaluate` makes them: encoded with targets, in the order of the rows, six in a batch."""
    rows, found = TASKS[name][2], load(models[name])
    task: Any = found.task
    encoded = task.encode(rows, found.tokenizer, found.card.state)
    expected, logits = [], []
    for begin in range(0, len(encoded.table), 6):
        batch = task.collate(encoded.table.slice(begin, 6), context(6))
        tensors = to_tensors(batch, next(found.model.parameters()).device)
        with torch.no_grad():
            expected += task.predict(found.model, tensors)[1]
            out = task._loss_and_logits(found.model, tensors)[1].numpy()
        is_tagged = "sentence_lengths" in batch
        logits += [row[of >= 0] if is_tagged else row for row, of in zip(out, batch["labels"], strict=True)]
    samples = task.encode_inputs(rows, found.tokenizer).table
    for most in (10_000, 60):
        monkeypatch.setattr(predictor_module, "TOKENS_PER_BATCH", most)
        for ours, theirs in zip(found.outputs(samples), logits, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        told = found.predict_rows(rows).table
        labels = found.card.state["labels"]
        if name == "classes":
            ids = [[labels.index(label)] for label in told["predicted_label"].to_pylist()]
        elif name == "several":
            ids = [[label in on for label in labels] for on in told["predicted_labels"].to_pylist()]
        else:
            ids = [
                [labels.index(tag) for tag in tags if tag is not None] for tags in told["predicted_tags"].to_pylist()
            ]
        assert ids == [one.tolist() for one in expected]
        assert len({str(one) for one in ids}) > 1, "a model that says the same of all rows shows nothing"


def test_what_is_cut_has_no_tag(models: dict[str, str]) -> None:
    words = ["Ada"] * 30
    (tags,) = load(models["tags"]).predict_rows(pa.table({"tokens": [words]})).table["predicted_tags"].to_pylist()
    assert len(tags) == 30 and tags[:10].count(None) == 0 and set(tags[10:]) == {None}


def test_entities_have_their_characters_in_the_text(models: dict[str, str]) -> None:
    text = "  The film of Ada,\nin Oslo (not Paris). "
    found = raytrain.load(models["tags"])
    by_text, by_words = (
        found([text]),
        found([["The", "film", "of", "Ada", ",", "in", "Oslo", "(", "not", "Paris", ")", "."]]),
    )
    assert by_text[0]["predicted_tags"] == by_words[0]["predicted_tags"]
    assert by_text[0]["predicted_entities"], "this model finds none, so nothing is shown"
    for one in by_text[0]["predicted_entities"]:
        assert text[one["start"] : one["end"]] == one["text"] and one["text"].strip() == one["text"]
    joined = "The film of Ada , in Oslo ( not Paris ) ."
    for one in by_words[0]["predicted_entities"]:
        assert joined[one["start"] : one["end"]] == one["text"]


def test_the_rules_of_the_training_are_applied_and_not_those_of_today(tmp_path: Path) -> None:
    clean = {"placeholders": ["url"], "white_space": True, "min_words": 5}
    task = {"kind": "sequence_classification"}
    best = save_best(model_config(tmp_path, task, clean=clean), {"labels": ["a", "b"]}, tmp_path)
    plain = save_best(model_config(tmp_path, task), {"labels": ["a", "b"]}, tmp_path / "plain")
    raw, cleaned = "a  good http://x.org/y film", "a good <url> film"  # of four words, which only training rows need
    assert raytrain.load(best)(raw) == raytrain.load(plain)(cleaned) != raytrain.load(plain)(raw)


def test_probabilities_and_thresholds(models: dict[str, str]) -> None:
    one, several = raytrain.load(models["classes"]), raytrain.load(models["several"])
    told = one("a good film", probabilities=True)
    assert told["probability"] == max(told["probability_negative"], told["probability_positive"])
    assert abs(told["probability_negative"] + told["probability_positive"] - 1) < 1e-5
    told = several("a good film", probabilities=True)
    values = {name: told[f"probability_{name}"] for name in several.labels}
    for threshold in (0.01, *(value + 1e-4 for value in values.values()), 0.99):
        found = several("a good film", threshold=threshold)["predicted_labels"]
        assert found == [name for name, value in values.items() if value > threshold]


def test_what_comes_in_decides_what_comes_out(models: dict[str, str]) -> None:
    import pandas as pd

    found = raytrain.load(models["classes"])
    texts = ["a good film", "a dull plot"]
    labels = [row["predicted_label"] for row in found(texts)]
    frame = pd.DataFrame({"text": texts, "n": [1, 2]}, index=[7, 3])
    given = found.predict(frame)
    assert given["predicted_label"].tolist() == labels and given["n"].tolist() == [1, 2] and list(given.index) == [7, 3]
    table = found.predict(pa.table({"text": texts}), embeddings=True)
    assert table.column_names == ["text", "embedding"] and len(table["embedding"][0]) == 16
    assert [row["predicted_label"] for row in raytrain.predict(found, [{"text": text} for text in texts])] == labels
    assert found(texts[0]) == found(texts)[0] and found([]) == []


def test_an_embedding_is_the_mean_over_the_tokens(models: dict[str, str]) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(models["classes"]), AutoTokenizer.from_pretrained(models["classes"])
    texts = ["a good film", "the plot is dull and the music is very bad"]
    found = raytrain.load(models["classes"])(texts, embeddings=True)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row["embedding"], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"txt": "a"}], r"no column 'text'.*it has 'txt'"),
        ("a text", "list of texts"),
        (pa.table({"text": ["a"], "predicted_label": ["b"]}), "'predicted_label' already"),
    ],
)
def test_data_that_can_not_be_used_is_refused(models: dict[str, str], data: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        raytrain.predict(models["classes"], data)


def test_no_row_is_left_out(models: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"data\[1\]: text is empty \(2 rows of 4"):
        raytrain.predict(models["classes"], ["a", "", "b", None])


def test_models_that_can_not_be_used_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    import shutil

    best = tmp_path / "best"
    shutil.copytree(models["classes"], best)
    facts = json.loads((best / "raytrain.json").read_text())
    (best / "raytrain.json").write_text(json.dumps({**facts, "version": 3}))
    with pytest.raises(ConfigError, match=r"has version 3, .*up to version 2"):
        raytrain.load(best)
    (best / "raytrain.json").write_text(json.dumps({**facts, "version": 1})[:-9])
    with pytest.raises(ConfigError, match="is damaged"):
        raytrain.load(best)
    (best / "raytrain.json").write_text(json.dumps(facts))
    (best / "config.json").write_text((best / "config.json").read_text() + " ")
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        raytrain.load(best)
    (best / "raytrain.json").unlink()
    with pytest.raises(ConfigError, match="without the raytrain.json"):
        raytrain.load(best)
    with pytest.raises(ConfigError, match="no such folder"):
        raytrain.load(tmp_path / "other")
    with pytest.raises(ConfigError, match="the model was trained with it"):
        read_card(Storage(models["classes"])).config(["data.max_length=99"])


def test_the_model_of_a_run_a_sweep_and_a_name(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "best").symlink_to(models["classes"])
    for given in ("mine", "runs/mine", "runs/mine/best"):
        assert read_card(find_model(given)).name == "answers"
    with pytest.raises(ConfigError, match=r"no such folder.*did you mean|no such folder"):
        find_model("min")


@pytest.mark.parametrize("num_samples", [1, 16, 64, 1000])
def test_batches_have_each_sample_once_and_little_padding(num_samples: int) -> None:
    """Also the few of a request, which a batch of all would have padded by half."""
    sizes = np.random.default_rng(0).integers(1, 512, num_samples)
    batches = list(batches_by_size(sizes, 4096, 32))
    assert sorted(np.concatenate(batches)) == list(range(num_samples))
    tokens = [len(places) * sizes[places].max() for places in batches]
    assert max(tokens) <= 4096 and sum(tokens) < 1.03 * sizes.sum()


def test_a_batch_has_at_most_the_padding_that_a_further_batch_costs() -> None:
    sizes = np.array([100, 100, 90, 85, 80, 0])
    assert [list(places) for places in batches_by_size(sizes, 4096, 32)] == [[0, 1, 2, 3], [4], [5]]
    assert [list(places) for places in batches_by_size(sizes, 250, 10_000)] == [[0, 1], [2, 3], [4, 5]]
    assert len(list(batches_by_size(sizes, 4096, 10_000))) == 1


@pytest.mark.parametrize("seed", range(20))
def test_each_piece_is_handed_out_once(seed: int) -> None:
    """Whatever the number of workers, the pieces that are there already, and the answers' order."""
    rng = random.Random(seed)
    counts = [rng.randint(0, 5) for _ in range(rng.randint(1, 6))]
    done = {task: {piece for piece in range(count) if rng.random() < 0.4} for task, count in enumerate(counts)}
    ends = {task: count for task, count in enumerate(counts) if rng.random() < 0.3}
    backlog, given, waiting = Backlog(len(counts), done, ends), [], [(worker, -1) for worker in range(3)]
    while waiting:
        worker, task = waiting.pop(rng.randrange(len(waiting)))
        if (following := backlog.take(task)) is None:
            continue
        if following[1] >= counts[following[0]]:
            backlog.ended(*following)
        elif rng.random() < 0.1:  # its worker has died
            backlog.put_back(*following)
        else:
            given.append(following)
        waiting.append((worker, following[0]))
    missing = {(task, piece) for task, count in enumerate(counts) for piece in range(count)}
    missing -= {(task, piece) for task, pieces in done.items() for piece in pieces}
    assert sorted(given) == sorted(missing)


def test_a_model_says_what_it_is(models: dict[str, str]) -> None:
    folder = models["classes"]
    said = repr(raytrain.load(folder, device="cpu"))
    assert folder in said and "classification, labels: '" in said and said.endswith("on cpu>")


def test_a_threshold_is_a_probability(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        raytrain.load(models["several"])("a film", threshold=1.5)
    with pytest.raises(ConfigError, match="several labels per row"):
        raytrain.load(models["classes"])("a film", threshold=0.4)
