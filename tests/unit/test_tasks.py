"""What tasks make of rows, batches and predictions. No Ray, no torch."""

import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from seqeval.metrics import f1_score as seqeval_f1
from sklearn import metrics as sk

from raytrain.config import SequenceClassificationConfig, TokenClassificationConfig
from raytrain.errors import ConfigError
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED, Metrics, RowError
from raytrain.tasks.collate import attention_mask, pad_column
from raytrain.tasks.special_tokens import special_tokens
from raytrain.tasks.token_classification import letter_case
from tests.tiny import VOCABULARY, context, tiny_tokenizer

ID = {word: i for i, word in enumerate(VOCABULARY)}
PAD, UNK, CLS, SEP = (ID[f"[{name}]"] for name in ("PAD", "UNK", "CLS", "SEP"))
TAGS = ["O", "B-LOC", "B-PER", "I-PER"]
DROPPED = "\u200b"  # a word that the tokenizers here make nothing of


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The word tokenizer of all tests."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def pieces() -> Any:
    """A lower-casing WordPiece tokenizer as BERT's: with pieces, segments of a pair, and words that it drops."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    parts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##s", "ada", "in", "oslo", "##-", "un"]
    vocabulary = {part: i for i, part in enumerate(parts)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special)


def sequence(max_length: int = 32, **options: Any) -> Any:
    return make_task(SequenceClassificationConfig(kind="sequence_classification", **options), max_length)


def tagging(max_length: int = 32, **options: Any) -> Any:
    return make_task(TokenClassificationConfig(kind="token_classification", **options), max_length)


def encode(task: Any, rows: list[dict[str, Any]], tokenizer: Any, labels: list[str]) -> Any:
    return task.encode(pa.Table.from_pylist(rows), tokenizer, {"labels": labels})


def collate(task: Any, table: pa.Table, pad: int = 0) -> dict[str, np.ndarray]:
    return task.collate(table, context(len(table), pad_token_id=pad))


def metrics(task: Any, predictions: list[np.ndarray], targets: list[np.ndarray], labels: list[str]) -> Metrics:
    """As two workers, of which the second has what follows the first sample."""
    workers = [task.scores({"labels": labels}) for _ in range(2)]
    for worker, part in zip(workers, (slice(0, 1), slice(1, None)), strict=True):
        worker.update(predictions[part], targets[part])
    workers[0].merge(workers[1].state())
    return workers[0].compute()


def labels_from(task: Any, table: pa.Table) -> list[str]:
    """The labels of a table, in the order of their ids; texts that it lacks are added."""
    for name in set(task.input_columns()) - set(table.column_names):
        values = [["good"]] * len(table) if name == "tokens" else ["good"] * len(table)
        table = table.append_column(name, pa.array(values))
    return task.state_from([task.survey(table, "train")])["labels"]


def reasons(encoded: Any) -> list[tuple[int, str]]:
    return [(rejection.row, rejection.reason) for rejection in encoded.rejected]


def entity_scores(predicted: list[list[str]], true: list[list[str]]) -> Metrics:
    """Of tags by name."""
    names = sorted({tag for tags in (*predicted, *true) for tag in tags})
    ids = [[np.array([names.index(tag) for tag in tags]) for tags in sentences] for sentences in (predicted, true)]
    return metrics(tagging(), *ids, names)


def ids(*texts: str) -> list[int]:
    """[CLS] text [SEP], and more texts, by the vocabulary."""
    return [CLS, *(i for text in texts for i in (*(ID[word] for word in text.split()), SEP))]


class TestSequenceEncode:
    def test_single(self, words):
        rows = [{"text": "Good film", "label": "b"}, {"text": "the Unheard plot", "label": "a"}]
        encoded = encode(sequence(), rows, words, ["a", "b"])
        assert encoded.table.to_pylist() == [
            {"input_ids": ids("good film"), "labels": 1},
            {"input_ids": [CLS, ID["the"], UNK, ID["plot"], SEP], "labels": 0},
        ]
        assert (encoded.num_truncated, encoded.rejected) == (0, [])

    def test_pair(self, words):
        rows = [{"a": "good film", "b": "bad plot", "y": 0}]
        task = sequence(text_column="a", text_pair_column="b", label_column="y")
        assert task.required_columns() == ["a", "b", "y"]
        (sample,) = encode(task, rows, words, ["0"]).table.to_pylist()
        assert sample == {"input_ids": ids("good film", "bad plot"), "labels": 0}

    def test_pair_of_a_model_that_tells_segments(self, pieces):
        """BERT was pretrained with the second text marked; without the marks a pair is worth less to it."""
        task = sequence(text_pair_column="b")
        rows = [{"text": "ada", "b": "in oslo", "label": "x"}, {"text": "ada in", "b": None, "label": "x"}]
        table = encode(task, rows, pieces, ["x"]).table
        assert table["input_ids"].to_pylist() == [[2, 7, 3, 8, 9, 3], [2, 7, 8, 3, 3]]
        assert table["token_type_ids"].to_pylist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]
        batch = collate(task, table)
        assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0]]
        assert task.blank(batch)["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]

    def test_a_single_text_has_no_segments(self, pieces):
        table = encode(sequence(), [{"text": "ada", "label": "x"}], pieces, ["x"]).table
        assert table.column_names == ["input_ids", "labels"]

    def test_truncated(self, words):
        rows = [{"text": " ".join(["good"] * n), "label": "a"} for n in (2, 3, 4, 9)]
        encoded = encode(sequence(5), rows, words, ["a"])
        assert encoded.table["input_ids"].to_pylist() == [ids("good " * n) for n in (2, 3, 3, 3)]
        assert encoded.num_truncated == 2

    def test_truncated_pair(self, pieces):
        """The longer of the two gives way, and both keep their special tokens and segments."""
        task = sequence(7, text_pair_column="b")
        rows = [
            {"text": "ada", "b": "in " * 9, "label": "x"},
            {"text": "ada " * 9, "b": "in", "label": "x"},
            {"text": "ada " * 9, "b": None, "label": "x"},
        ]
        encoded = encode(task, rows, pieces, ["x"])
        assert encoded.table["input_ids"].to_pylist() == [
            [2, 7, 3, 8, 8, 8, 3],
            [2, 7, 7, 7, 3, 8, 3],
            [2, 7, 7, 7, 7, 3, 3],
        ]
        assert [sum(row) for row in encoded.table["token_type_ids"].to_pylist()] == [4, 2, 1]
        assert encoded.num_truncated == 3

    def test_integer_labels_are_in_the_order_of_their_values(self, words):
        task = sequence()
        assert labels_from(task, pa.table({"text": ["a"] * 4, "label": [10, 2, -1, 2]})) == ["-1", "2", "10"]
        encoded = encode(task, [{"text": "good", "label": 10}, {"text": "bad", "label": -1}], words, ["-1", "2", "10"])
        assert encoded.table["labels"].to_pylist() == [2, 0]

    def test_a_label_column_with_gaps_is_read_as_floats(self, words):
        table = pa.table({"text": ["good", "bad", "fine"], "label": [1.0, math.nan, 0.0]})
        task = sequence()
        assert labels_from(task, table) == ["0", "1"]
        encoded = task.encode(table, words, {"labels": ["0", "1"]})
        assert encoded.table["labels"].to_pylist() == [1, 0]
        assert reasons(encoded) == [(1, "label is missing")]

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (["b", "a"], ["a", "b"]),
            (["10", "9"], ["9", "10"]),
            (["10", "9", "x"], ["10", "9", "x"]),
            (["\u00b2", "1"], ["1", "\u00b2"]),
            (["--5", "1"], ["--5", "1"]),
            (["1", "01", "001", "0"], ["0", "001", "01", "1"]),
            ([], []),
        ],
        ids=str,
    )
    def test_order_of_labels(self, found, expected):
        assert labels_from(sequence(), pa.table({"label": pa.array(found, pa.string())})) == expected

    def test_declared_labels_keep_their_order(self):
        assert sequence(labels=["z", "a"]).declared_state() == {"labels": ["z", "a"]}
        assert sequence().declared_state() is None

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"text": "", "label": "a"}, "text is empty"),
            ({"text": " \t\n", "label": "a"}, "text is empty"),
            ({"text": None, "label": "a"}, "text is empty"),
            ({"text": "good", "label": None}, "label is missing"),
            ({"text": "good", "label": ""}, "label is missing"),  # an empty field of a CSV file
            ({"text": "good", "label": " "}, "label is missing"),
            ({"text": "good", "label": "c"}, "label 'c' is none of ['a', 'b']"),
        ],
        ids=str,
    )
    def test_rejected(self, words, row, reason):
        rows = [{"text": "fine", "label": "a"}, row, {"text": "dull", "label": "b"}]
        encoded = encode(sequence(), rows, words, ["a", "b"])
        assert reasons(encoded) == [(1, reason)]
        assert encoded.table["labels"].to_pylist() == [0, 1]
        assert (encoded.rejected[0].code == RowError.UNKNOWN_LABEL) == ("none of" in reason), "only one that is there"

    def test_a_missing_label_is_no_label_of_its_own(self):
        assert labels_from(sequence(), pa.table({"label": ["a", "", None, " ", "b"]})) == ["a", "b"]

    def test_several_labels_without_multi_label(self, words):
        encoded = encode(sequence(), [{"text": "good", "label": ["a", "b"]}], words, ["a", "b"])
        assert "2 labels" in encoded.rejected[0].reason and "task.multi_label=true" in encoded.rejected[0].reason

    def test_a_pair_that_is_no_text(self, words):
        encoded = encode(sequence(text_pair_column="b"), [{"text": "good", "b": 5, "label": "a"}], words, ["a"])
        assert reasons(encoded) == [(0, "b is 5, which is a number and not text")]

    def test_all_rejected(self, words):
        encoded = encode(sequence(), [{"text": "", "label": "a"}], words, ["a"])
        assert len(encoded.table) == 0 and encoded.table.column_names == ["input_ids", "labels"]

    @pytest.mark.parametrize(("options", "least"), [({}, 3), ({"text_pair_column": "b"}, 5)])
    def test_no_room_for_a_text(self, words, options, least):
        row = {"text": "good film", "b": "bad plot", "label": "a"}
        assert len(encode(sequence(least, **options), [row], words, ["a"]).table["input_ids"][0]) == least
        with pytest.raises(ConfigError, match=rf"data\.max_length {least - 1} .*at least {least}"):
            encode(sequence(least - 1, **options), [row], words, ["a"])


class TestMultiLabel:
    task = sequence(multi_label=True)
    labels = ("a", "b", "c")

    def rows(self, *cells: Any) -> list[dict[str, Any]]:
        return [{"text": "good", "label": cell} for cell in cells]

    def test_several_one_and_none(self, words):
        encoded = encode(self.task, self.rows(["c", "a"], ["b"], []), words, list(self.labels))
        assert encoded.table["labels"].to_pylist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
        assert self.task.count_labels(encoded.table, {"labels": list(self.labels)}) == {"a": 1, "b": 1, "c": 1}
        assert not encoded.rejected

    def test_integers(self, words):
        assert labels_from(self.task, pa.table({"label": [[3, 1], []]})) == ["1", "3"]
        encoded = encode(self.task, self.rows([3], [1, 3]), words, ["1", "3"])
        assert encoded.table["labels"].to_pylist() == [[0, 1], [1, 1]]

    @pytest.mark.parametrize(
        ("cell", "reason"),
        [
            (None, "label is missing"),
            (["a", None], "label is missing"),
            (["a", ""], "label is missing"),
            (["a", "z"], "label 'z' is none of ['a', 'b', 'c']"),
        ],
        ids=str,
    )
    def test_rejected(self, words, cell, reason):
        encoded = encode(self.task, self.rows(["a"], cell), words, list(self.labels))
        assert reasons(encoded) == [(1, reason)]

    def test_missing_is_no_label(self):
        assert labels_from(self.task, pa.table({"label": [["a"], None, ["b", None]]})) == ["a"]

    def test_collate_blank_targets(self, words):
        table = encode(self.task, self.rows(["c", "a"], []), words, list(self.labels)).table
        batch = collate(self.task, table, PAD)
        assert batch["labels"].dtype == np.float32
        assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
        assert self.task.target_weight(batch) == 2, "a sample without any label is a target too"
        assert [t.tolist() for t in self.task.targets(batch)] == [[1, 0, 1], [0, 0, 0]]
        blank = self.task.blank(batch)
        assert self.task.target_weight(blank) == 0 and self.task.targets(blank) == []
        assert blank["labels"].shape == (1, 3) and blank["labels"].dtype == np.float32

    def test_metrics(self):
        true = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], np.int32)
        predicted = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0]], np.int32)
        found = metrics(self.task, list(predicted), list(true), list(self.labels))
        # a: 2 of 2 found, 2 right. b: 3 found, 2 of 2 right. c: none found of 1.
        assert found.values == pytest.approx(
            {
                "subset_accuracy": 2 / 4,
                "micro_f1": 2 * 4 / (5 + 5),
                "macro_f1": (1 + 0.8 + 0) / 3,
                "weighted_f1": (2 * 1 + 2 * 0.8 + 0) / 5,
            }
        )
        rows = found.tables["per_class"]["rows"]
        assert [row[0] for row in rows] == ["a", "b", "c"]
        assert np.allclose([row[1:] for row in rows], [[1, 1, 1, 2], [2 / 3, 1, 0.8, 2], [0, 0, 0, 1]])

    def test_metrics_of_one_label(self):
        """One column is several labels of which there is one, not the two classes of scikit-learn's binary case."""
        true, predicted = [[1], [1], [0], [0], [0]], [[1], [0], [0], [0], [0]]
        task = sequence(multi_label=True)
        found = metrics(task, [np.array(p) for p in predicted], [np.array(t) for t in true], ["spam"])
        assert found.values == pytest.approx(
            {"subset_accuracy": 0.8, "micro_f1": 2 / 3, "macro_f1": 2 / 3, "weighted_f1": 2 / 3}
        )
        assert found.tables["per_class"]["rows"] == [["spam", 1.0, 0.5, pytest.approx(2 / 3), 2]]
        all_wrong = metrics(task, [np.array([0])] * 3, [np.array([1]), np.array([0]), np.array([0])], ["spam"])
        assert all_wrong.values["micro_f1"] == all_wrong.values["macro_f1"] == 0.0


class TestSequenceBatch:
    task = sequence()

    def batch(self, words: Any) -> dict[str, np.ndarray]:
        rows = [{"text": "good film", "label": "b"}, {"text": "bad", "label": "a"}]
        return collate(self.task, encode(self.task, rows, words, ["a", "b"]).table, PAD)

    def test_collate(self, words):
        batch = self.batch(words)
        assert batch["input_ids"].tolist() == [ids("good film"), [*ids("bad"), PAD]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
        assert batch["labels"].tolist() == [1, 0]
        assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
        assert all(array.flags.writeable for array in batch.values()), "torch warns of memory that it can't write"

    def test_targets(self, words):
        batch = self.batch(words)
        assert self.task.target_weight(batch) == 2
        assert [t.tolist() for t in self.task.targets(batch)] == [[1], [0]]

    def test_blank(self, words):
        batch = self.batch(words)
        blank = self.task.blank(batch)
        assert blank["input_ids"].tolist() == [ids("good film")]
        assert blank["labels"].tolist() == [IGNORED]
        assert self.task.target_weight(blank) == 0 and self.task.targets(blank) == []
        assert batch["labels"].tolist() == [1, 0], "the batch itself stays"

    def test_columns_of_several_chunks_and_slices(self):
        lists = [[1, 2], [3], [], [4, 5, 6]]
        whole = pa.chunked_array([pa.array(lists[:2]), pa.array(lists[2:])])
        assert pad_column(whole, 9).tolist() == [[1, 2, 9], [3, 9, 9], [9, 9, 9], [4, 5, 6]]
        cut = pa.chunked_array([pa.array([[7, 7], *lists])]).slice(1)
        assert pad_column(cut, 9).tolist() == pad_column(whole, 9).tolist()
        assert attention_mask(cut, 3).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]


class TestSequenceMetrics:
    labels = ("a", "b", "c")
    true = (0, 0, 0, 1, 1, 2)
    predicted = (0, 0, 1, 1, 1, 0)

    def metrics(self) -> Any:
        return metrics(
            sequence(), [np.array([p]) for p in self.predicted], [np.array([t]) for t in self.true], list(self.labels)
        )

    def test_by_hand(self):
        """F1 of a: 2*2/(3+3); of b: 2*2/(3+2); of c: 0."""
        values = self.metrics().values
        assert values == pytest.approx(
            {
                "accuracy": 4 / 6,
                "macro_f1": (2 / 3 + 0.8 + 0) / 3,
                "weighted_f1": (3 * 2 / 3 + 2 * 0.8 + 0) / 6,
            }
        )

    def test_tables(self):
        tables = self.metrics().tables
        assert tables["confusion"] == {"labels": list(self.labels), "counts": [[2, 1, 0], [0, 2, 0], [1, 0, 0]]}
        assert tables["per_class"]["columns"] == ["label", "precision", "recall", "f1", "support"]
        rows = tables["per_class"]["rows"]
        assert [row[0] for row in rows] == list(self.labels)
        assert np.allclose([row[1:] for row in rows], [[2 / 3, 2 / 3, 2 / 3, 3], [2 / 3, 1, 0.8, 2], [0, 0, 0, 1]])

    @pytest.mark.parametrize("seed", range(3))
    def test_as_scikit_learn(self, seed):
        rng = np.random.default_rng(seed)
        true, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
        found = metrics(sequence(), [np.array([p]) for p in predicted], [np.array([t]) for t in true], list("abcde"))
        assert found.values == pytest.approx(
            {
                "accuracy": sk.accuracy_score(true, predicted),
                "macro_f1": sk.f1_score(true, predicted, average="macro"),
                "weighted_f1": sk.f1_score(true, predicted, average="weighted"),
            }
        )
        assert found.tables["confusion"]["counts"] == sk.confusion_matrix(true, predicted).tolist()

    def test_a_label_that_never_occurs_has_a_row_but_no_part_in_the_mean(self):
        found = metrics(sequence(), [np.array([0]), np.array([1])], [np.array([0]), np.array([1])], ["a", "b", "never"])
        assert found.values["macro_f1"] == 1.0
        assert found.tables["per_class"]["rows"][2] == ["never", 0.0, 0.0, 0.0, 0]

    def test_of_nothing(self):
        assert metrics(sequence(), [], [], ["a"]).values == {}
        assert metrics(sequence(multi_label=True), [], [], ["a"]).values == {}
        assert metrics(tagging(), [], [], TAGS).values == {}


def sentence(text: str, tags: str, document: int = 1) -> dict[str, Any]:
    return {"tokens": text.split(" "), "tags": tags.split(" "), "document": document}


class TestTagEncode:
    def test_a_word_is_tagged_at_its_first_piece(self, pieces):
        row = sentence("Ada playing in Oslo", "B-PER O O B-LOC")
        (sample,) = encode(tagging(), [row], pieces, TAGS).table.to_pylist()
        assert sample["input_ids"] == [2, 7, 4, 5, 8, 9, 3]
        assert sample["labels"] == [IGNORED, 2, 0, IGNORED, 0, 1, IGNORED]
        assert sample["sentence_lengths"] == [4]

    def test_the_same_word_twice_is_two_words(self, pieces):
        row = sentence("plays plays", "B-PER I-PER")
        (sample,) = encode(tagging(), [row], pieces, TAGS).table.to_pylist()
        assert sample["labels"] == [IGNORED, 2, IGNORED, 3, IGNORED, IGNORED]

    @pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
    def test_a_word_that_the_tokenizer_drops_is_the_unknown_token(self, pieces, places):
        row = {"tokens": ["Ada", "playing", "Oslo"], "tags": ["B-PER", "O", "B-LOC"]}
        assert pieces([[DROPPED]], is_split_into_words=True, add_special_tokens=False)["input_ids"] == [[]]
        for place in places:
            row["tokens"][place] = DROPPED
        (sample,) = encode(tagging(case_feature=True), [row], pieces, TAGS).table.to_pylist()
        assert [label for label in sample["labels"] if label != IGNORED] == [2, 0, 1]
        assert sample["sentence_lengths"] == [3]
        firsts = [i for i, label in zip(sample["input_ids"], sample["labels"], strict=True) if label != IGNORED]
        assert [i for i, first in enumerate(firsts) if first == 1] == list(places)
        assert len(sample["token_type_ids"]) == len(sample["input_ids"])

    @pytest.mark.parametrize(
        ("word", "case"),
        [
            *(("oslo", 0), ("42", 0), ("-", 0), ("3d", 0), ("o'neil", 0)),
            *(("Oslo", 1), ("A", 1), ("U.", 1), ("\u00c9cole", 1)),
            *(("OSLO", 2), ("U.S.", 2), ("F-16A", 2)),
            *(("McDonald", 3), ("iPhone", 3), ("eBAY", 3), ("3D-Print", 3)),
        ],
    )
    def test_letter_case(self, word, case):
        assert letter_case(word) == case

    def test_case_feature(self, pieces):
        row = sentence("Ada PLAYING in oSlo", "B-PER O O B-LOC")
        (sample,) = encode(tagging(case_feature=True), [row], pieces, TAGS).table.to_pylist()
        assert sample["token_type_ids"] == [0, 1, 2, 2, 0, 3, 0]
        assert "token_type_ids" not in encode(tagging(), [row], pieces, TAGS).table.column_names

    def test_truncated(self, pieces):
        rows = [sentence("Ada playing", "B-PER O"), sentence("Ada playing playing Oslo", "B-PER O O B-LOC")]
        encoded = encode(tagging(5), rows, pieces, TAGS)
        assert encoded.table["input_ids"].to_pylist() == [[2, 7, 4, 5, 3], [2, 7, 4, 5, 3]]
        assert encoded.table["labels"].to_pylist()[1] == [IGNORED, 2, 0, IGNORED, IGNORED]
        assert encoded.table["sentence_lengths"].to_pylist() == [[2], [2]], "words that were lost are not scored"
        assert encoded.num_truncated == 1

    def test_truncated_inside_a_word(self, pieces):
        encoded = encode(tagging(4), [sentence("Ada playing", "B-PER O")], pieces, TAGS)
        assert encoded.table.to_pylist() == [
            {"input_ids": [2, 7, 4, 3], "labels": [IGNORED, 2, 0, IGNORED], "sentence_lengths": [2]}
        ]

    def test_no_room_for_a_word(self, pieces):
        with pytest.raises(ConfigError, match=r"data\.max_length 2 .*at least 3"):
            encode(tagging(2), [sentence("Ada", "O")], pieces, TAGS)

    @pytest.mark.parametrize(
        ("tokens", "tags", "reason"),
        [
            ([], [], "tokens is empty"),
            (None, ["O"], "tokens is empty"),
            (["Ada", "in"], ["O"], "the tags are not one per word: 2 words, but 1 tag"),
            (["Ada"], None, "the tags are not one per word: 1 word, but 0 tags"),
            (["Ada", " "], ["O", "O"], "tokens holds an empty word"),
            (["Ada", None], ["O", "O"], "tokens holds an empty word"),
            (["Ada", "in"], ["O", None], "tags lacks the tag of a word"),
            (["Ada", "in"], ["O", ""], "tags lacks the tag of a word"),
            (["Ada"], ["B-ORG"], f"label 'B-ORG' is none of {TAGS}"),
        ],
        ids=str,
    )
    def test_rejected(self, pieces, tokens, tags, reason):
        good = {"tokens": ["Ada"], "tags": ["B-PER"]}
        encoded = encode(tagging(), [good, {"tokens": tokens, "tags": tags}, good], pieces, TAGS)
        assert reasons(encoded) == [(1, reason)]
        assert len(encoded.table) == 2
        assert (encoded.rejected[0].code == RowError.UNKNOWN_LABEL) == ("none of" in reason)

    def test_labels(self):
        table = pa.table({"tags": [["O", "I-PER", None], ["B-PER", ""], None]})
        assert labels_from(tagging(), table) == ["O", "B-PER", "I-PER"]
        assert tagging(labels=["B", "O"]).declared_state() == {"labels": ["B", "O"]}

    def test_text_is_no_list_of_words(self, pieces):
        encoded = encode(tagging(), [{"tokens": "in", "tags": "OO"}], pieces, TAGS)
        assert reasons(encoded) == [(0, "tokens must be a list of words")]

    def test_integer_tags(self, pieces):
        encoded = encode(tagging(), [{"tokens": ["Ada", "in"], "tags": [3, 0]}], pieces, ["0", "3"])
        assert encoded.table["labels"].to_pylist() == [[IGNORED, 1, 0, IGNORED]]

    def test_special_tokens(self, pieces, words):
        assert special_tokens(pieces) == ([2], [3])
        assert special_tokens(words) == ([CLS], [SEP])


class TestDocumentContext:
    rows = (
        sentence("Ada in", "B-PER O"),
        sentence("Oslo", "B-LOC"),
        sentence("in in in", "O O O"),
        sentence("Ada", "B-PER", document=2),
        sentence("Oslo", "B-LOC", document=2),
    )

    def test_neighbours_of_a_document_share_a_sample_while_they_fit(self, pieces):
        table = encode(tagging(7, document_context=True), list(self.rows), pieces, TAGS).table
        assert table["input_ids"].to_pylist() == [[2, 7, 8, 9, 3], [2, 8, 8, 8, 3], [2, 7, 9, 3]]
        assert table["sentence_lengths"].to_pylist() == [[2, 1], [3], [1, 1]]

    def test_a_sample_may_be_just_full(self, pieces):
        rows = list(self.rows[:3])
        lengths = [
            encode(tagging(n, document_context=True), rows, pieces, TAGS).table["sentence_lengths"].to_pylist()
            for n in (7, 8)
        ]
        assert lengths == [[[2, 1], [3]], [[2, 1, 3]]]

    def test_without_context_a_sentence_is_a_sample(self, pieces):
        table = encode(tagging(7), list(self.rows), pieces, TAGS).table
        assert table["sentence_lengths"].to_pylist() == [[2], [1], [3], [1], [1]]

    def test_without_documents_all_is_one(self, pieces):
        rows = [{"tokens": row["tokens"], "tags": row["tags"]} for row in self.rows]
        assert len(encode(tagging(document_context=True), rows, pieces, TAGS).table) == 1

    def test_a_rejected_sentence_shifts_nothing(self, pieces):
        rows = [*self.rows[:3], {"tokens": [], "tags": [], "document": 1}, *self.rows[3:]]
        encoded = encode(tagging(document_context=True), rows, pieces, TAGS)
        assert encoded.table["sentence_lengths"].to_pylist() == [[2, 1, 3], [1, 1]]
        assert reasons(encoded) == [(3, "tokens is empty")]

    def test_a_sentence_that_is_too_long_is_cut_to_a_sample(self, pieces):
        rows = [sentence("in " * 8 + "in", "O " * 8 + "O"), sentence("Ada", "B-PER")]
        encoded = encode(tagging(6, document_context=True), rows, pieces, TAGS)
        assert encoded.table["sentence_lengths"].to_pylist() == [[4], [1]]
        assert encoded.num_truncated == 1

    @pytest.mark.parametrize("max_length", [5, 7, 9, 32])
    def test_targets_are_cut_back_to_sentences(self, pieces, max_length):
        task = tagging(max_length, document_context=True, case_feature=True)
        table = encode(task, list(self.rows), pieces, TAGS).table
        batch = collate(task, table)
        expected = [[TAGS.index(tag) for tag in row["tags"]] for row in self.rows]
        assert [t.tolist() for t in task.targets(batch)] == expected
        assert task.target_weight(batch) == 8

    def test_collate(self, pieces):
        task = tagging(7, document_context=True, case_feature=True)
        batch = collate(task, encode(task, list(self.rows), pieces, TAGS).table)
        assert {name: array.shape for name, array in batch.items()} == {
            **dict.fromkeys(("input_ids", "attention_mask", "labels", "token_type_ids"), (3, 5)),
            "sentence_lengths": (3, 2),
        }
        assert batch["labels"][2].tolist() == [IGNORED, 2, 1, IGNORED, IGNORED]
        assert batch["sentence_lengths"].tolist() == [[2, 1], [3, 0], [1, 1]]
        assert batch["attention_mask"].sum() == 5 + 5 + 4

    def test_blank(self, pieces):
        task = tagging(7, document_context=True, case_feature=True)
        batch = collate(task, encode(task, list(self.rows), pieces, TAGS).table)
        blank = task.blank(batch)
        assert task.target_weight(blank) == 0 and task.targets(blank) == []
        assert blank.keys() == batch.keys() and all(len(array) == 1 for array in blank.values())
        assert task.target_weight(batch) == 8, "the batch itself stays"


def conll_chunks(tags: list[str]) -> set[tuple[str, int, int]]:
    """Entities as the Perl script conlleval finds them: it starts one at a B-, at an I- after O, and at a new type."""
    chunks, start, before, kind = set(), None, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if start is not None and (prefix in "BO" or name != kind):
            chunks.add((kind, start, i))
            start = None
        if prefix == "B" or (prefix == "I" and (before == "O" or name != kind)):
            start = i
        before, kind = prefix, name
    return chunks


class TestTagMetrics:
    @pytest.mark.parametrize(
        ("true", "predicted", "found", "right"),
        [
            ("B-A I-A O", "B-A I-A O", 1, 1),
            ("B-A I-A O", "O I-A O", 1, 0),  # half an entity is none
            ("B-A I-A O", "I-A I-A O", 1, 1),  # an I- after O starts one
            ("B-A B-A O", "B-A I-A O", 1, 0),  # neighbours are two
            ("B-A B-A O", "B-A B-A O", 2, 2),
            ("B-A I-A O", "B-A I-B O", 2, 0),  # a new type starts one
            ("B-A O B-B", "B-B O B-B", 2, 1),
            ("B-A I-A O", "O O O", 0, 0),
        ],
    )
    def test_entities_of_one_sentence(self, true, predicted, found, right):
        true, predicted = true.split(), predicted.split()
        assert (len(conll_chunks(predicted)), len(conll_chunks(predicted) & conll_chunks(true))) == (found, right)
        values = entity_scores([predicted], [true]).values
        wanted = len(conll_chunks(true))
        assert values["entity_precision"] == pytest.approx(right / found if found else 0.0)
        assert values["entity_recall"] == pytest.approx(right / wanted)
        assert values["entity_f1"] == pytest.approx(2 * right / (found + wanted))

    def test_an_entity_ends_with_its_sentence(self):
        values = entity_scores([["O", "B-A"], ["I-A"]], [["O", "B-A"], ["I-A"]]).values
        assert values["entity_f1"] == 1.0
        assert entity_scores([["B-A"], ["I-A"]], [["B-A"], ["O"]]).values["entity_precision"] == 0.5

    def test_as_conlleval_and_seqeval_on_any_tags(self):
        rng = random.Random(0)
        choices = ["O", "B-A", "I-A", "B-B", "I-B"]
        for _ in range(200):
            true = [rng.choices(choices, k=rng.randint(1, 7)) for _ in range(3)]
            predicted = [rng.choices(choices, k=len(tags)) for tags in true]
            pairs = [(conll_chunks(p), conll_chunks(t)) for p, t in zip(predicted, true, strict=True)]
            right, total = (
                sum(map(len, sets)) for sets in ([p & t for p, t in pairs], [s for pt in pairs for s in pt])
            )
            values = entity_scores(predicted, true).values
            assert values["entity_f1"] == pytest.approx(2 * right / max(1, total))
            assert values["entity_f1"] == pytest.approx(seqeval_f1(true, predicted, zero_division=0))

    def test_by_hand(self):
        """Three sentences; one person of two found, the place found, one O tagged as a person."""
        true = [[2, 3, 0], [1, 0], [2]]
        predicted = [[2, 0, 0], [1, 2], [2]]
        found = metrics(tagging(), [np.array(p) for p in predicted], [np.array(t) for t in true], TAGS)
        flat_true, flat_predicted = [0, 1, 0, 2, 2, 3], [0, 1, 2, 2, 2, 0]
        assert found.values == pytest.approx(
            {
                "entity_precision": 2 / 4,
                "entity_recall": 2 / 3,
                "entity_f1": 2 * 2 / (4 + 3),
                "token_micro_f1": 4 / 6,
                "token_macro_f1": (1 / 2 + 1 + 4 / 5 + 0) / 4,
                "token_weighted_f1": sk.f1_score(flat_true, flat_predicted, average="weighted", zero_division=0),
            }
        )
        entities = {row[0]: row[1:] for row in found.tables["entities"]["rows"]}
        assert entities == {"LOC": [1.0, 1.0, 1.0, 1], "PER": [pytest.approx(1 / 3), 0.5, pytest.approx(0.4), 2]}
        per_tag = {row[0]: row[4] for row in found.tables["per_tag"]["rows"]}
        assert per_tag == {"O": 2, "B-LOC": 1, "B-PER": 2, "I-PER": 1}

    def test_micro_f1_over_all_tags_is_the_share_that_is_right(self):
        rng = np.random.default_rng(0)
        true, predicted = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
        values = metrics(tagging(), [predicted], [true], TAGS).values
        assert values["token_micro_f1"] == pytest.approx(sk.f1_score(true, predicted, average="micro"))
        assert values["token_macro_f1"] == pytest.approx(sk.f1_score(true, predicted, average="macro"))

    def test_an_entity_whose_name_ends_like_a_mean(self):
        rows = entity_scores([["B-the avg"]], [["B-the avg"]]).tables["entities"]["rows"]
        assert rows == [["the avg", 1.0, 1.0, 1.0, 1]]

    def test_tags_without_entities(self):
        found = metrics(tagging(), [np.array([0, 1, 1])], [np.array([0, 1, 0])], ["DET", "NOUN"])
        assert not any(name.startswith("entity") for name in found.values)
        assert "entities" not in found.tables

    @pytest.mark.parametrize("labels", [None, TAGS, ["I-PER", "O"], ["DET", "NOUN"]])
    def test_the_best_model_is_told_by_a_metric_that_is_there(self, labels):
        task = tagging(labels=labels)
        assert task.best_metric == ("entity_f1" if labels in (TAGS, ["I-PER", "O"]) else "token_macro_f1")
        assert task.best_metric in task.modes
        assert ("entity_f1" in task.modes) == (labels != ["DET", "NOUN"])
        for found in [labels] if labels else [TAGS, ["DET", "NOUN"]]:
            best = task.best_metric_for({"labels": found})
            assert best == ("entity_f1" if found in (TAGS, ["I-PER", "O"]) else "token_macro_f1")
            assert best in metrics(task, [np.array([0, 1])], [np.array([0, 1])], found).values
            assert task.best_metric in metrics(task, [np.array([0, 1])], [np.array([0, 1])], found).values

    def test_no_entity_at_all(self):
        values = metrics(tagging(), [np.array([0, 0])], [np.array([0, 0])], TAGS).values
        assert values["entity_f1"] == 0.0 and values["token_micro_f1"] == 1.0
