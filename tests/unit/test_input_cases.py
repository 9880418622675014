"""Inputs that other tools read wrongly without a word: each comes out right here, or is refused with its file and row.

The work of PREPARE is done as Ray Data's processes do it, in this process. No Ray.
"""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.config import LeakagePolicy, RunConfig
from raytrain.config.io import parse_config
from raytrain.data.bad_rows import Tally
from raytrain.data.encode import Encoder, Surveyor, report_of
from raytrain.data.readers.base import CHUNK_ROWS, BadRow
from raytrain.data.sources import check_sources, read_tasks
from raytrain.data.stages.duplicates import Duplicates
from raytrain.errors import ConfigError, DataError, counted
from raytrain.tasks import make_task
from raytrain.tasks.base import RowError
from raytrain.tasks.labels import labels_in
from tests.tiny import TINY_BERT, tiny_tokenizer, write_parquet, write_reviews

REVIEWS = {"kind": "sequence_classification"}
TAGS = {"kind": "token_classification"}
NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Prepared:
    """What PREPARE makes of sources."""

    def __init__(self, raw: dict[str, Any], folder: Path):
        config = RunConfig.model_validate(raw)
        self._task = make_task(config.task, config.data.max_length)
        rows = [
            {"ordinal": i, "task": json.dumps(asdict(task))}
            for i, task in enumerate(read_tasks(check_sources(config.data, self._task)))
        ]
        plain = config.model_dump(mode="json", exclude_unset=True)
        none = Duplicates(LeakagePolicy.OFF, str(folder))
        self.remarks: list[str] = []
        state = self._task.declared_state()
        if state is None:
            surveys = [one for row in rows for one in _report(Surveyor(plain, none), row)["surveys"]]
            state = self._task.state_from(surveys)
            self.remarks = self._task.remarks(surveys)
        self.labels = labels_in(state)
        shutil.rmtree(folder, ignore_errors=True)
        reports = [_report(Encoder(plain, state, str(folder), 16, none), row) for row in rows]
        files = sorted((folder / "quarantine").glob("*.jsonl"))
        quarantined = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        self.rejected = [(bad["row"], bad["code"], bad["reason"]) for bad in quarantined]
        self.quarantined = [bad["data"] for bad in quarantined]
        parts = [str(folder / item["part"]["name"]) for report in reports for item in report["written"]]
        self.samples = [row for part in parts for row in pq.read_table(part).to_pylist()]

    @property
    def names(self) -> list[Any]:
        """The labels of each sample by name."""
        named = []
        for sample in self.samples:
            ids = sample["labels"]
            if isinstance(ids, int):
                named.append(self.labels[ids])
            elif isinstance(ids[0], float):
                named.append([name for name, is_on in zip(self.labels, ids, strict=True) if is_on])
            else:
                named.append([self.labels[i] for i in ids if i >= 0])
        return named


def _report(function: Any, row: dict[str, Any]) -> dict[str, Any]:
    report = report_of(function(row))
    if "error" in report:
        raise DataError(report["error"])
    return report


@pytest.fixture
def prepare(tmp_path: Path, tokenizer: str) -> Any:
    def run(path: Any, task: dict[str, Any] = REVIEWS, train: Any = (), **data: Any) -> Prepared:
        raw = {
            "name": "test",
            "task": task,
            "model": {"config": TINY_BERT, "tokenizer": tokenizer},
            "data": {"train": {"path": str(path), **dict(train)}, "max_length": 32, **data},
        }
        return Prepared(raw, tmp_path / "prepared")

    return run


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(path: Path, rows: list[Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def refused(prepare: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as refusal:
        prepare(*arguments, **options)
    return str(refusal.value)


def csv_of(rows: dict[int, str], order: str = "{text},{label}", num_rows: int = 100) -> str:
    """A CSV file of plain rows with a few lines replaced; line 1 is the header."""
    body = [order.format(text="text", label="label")]
    body += [order.format(text=f"text number {i}", label=("neg", "pos")[i % 2]) for i in range(num_rows)]
    return "".join(f"{rows.get(number, line)}\n" for number, line in enumerate(body, 1))


class TestQuotes:
    """A quote that is missing costs its row, not the rest of the file."""

    @pytest.mark.parametrize(
        ("order", "broken"),
        [
            ("{label},{text}", {12: 'neg,"What a movie said the man'}),
            ("{text},{label}", {12: '"What a movie said the man,neg', 62: 'he said "no" to it,neg'}),
            ("{text},{label}", {12: '"What a movie said the man,neg', 62: 'it was good",pos'}),
            ("{text},{label}", {12: 'the end "of,neg', 62: '"of it,neg'}),
        ],
    )
    def test_a_stray_quote(self, tmp_path, prepare, order, broken):
        path = write(tmp_path / "a.csv", csv_of(broken, order))
        message = refused(prepare, path)
        bad = [row for row, line in broken.items() if line.startswith(('"', 'neg,"'))]
        assert f"{path}, row {bad[0]}: " in message and "quote" in message and "data.on_error=quarantine" in message
        found = prepare(path, on_error="quarantine")
        assert [row for row, _, _ in found.rejected] == bad
        assert len(found.samples) == 100 - len(bad)

    def test_a_quarantined_record_is_as_it_is_in_the_file(self, tmp_path, prepare):
        bad = ['"a, b",pos,3', '"two\nlines",pos,"x"']
        path = write(tmp_path / "a.csv", "text,label\n" + "\n".join(bad) + "\n" + "good,neg\nfine,pos\n" * 3)
        assert prepare(path, on_error="quarantine", max_quarantined=1).quarantined == bad

    def test_backslashes_before_quotes(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", 'text,label\n"He said \\"hi\\" to me",pos\n"fine",neg\n"good",pos\n')
        message = refused(prepare, path)
        assert f"{path}, row 2: " in message and '\\"' in message
        assert [row for row, _, _ in prepare(path, on_error="quarantine").rejected] == [2]

    def test_blanks_before_a_quote(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", 'text, label\n"good", "pos"\n'.replace(", label", ",label"))
        assert "row 2: there are blanks" in refused(prepare, path)

    def test_what_is_right_csv(self, tmp_path, prepare):
        text = 'text,label\r\n"one\r\ntwo ""three""",a\r\n5" disk,b\r\n"x, y",a\r\n'
        assert prepare(write(tmp_path / "a.csv", text)).names == ["a", "b", "a"]

    def test_a_row_with_another_number_of_fields_in_a_later_part_of_the_file(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", csv_of({700: "a, b, c,neg", 900: "x", 950: "y"}, num_rows=1000))
        message = refused(prepare, path)
        assert f"{path}, row 700: 4 fields where the header has 2 (2 more bad rows after it)" in message

    def test_a_refusal_does_not_read_a_large_file_to_its_end(self, tmp_path, prepare, monkeypatch):
        monkeypatch.setattr("raytrain.data.encode.CHUNKS_TO_COUNT", 1)
        broken = dict.fromkeys((300, CHUNK_ROWS + 300, 3 * CHUNK_ROWS), "x")
        path = write(tmp_path / "a.csv", csv_of(broken, num_rows=3 * CHUNK_ROWS))
        assert (
            "row 300: 1 field " in (message := refused(prepare, path))
            and "(at least 1 more bad row after it)" in message
        )


class TestColumns:
    def test_another_delimiter(self, tmp_path, prepare):
        rows = [f"caf\u00e9 number {i};{'ab'[i % 2]}\n" for i in range(6)]
        path = write(tmp_path / "a.csv", "text;label\n" + "".join(rows))
        message = refused(prepare, path)
        assert str(path) in message and "data.train.delimiter=';'" in message
        assert prepare(path, train={"delimiter": ";"}).names == ["a", "b"] * 3

    def test_a_tab_is_spelled_in_any_way(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", 'text\tlabel\n"x, y"\ta\nz\tb\n')
        assert "data.train.delimiter=tab" in refused(prepare, path)
        for spelling in ("tab", "\\t", "\t"):
            assert prepare(path, train={"delimiter": spelling}).names == ["a", "b"]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_another_encoding(self, tmp_path, prepare, encoding):
        text = "text,label\n" + "".join(f"caf\u00e9 number {i},{'ab'[i % 2]}\n" for i in range(6))
        path = write(tmp_path / "a.csv", text.encode(encoding))
        message = refused(prepare, path)
        assert str(path) in message and f"data.train.encoding={encoding}" in message
        assert prepare(path, train={"encoding": encoding}).names == ["a", "b"] * 3

    def test_latin_1(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", "text,label\ngood,a\ncaf\u00e9,b\n".encode("cp1252"))
        assert f"{path}, row 3: " in (message := refused(prepare, path)) and "encoding" in message
        assert prepare(path, train={"encoding": "cp1252"}).names == ["a", "b"]

    @pytest.mark.parametrize("option", [{"delimiter": ";"}, {"encoding": "utf-16"}, {"tag_column": 2}])
    def test_an_option_that_is_for_other_files(self, tmp_path, prepare, option):
        path = write_reviews(tmp_path / "a.parquet", 4, 0)
        assert f"data.train.{next(iter(option))} has no effect" in refused(prepare, path, train=option)

    def test_a_column_twice(self, tmp_path, prepare):
        message = refused(prepare, write(tmp_path / "a.csv", "text,label,label\nfoo,pos,1\nbar,neg,0\n"))
        assert "a.csv" in message and "2 columns named 'label'" in message
        table = pa.table([["a", "b"], ["x", "y"], [0, 1]], names=["text", "label", "label"])
        pq.write_table(table, tmp_path / "a.parquet")
        assert "2 columns named 'label'" in refused(prepare, tmp_path / "a.parquet")

    def test_a_column_twice_that_nobody_reads(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", "text,note,note,label\na,1,2,x\nb,3,4,y\n")
        assert prepare(path).names == ["x", "y"]

    def test_a_key_twice(self, tmp_path, prepare):
        path = write(tmp_path / "a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "x", "label": "y"}\n')
        assert f"{path}, row 2: " in (message := refused(prepare, path)) and "'label' is there twice" in message

    def test_a_header_that_is_repeated(self, tmp_path, prepare):
        part = "text,label\n" + "".join(f"t {i},{'ab'[i % 2]}\n" for i in range(10))
        path = write(tmp_path / "a.csv", part + part)
        assert f"{path}, row 12: it repeats the header" in refused(prepare, path)
        assert len(prepare(path, on_error="quarantine").samples) == 20


class TestTypes:
    """A type problem belongs to its own row."""

    def test_a_number_among_words(self, tmp_path, prepare):
        rows: list[Any] = [{"tokens": ["in", "the", f"{1900 + i}"], "tags": ["O", "O", "B-DATE"]} for i in range(20)]
        rows[7]["tokens"][2] = 1907
        path = lines(tmp_path / "a.jsonl", rows)
        message = refused(prepare, path, TAGS)
        assert f"{path}, row 8: tokens " in message and "1907" in message and "row 1:" not in message
        found = prepare(path, TAGS, on_error="quarantine")
        assert [row for row, _, _ in found.rejected] == [8] and len(found.samples) == 19

    @pytest.mark.parametrize("odd", [17, 0.5, True, ["a"], {"a": 1}])
    def test_two_odd_rows_among_thousands(self, tmp_path, prepare, odd):
        rows: list[Any] = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(CHUNK_ROWS + 904)]
        rows[10]["text"] = rows[4_500]["text"] = odd
        path = lines(tmp_path / "a.jsonl", rows)
        assert f"{path}, row 11: text is " in refused(prepare, path)
        found = prepare(path, on_error="quarantine")
        assert [row for row, _, _ in found.rejected] == [11, 4_501] and len(found.samples) == 4_998

    def test_a_column_that_nobody_reads_may_hold_anything(self, tmp_path, prepare):
        rows = [{"text": "a", "label": "x", "more": [1, "a"]}, {"text": "b", "label": "y", "more": {"c": [1, {}]}}]
        assert prepare(lines(tmp_path / "a.jsonl", rows)).names == ["x", "y"]

    def test_the_labels_of_quarantined_rows_are_not_learned(self, tmp_path, prepare):
        rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "", "label": "z"}]
        tagged = [{"tokens": [row["text"], "c"], "tags": [row["label"], "O"]} for row in rows]
        assert prepare(lines(tmp_path / "a.jsonl", rows), on_error="quarantine").labels == ["x", "y"]
        assert prepare(lines(tmp_path / "b.jsonl", tagged), TAGS, on_error="quarantine").labels == ["O", "x", "y"]

    def test_booleans_are_spelled_alike(self, tmp_path, prepare):
        alone = [{"text": "a", "label": True}, {"text": "b", "label": False}]
        among = [{"text": "c", "label": "maybe"}, *alone]
        assert prepare(lines(tmp_path / "a.jsonl", alone)).names == ["true", "false"]
        assert prepare(lines(tmp_path / "b.jsonl", among)).names == ["maybe", "true", "false"]

    def test_numbers_are_spelled_alike(self, tmp_path, prepare):
        alone = [{"text": "a", "label": 1.0}, {"text": "b", "label": 0}]
        assert prepare(lines(tmp_path / "a.jsonl", alone)).names == ["1", "0"]
        assert prepare(lines(tmp_path / "b.jsonl", [*alone, {"text": "c", "label": "x"}])).names == ["1", "0", "x"]

    def test_tags_that_are_text(self, tmp_path, prepare):
        as_text = [{"tokens": ["a", "b"], "tags": ["0", "10"]}, {"tokens": ["a"], "tags": ["2"]}]
        as_numbers = [{"tokens": ["a", "b"], "tags": [0, 10]}, {"tokens": ["a"], "tags": [2]}]
        one, two = (prepare(lines(tmp_path / f"{len(rows)}.jsonl", rows), TAGS) for rows in (as_text, as_numbers))
        assert one.labels == two.labels == ["0", "2", "10"] and one.names == two.names

    def test_a_json_list_of_objects(self, tmp_path, prepare):
        rows = [{"text": "a ] , [", "label": "x"}, {"text": 5, "label": "y"}, {"text": "c", "label": "y"}]
        for indent in (None, 2):
            path = write(tmp_path / f"{indent}.json", json.dumps(rows, indent=indent))
            assert f"{path}, row 2: text is 5" in refused(prepare, path)
            assert prepare(path, on_error="quarantine").names == ["x", "y"]

    def test_a_json_list_that_is_larger_than_what_is_read_at_once(self, tmp_path, prepare, monkeypatch):
        monkeypatch.setattr("raytrain.data.readers.json_files.READ_CHARACTERS", 7)
        rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(50)]
        assert len(prepare(write(tmp_path / "a.json", json.dumps(rows))).samples) == 50

    @pytest.mark.parametrize("end", ["", ",", ', {"text": ', "] 5", "] ]"])
    def test_a_json_list_that_is_cut(self, tmp_path, prepare, end):
        path = write(tmp_path / "a.json", '[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}' + end)
        message = refused(prepare, path, on_error="quarantine")
        assert str(path) in message and "read" in message

    def test_a_json_file_that_holds_one_object(self, tmp_path, prepare):
        path = write(tmp_path / "a.json", json.dumps({"data": [{"text": "a", "label": "x"}]}, indent=1))
        assert "a list of objects, or one JSON object per line" in refused(prepare, path)

    def test_json_lines_in_a_json_file(self, tmp_path, prepare):
        assert prepare(lines(tmp_path / "a.json", [{"text": c, "label": c} for c in "ab"])).names == ["a", "b"]


class TestLabels:
    def test_integer_tags_outside_the_labels(self, tmp_path, prepare):
        rows = [{"tokens": ["a", "b"], "tags": [i % 3, 9 if i == 5 else 1]} for i in range(12)]
        task = {**TAGS, "labels": ["0", "1", "2"]}
        assert "row 6: label '9' is none of ['0', '1', '2']" in refused(
            prepare, lines(tmp_path / "a.jsonl", rows), task
        )

    def test_found_integers_are_in_their_order(self, tmp_path, prepare):
        rows = [{"tokens": ["a"], "tags": [i]} for i in (10, 2, 1, 0)]
        assert prepare(lines(tmp_path / "a.jsonl", rows), TAGS).labels == ["0", "1", "2", "10"]

    def test_names_of_a_class_label(self, tmp_path, prepare):
        """As `datasets` writes them; -1 is its word for a row without a label."""
        label = {"names": ["neg", "pos"], "_type": "ClassLabel"}
        tags = {"names": ["O", "B-PER"], "_type": "ClassLabel"}
        for kind in ("Sequence", "List"):
            features = {"label": label, "tags": {"feature": tags, "_type": kind}}
            metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
            table = pa.table(
                {"text": ["a", "b"], "label": [1, 0], "tokens": [["a"], ["b", "c"]], "tags": [[0], [1, 0]]}
            )
            path = tmp_path / f"{kind}.parquet"
            pq.write_table(table.replace_schema_metadata(metadata), path)
            assert prepare(path).names == ["pos", "neg"]
            assert prepare(path, TAGS).names == [["O"], ["B-PER", "O"]]
        rows = pa.table({"text": ["a", "b", "c", "d"], "label": [1, -1, 0, 7]}).replace_schema_metadata(metadata)
        pq.write_table(rows, tmp_path / "odd.parquet")
        assert "row 2: label is missing" in refused(prepare, tmp_path / "odd.parquet")
        found = prepare(tmp_path / "odd.parquet", {**REVIEWS, "labels": ["neg", "pos"]}, on_error="quarantine")
        assert [(row, code) for row, code, _ in found.rejected] == [(2, "bad_target"), (4, "unknown_label")]

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (0.37, "decimal number"),
            ("3.5", "decimal number"),
            ("nan", "missing"),
            ("None", "missing"),
            (float("nan"), "missing"),
            (None, "missing"),
            ({"a": 1}, "an object"),
            ([["a"]], "list"),
            ("['a', 'b']", "task.multi_label"),
        ],
    )
    def test_what_is_no_label(self, tmp_path, prepare, value, says):
        rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": value}]
        path = lines(tmp_path / "a.jsonl", rows)
        message = refused(prepare, path)
        assert f"{path}, row 3: label " in message and says in message
        assert prepare(path, on_error="quarantine").labels == ["x", "y"]

    def test_what_is_declared_is_a_label(self, tmp_path, prepare):
        rows = [{"text": "a", "label": label} for label in ("None", "0.5", 0.5, "x")]
        task = {**REVIEWS, "labels": ["None", "0.5", "x"]}
        assert prepare(lines(tmp_path / "a.jsonl", rows), task).names == ["None", "0.5", "0.5", "x"]

    def test_bytes(self, tmp_path, prepare):
        path = write_parquet(tmp_path / "a.parquet", [{"text": "a", "label": b"x"}, {"text": "b", "label": b"y"}])
        assert "row 1: label is b'x', which is bytes" in refused(prepare, path)
        path = write_parquet(tmp_path / "b.parquet", [{"text": b"a", "label": "x"}, {"text": b"b", "label": "y"}])
        assert "row 1: text is b'a', which is bytes" in refused(prepare, path)

    def test_a_single_class(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t {i},a\n" for i in range(60)))
        assert "only label" in (message := refused(prepare, path)) and "'a'" in message and "label_column" in message
        rows = [{"tokens": ["a", "b"], "tags": ["O", "O"]}] * 3
        assert "only label" in refused(prepare, lines(tmp_path / "b.jsonl", rows), TAGS)

    def test_normal_forms_are_one_word(self, tmp_path, prepare):
        rows = [{"text": "a", "label": NFC}, {"text": "b", "label": NFD}, {"text": "c", "label": "x"}]
        path = lines(tmp_path / "a.jsonl", rows)
        assert prepare(path).labels == [NFC, "x"]
        assert prepare(path, {**REVIEWS, "labels": ["x", NFD]}).names == [NFC, NFC, "x"]

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            (["0", "1", "2", "-1"] * 3, ["'-1' (3 times)"]),
            (["pos", "neg", "pos ", "Pos"] * 3, ["'pos' (3 times)", "'pos ' (3 times)", "'Pos' (3 times)"]),
            ([f"id{i}" for i in range(60)], ["60 different labels in 60"]),
        ],
    )
    def test_what_is_suspicious_is_said(self, tmp_path, prepare, labels, says):
        rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
        (remark,) = prepare(lines(tmp_path / "a.jsonl", rows)).remarks
        assert all(word in remark for word in says)

    def test_what_is_usual_is_not_remarked(self, tmp_path, prepare):
        assert prepare(write_reviews(tmp_path / "a.parquet", 40, 0)).remarks == []


class TestSeveralLabels:
    TASK = {**REVIEWS, "multi_label": True}

    def test_lists(self, tmp_path, prepare):
        rows = [{"text": "x", "label": ["a"]}, {"text": "y", "label": ["a", "b"]}, {"text": "z", "label": []}]
        assert prepare(lines(tmp_path / "a.jsonl", rows), self.TASK).names == [["a"], ["a", "b"], []]

    @pytest.mark.parametrize("cell", ["\"['a', 'b']\"", '"[""a"", ""b""]"', "\"['a','b',]\""])
    def test_lists_as_text(self, tmp_path, prepare, cell):
        path = write(tmp_path / "a.csv", f"text,label\nx,{cell}\ny,['a']\nz,[]\n")
        assert prepare(path, self.TASK).names == [["a", "b"], ["a"], []]

    def test_a_list_as_numpy_writes_it(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", "text,label\nx,['a' 'b']\ny,['a']\n")
        assert f"{path}, row 2: " in (message := refused(prepare, path, self.TASK)) and "list" in message

    def test_separated(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", "text,label\nx,a|b\ny, a \nz,[]\n")
        message = refused(prepare, path, self.TASK)
        assert f"{path}, row 2: " in message and "task.label_separator='|'" in message
        assert prepare(path, {**self.TASK, "label_separator": "|"}).names == [["a", "b"], ["a"], []]
        path = write(tmp_path / "b.csv", "text,label\nx,a||b\ny,a\n")
        assert "row 2: label is missing" in refused(prepare, path, {**self.TASK, "label_separator": "|"})

    def test_a_label_with_a_comma_that_is_declared(self, tmp_path, prepare):
        path = write(tmp_path / "a.csv", 'text,label\nx,"food, drink"\ny,other\n')
        task = {**self.TASK, "labels": ["food, drink", "other"]}
        assert prepare(path, task).names == [["food, drink"], ["other"]]


class TestConll:
    def test_comments(self, tmp_path, prepare):
        one = "# id 6d6f-{i}\tdomain=train\nthe _ _ O\ngreat _ _ B-CW\nescape _ _ I-CW\n\n"
        path = write(tmp_path / "a.conll", "".join(one.format(i=i) for i in range(6)))
        found = prepare(path, TAGS)
        assert found.labels == ["O", "B-CW", "I-CW"] and found.names == [["O", "B-CW", "I-CW"]] * 6

    @pytest.mark.parametrize(
        "comment", ["# sent_id = 4", "# text", "#", "#begin document (bc/cctv); part 000", "# a b c d"]
    )
    def test_other_comments(self, tmp_path, prepare, comment):
        path = write(tmp_path / "a.conll", f"{comment}\nAda\tB-PER\nin\tO\n\n{comment}\n#\tO\nin\tO\n")
        assert prepare(path, TAGS).names == [["B-PER", "O"], ["O", "O"]]

    def test_a_word_that_begins_with_a_hash_is_kept(self, tmp_path, prepare):
        path = write(tmp_path / "a.conll", "#love O\nit B-X\n\n# O\n1 O\n")
        assert prepare(path, TAGS).names == [["O", "B-X"], ["O", "O"]]

    def test_tags_first(self, tmp_path, prepare):
        path = write(tmp_path / "a.conll", "".join(f"O\twhat\nO\tmovies\nB-GENRE\tcomedy{i}\n\n" for i in range(6)))
        message = refused(prepare, path, TAGS)
        assert str(path) in message and "column 1" in message and "data.train.tag_column" in message
        found = prepare(path, TAGS, train={"word_column": 2, "tag_column": 1})
        assert found.names == [["O", "O", "B-GENRE"]] * 6

    def test_numbers_first(self, tmp_path, prepare):
        path = write(tmp_path / "a.conll", "".join(f"1\tMeier{i}\tB-PER\tO\n2\tsagte\tO\tO\n\n" for i in range(6)))
        message = refused(prepare, path, TAGS)
        assert "column 1" in message and "numbers the words" in message and "data.train.word_column" in message
        message = refused(prepare, path, TAGS, train={"word_column": 2})
        assert "column 3 has other tags" in message
        found = prepare(path, TAGS, train={"word_column": 2, "tag_column": 3})
        assert found.names == [["B-PER", "O"]] * 6
        assert prepare(path, TAGS, train={"word_column": 2, "tag_column": -2}).names == found.names

    def test_a_column_of_words_is_not_one_of_tags(self, tmp_path, prepare):
        text = "".join(f"word{i}\tlemma{i}\n" + "\n" * (i % 5 == 4) for i in range(120))
        assert "mostly different values" in refused(prepare, write(tmp_path / "a.conll", text), TAGS)

    def test_parts_of_speech_have_no_o(self, tmp_path, prepare):
        text = "".join(f"word{i}\t{('NN', 'VB', 'DT')[i % 3]}\n" + "\n" * (i % 5 == 4) for i in range(40))
        assert prepare(write(tmp_path / "a.conll", text), TAGS).labels == ["DT", "NN", "VB"]

    def test_a_column_that_is_not_there(self, tmp_path, prepare):
        path = write(tmp_path / "a.conll", "a\tO\nb\tB-X\n")
        assert "row 1: line 1 has 2 columns" in refused(prepare, path, TAGS, train={"tag_column": 5})

    @pytest.mark.parametrize("blank", [" ", "\u00a0", "\u2009"])
    def test_a_word_with_a_blank(self, tmp_path, prepare, blank):
        path = write(tmp_path / "a.conll", f"10{blank}000\tB-NUM\nx\tO\n\nNew{blank}York\tB-LOC\n")
        assert prepare(path, TAGS).names == [["B-NUM", "O"], ["B-LOC"]]

    def test_a_word_with_a_no_break_space_beside_blanks(self, tmp_path, prepare):
        assert prepare(write(tmp_path / "a.conll", "10\u00a0000 B-NUM\nx O\n"), TAGS).names == [["B-NUM", "O"]]

    def test_the_line_that_is_wrong_is_named(self, tmp_path, prepare):
        path = write(tmp_path / "a.conll", "a O\nb B-X\n\nNew York B-LOC\nc O\n")
        assert f"{path}, row 4: line 4 has 3 columns" in refused(prepare, path, TAGS)

    def test_an_empty_word(self, tmp_path, prepare):
        path = write(tmp_path / "a.conll", "a\tO\n\u3000\tO\nb\tB-X\n")
        assert f"{path}, row 1: tokens holds an empty word" in refused(prepare, path, TAGS)


class TestFiles:
    def test_a_file_in_two_splits(self, tmp_path, prepare):
        for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
            write_reviews(tmp_path / "hub" / f"{name}-00000.parquet", 10, seed)
        held_out = str(tmp_path / "hub" / "validation-00000.parquet")
        message = refused(prepare, tmp_path / "hub", validation={"path": held_out})
        assert all(word in message for word in (held_out, "data.train.path", "data.validation.path"))
        found = prepare(tmp_path / "hub" / "train-*.parquet", validation={"path": held_out})
        assert len(found.samples) == 20

    def test_one_file_by_two_names(self, tmp_path, prepare):
        path = write_reviews(tmp_path / "a.parquet", 10, 0)
        (tmp_path / "link.parquet").symlink_to(path)
        (tmp_path / "folder").symlink_to(tmp_path)
        for other in ("link.parquet", "folder/a.parquet", "./a.parquet"):
            assert "a file belongs to one split" in refused(prepare, path, validation={"path": str(tmp_path / other)})
        assert "twice" in refused(prepare, path, train={"path": [path, str(tmp_path / "link.parquet")]})
        assert "twice" in refused(prepare, path, train={"path": [path, f"file://{path}"]})

    @pytest.mark.parametrize("pattern", ["", "/*/*.parquet", "/**/*.parquet", "uri", "uri/**/*.parquet"])
    def test_hidden_folders(self, tmp_path, prepare, pattern):
        for folder in ("a", ".ipynb_checkpoints", "_temporary/0", "a/_delta_log", "a/.cache"):
            write_reviews(tmp_path / "x" / folder / "part.parquet", 10, 0)
        root = f"file://{tmp_path}/x" if pattern.startswith("uri") else f"{tmp_path}/x"
        assert len(prepare(root + pattern.removeprefix("uri")).samples) == 10

    def test_a_hidden_folder_that_is_named(self, tmp_path, prepare):
        write_reviews(tmp_path / "_data" / "part.parquet", 10, 0)
        for path in ("_data", "_data/*.parquet", "*/part.parquet"):
            if path.startswith("*"):
                assert "begins with . or _" in refused(prepare, tmp_path / path)
            else:
                assert len(prepare(tmp_path / path).samples) == 10
        assert len(prepare(tmp_path / "_*/*.parquet").samples) == 10

    @pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "conll"])
    @pytest.mark.parametrize("num_bytes", ["none", "some"])
    def test_a_file_without_rows_is_passed_over(self, tmp_path, prepare, ending, num_bytes, caplog):
        rows = {"csv": "text,label\na,x\nb,y\n", "jsonl": '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'}
        empty = {"csv": "text,label\n", "jsonl": "\n", "conll": "\n-DOCSTART- O\n\n"}
        folder, task = tmp_path / "x", TAGS if ending == "conll" else REVIEWS
        if ending == "parquet":
            write_parquet(folder / "1.parquet", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
            if num_bytes == "some":
                pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "0.parquet")
        else:
            write(folder / f"1.{ending}", rows.get(ending, "a O\nb B-X\n"))
            if num_bytes == "some":
                write(folder / f"0.{ending}", empty[ending])
        if num_bytes == "none":
            write(folder / f"0.{ending}", "")
        assert len(prepare(folder, task).samples) in (1, 2)
        assert "data.train.path: 1 of 2 files has no rows and is passed over" in caplog.text

    def test_json_beside_other_files_describes_them(self, tmp_path, prepare):
        write_reviews(tmp_path / "x" / "a.parquet", 10, 0)
        write(tmp_path / "x" / "dataset_info.json", "{}")
        assert len(prepare(tmp_path / "x").samples) == 10

    @pytest.mark.parametrize("name", ["a b", "ts=12%3A00", "\u00fc\u4e2d", "a%20b", "a#b", "a+b", "100%"])
    def test_uris_of_any_name(self, tmp_path, prepare, name):
        write_reviews(tmp_path / name / f"{name}.parquet", 10, 0)
        for path in (f"{name}/{name}.parquet", name, f"{name}/*.parquet"):
            assert len(prepare(f"file://{tmp_path}/{path}").samples) == 10

    def test_a_uri_in_its_percent_encoded_spelling(self, tmp_path, prepare):
        write_reviews(tmp_path / "a b.parquet", 10, 0)
        assert len(prepare(f"file://{tmp_path}/a%20b.parquet").samples) == 10


class TestBeforeRay:
    """`raytrain plan` reads no more than the check of the sources does."""

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (csv_of({12: '"What a movie said the man,neg'}), "row 12: .*quote"),
            (csv_of({12: "text,nan", 14: ",pos"}), r"row 12: .*missing.* \(1 more bad row after"),
            (csv_of({12: ",pos"}), "row 12: text is empty"),
        ],
    )
    def test_a_broken_row_is_found_by_the_check(self, tmp_path, text, says):
        config = RunConfig.model_validate(plain(write(tmp_path / "a.csv", text)))
        with pytest.raises(DataError, match=rf"a\.csv, {says}"):
            check_sources(config.data, make_task(config.task, 32))


class TestAdvice:
    """What a refusal advises can be done, and would help."""

    CONLL = "".join(f"w{i} {('O', 'B-X')[i % 2]}\n" + "\n" * (i % 5 == 4) for i in range(40))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.txt", CONLL),
            ("a.txt", "a O\nb B-X\n"),
            ("a.tsv", CONLL.replace(" ", "\t")),
            ("a.txt", "a X\nb Y\n\nc X\n"),
        ],
    )
    def test_words_and_tags_under_another_ending(self, tmp_path, prepare, name, text):
        path = write(tmp_path / name, text)
        message = refused(prepare, path, TAGS)
        assert "set data.train.format=conll" in message and "tokens_column" not in message
        assert prepare(path, TAGS, train={"format": "conll"}).samples

    def test_a_txt_file_of_texts_is_not_taken_for_tags(self, tmp_path, prepare):
        message = refused(prepare, write(tmp_path / "a.txt", "one text\nanother\n\nand one more\n"), TAGS)
        assert "conll" not in message and "each line of a txt file is a text" in message

    @pytest.mark.parametrize("column", ["text", "content"])
    def test_splits_with_different_columns(self, tmp_path, prepare, column):
        """Naming the other column would only have the other file refused."""
        train = write(tmp_path / "a.csv", "text,label\na,x\nb,y\n")
        other = write(tmp_path / "b.csv", "content,label\na,x\nb,y\n")
        message = refused(prepare, train, {**REVIEWS, "text_column": column}, validation={"path": str(other)})
        assert f"has no column {column!r}" in message and "rename it in one of them" in message
        assert (str(train) in message) and (str(other) in message) and "Set task.text_column" not in message

    @pytest.mark.parametrize(
        ("task", "text"),
        [
            ({**REVIEWS, "label_column": "score"}, "text,score\n" + "good,0.5\n" * 700),
            ({**REVIEWS, "labels": ["a", "b"]}, "text,label\n" + "good,0.5\n" * 700),
            ({**REVIEWS, "text_column": "empty"}, "empty,label\n" + ",x\n,y\n" * 350),
        ],
    )
    def test_where_every_row_is_bad_the_column_is_wrong(self, tmp_path, prepare, task, text):
        message = refused(prepare, write(tmp_path / "a.csv", text), task)
        assert "(at least 199 more bad rows after it)" in message  # only 200 were read
        assert "None of the 200 rows that were read can be used" in message and "quarantine" not in message

    @pytest.mark.parametrize("row", ["text,other", "text,nan", "text,0.5"])
    @pytest.mark.parametrize("is_evaluation", [True, False])
    def test_an_evaluation_keeps_the_labels(self, tmp_path, row, is_evaluation):
        raw = plain(write(tmp_path / "a.csv", csv_of({12: row})))
        raw |= {"task": {**REVIEWS, "labels": ["neg", "pos"]}, "data": {**raw["data"], "test": raw["data"]["train"]}}
        raw["data"] = {**raw["data"], "train": {"path": str(write(tmp_path / "b.csv", csv_of({12: row})))}}
        config = RunConfig.model_validate(raw)
        with pytest.raises(DataError, match="row 12") as refusal:
            check_sources(config.data, make_task(config.task, 32), "test" if is_evaluation else None)
        message = str(refusal.value)
        assert ("An evaluation takes task.labels and the kind of labels from the model" in message) == is_evaluation
        assert "data.on_error=quarantine" in message and not (is_evaluation and "Add it to task.labels" in message)


def plain(path: Path) -> dict[str, Any]:
    return {
        "name": "a",
        "task": REVIEWS,
        "model": {"config": TINY_BERT, "tokenizer": "t"},
        "data": {"train": {"path": str(path)}},
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.train.delimiter=';;'", "data.train.delimiter.*one character.*';;'"),
        ("data.train.delimiter=a", "data.train.delimiter.*not a letter"),
        ("data.train.encoding=utf-99", "data.train.encoding.*'utf-99'.*cp1252"),
        ("data.train.encoding=base64", "data.train.encoding.*'base64'"),
        ("data.validation={path: x.conll, tag_column: 0}", "data.validation.tag_column.*there is no column 0"),
        ("task.label_separator='|'", "task.label_separator.*task.multi_label=true"),
        (
            "task={kind: sequence_classification, multi_label: true, label_separator: ' '}",
            "task.label_separator.*blank",
        ),
    ],
)
def test_options_that_can_not_be_right(tmp_path, change, says):
    with pytest.raises(ConfigError) as refusal:
        parse_config(plain(tmp_path / "a.csv"), [change])
    assert re.search(says, str(refusal.value).replace("\n", " ")), str(refusal.value)


def test_the_same_mistake_is_counted_once_whatever_its_numbers() -> None:
    reasons = [f"{counted(n, 'field')} where the header has 2" for n in (1, 3, 4)] + ["label is missing"]
    first, second, both = Tally(), Tally(), Tally()
    for i, reason in enumerate(reasons):
        (first if i < 2 else second).add("train", BadRow("a.csv", i, reason))
    for one in (first, second):
        both.merge(json.loads(json.dumps(one.report())))
    assert [line.split(":")[0] for line in both.summary()] == ["3 x unreadable", "1 x unreadable"]
    assert "(a.csv, row 0; a.csv, row 1; a.csv, row 2)" in both.summary()[0]
    assert (both.count(), both.count("test"), both.summary("test")) == (4, 0, [])


def test_the_tally_does_not_grow_with_the_rows() -> None:
    tally = Tally()
    for i in range(2_000):
        tally.add("train", BadRow("a.csv", i, "failed: " + chr(0x4E00 + i), RowError.CUSTOM))
    assert len(tally.report()) < 60 and tally.count() == 2_000
    assert tally.summary()[0].startswith("1,950 x custom: other reasons (a.csv, row 50;")
