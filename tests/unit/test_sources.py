"""Every source format, every way it can be broken, and what the user is told. No Ray."""

import csv
import gzip
import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.config import DataConfig, SequenceClassificationConfig, SourceConfig, TokenClassificationConfig
from raytrain.data.listing import list_files
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import CHUNK_ROWS, ROW, BadRow
from raytrain.data.sources import check_sources, read_tasks
from raytrain.errors import DataError
from raytrain.tasks import make_task
from tests.tiny import make_reviews, make_sentences, write_conll, write_parquet, write_reviews

REVIEWS = make_task(SequenceClassificationConfig(kind="sequence_classification"), 32)
TAGS = make_task(TokenClassificationConfig(kind="token_classification"), 32)


# A multiword token (1-2), an empty node (2.1), a form with a space, a word that looks like a comment in column 2.
CONLLU = """# newdoc id = a
# text = del 20 000
1-2\tdel\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\t_\t_\t0\troot\t_\t_
2\tel\tel\tDET\t_\t_\t1\tdet\t_\t_
2.1\tes\tser\tVERB\t_\t_\t_\t_\t_\t_
3\t20 000\t20000\tNUM\t_\t_\t1\tnummod\t_\t_

# newdoc
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


def data(path: Any, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"train": {"path": path}, **options})


def read(path: Any, format: str = "auto") -> tuple[list[dict[str, Any]], list[BadRow]]:
    """All rows of a source, and its bad rows."""
    source = SourceConfig.model_validate({"path": str(path), "format": format})
    rows: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for task in read_tasks({"train": list_files(source, "data.train")}):
        for chunk in read_chunks(task):
            assert len(chunk.table) <= CHUNK_ROWS
            rows += chunk.table.to_pylist()
            bad += chunk.bad_rows
    return rows, bad


def write_text(path: Any, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def write_lines(path: Any, rows: list[dict[str, Any]]) -> str:
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_delimited(path: Any, rows: list[dict[str, str]], delimiter: str = ",") -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


class TestFormats:
    def test_parquet_in_several_tasks_keeps_row_numbers(self, tmp_path, monkeypatch):
        rows = make_reviews(2_500, 0)
        path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=300)
        monkeypatch.setattr("raytrain.data.sources.TASK_ROWS", 700)
        tasks = read_tasks({"train": list_files(SourceConfig(path=path), "data.train")})
        assert [task.row_groups for task in tasks] == [(0, 3), (3, 6), (6, 9)]
        assert read(path)[0] == [{**row, ROW: i} for i, row in enumerate(rows, 1)]

    def test_large_parquet_comes_in_chunks(self, tmp_path):
        path = write_parquet(tmp_path / "a.parquet", make_reviews(9_000, 0), row_group_size=9_000)
        assert [row[ROW] for row in read(path)[0]] == list(range(1, 9_001))

    @pytest.mark.parametrize("ending", ["jsonl", "ndjson", "JSONL"])
    def test_jsonl(self, tmp_path, ending):
        rows = make_reviews(CHUNK_ROWS + 10, 0)
        path = write_lines(tmp_path / f"a.{ending}", rows)
        assert read(path) == ([{**row, ROW: i} for i, row in enumerate(rows, 1)], [])

    def test_csv(self, tmp_path):
        rows = [{"text": 'a "quoted", one', "label": "x"}, {"text": "tab\there", "label": "y"}]
        path = write_delimited(tmp_path / "a.csv", rows)
        assert read(path) == ([{**row, ROW: i} for i, row in enumerate(rows, 2)], [])

    def test_a_quote_in_tsv_is_a_quote(self, tmp_path):
        rows = [{"text": '"an inch, 1"', "label": "x"}, {"text": '"alone', "label": "y"}, {"text": "b", "label": '5"'}]
        lines = "".join("{text}\t{label}\n".format(**row) for row in rows)
        path = write_text(tmp_path / "a.tsv", "text\tlabel\n" + lines)
        assert read(path) == ([{**row, ROW: i} for i, row in enumerate(rows, 2)], [])

    def test_csv_rows_are_lines_of_the_file_also_after_a_quoted_line_end(self, tmp_path):
        path = write_text(tmp_path / "a.csv", 'text,label\n"two\nlines",x\nnext,y\nbroken\n')
        rows, bad = read(path)
        assert [(row["text"], row[ROW]) for row in rows] == [("two\nlines", 2), ("next", 4)]
        assert [row.row for row in bad] == [5]

    def test_text(self, tmp_path):
        path = write_text(tmp_path / "a.txt", "one\n\n  three \r\nfour")
        assert read(path)[0] == [{"text": "one", ROW: 1}, {"text": "  three ", ROW: 3}, {"text": "four", ROW: 4}]

    def test_conll(self, tmp_path):
        path = write_conll(tmp_path / "a.conll", 25, 3)
        rows, bad = read(path)
        assert [list(zip(row["tokens"], row["tags"], strict=True)) for row in rows] == make_sentences(25, 3)
        assert [row["document"] for row in rows] == [1] * 10 + [2] * 10 + [3] * 5
        assert bad == []
        lines = open(path, encoding="utf-8").read().split("\n")
        assert all(lines[row[ROW] - 1].split()[0] == row["tokens"][0] for row in rows)

    def test_conllu(self, tmp_path):
        path = write_text(tmp_path / "a.conllu", CONLLU)
        check_sources(data(path), TAGS)
        rows, bad = read(path)
        assert bad == []
        assert rows == [
            {"tokens": ["de", "el", "20 000"], "tags": ["ADP", "DET", "NUM"], "document": 1, ROW: 3},
            {"tokens": ["#"], "tags": ["SYM"], "document": 2, ROW: 10},
        ]
        assert read(write_text(tmp_path / "a.txt", CONLLU), "conllu")[0] == rows

    def test_conllu_that_is_broken(self, tmp_path):
        blank = "\t_" * 6
        lines = ["1 a _ X", "", f"a\tb\t_\tX{blank}", "", f"1\tb\t_\t_{blank}", "", f"1\tb\t_\tX{blank}"]
        rows, bad = read(write_text(tmp_path / "a.conllu", "\n".join(lines)))
        assert [row["tokens"] for row in rows] == [["b"]]
        assert [row.row for row in bad] == [1, 3, 5]
        assert (
            "has 10, separated by tabs" in bad[0].reason
            and "number of a word" in bad[1].reason
            and "UPOS" in bad[2].reason
        )
        with pytest.raises(DataError, match="no rows"):
            check_sources(data(write_text(tmp_path / "b.conllu", "# newdoc\n\n")), TAGS)

    def test_conll_in_a_txt_file_with_crlf_and_without_last_blank_line(self, tmp_path):
        path = write_text(tmp_path / "a.txt", "-DOCSTART- O\r\n\r\nAda B-PER\r\n\r\n# O\r\nb O")
        rows, bad = read(path, "conll")
        assert [(row["tokens"], row["tags"], row[ROW]) for row in rows] == [
            (["Ada"], ["B-PER"], 3),
            (["#", "b"], ["O", "O"], 5),
        ]
        assert bad == []

    @pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz"])
    def test_gzip(self, tmp_path, ending):
        rows = make_reviews(50, 0)
        name = ending.removesuffix(".gz")
        plain = (write_lines if name == "jsonl" else write_delimited)(tmp_path / f"plain.{name}", rows)
        path = write_text(tmp_path / f"a.{ending}", gzip.compress(open(plain, "rb").read()))
        assert [row["text"] for row in read(path)[0]] == [row["text"] for row in rows]

    @pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.conll"])
    def test_byte_order_mark_is_no_part_of_the_first_word(self, tmp_path, name):
        body = {"a.csv": "text,label\nx,y\n", "a.jsonl": '{"text": "x"}\n', "a.txt": "x\n", "a.conll": "x O\n"}[name]
        rows, bad = read(write_text(tmp_path / name, b"\xef\xbb\xbf" + body.encode()))
        assert bad == []
        assert rows[0].get("text", rows[0].get("tokens")) in ("x", ["x"])

    def test_a_replacement_character_in_the_data_is_valid(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"text": "caf\ufffd", "label": "x"}])
        path_raw = write_text(tmp_path / "b.jsonl", '{"text": "caf\ufffd", "label": "x"}\n')
        assert read(path)[0][0]["text"] == read(path_raw)[0][0]["text"] == "caf\ufffd"

    def test_a_field_of_a_megabyte(self, tmp_path):
        path = write_delimited(tmp_path / "a.csv", [{"text": "x" * 1_000_000, "label": "a"}])
        assert len(read(path)[0][0]["text"]) == 1_000_000


class TestFiles:
    def test_folder_glob_and_list(self, tmp_path):
        for name in ("b.parquet", "a.parquet", "sub/c.parquet"):
            write_reviews(tmp_path / name, 3, 0)
        write_text(tmp_path / "README.md", "no data")
        write_text(tmp_path / "_SUCCESS", "")

        def names(path: Any) -> list[str]:
            return [
                file.path.removeprefix(f"{tmp_path}/") for file in list_files(SourceConfig(path=path), "data.train")
            ]

        assert names(str(tmp_path)) == ["a.parquet", "b.parquet", "sub/c.parquet"]
        assert names(f"{tmp_path}/*.parquet") == ["a.parquet", "b.parquet"]
        assert names(f"{tmp_path}/**/*.parquet") == ["a.parquet", "b.parquet", "sub/c.parquet"]
        assert names([f"{tmp_path}/sub", f"{tmp_path}/a.parquet"]) == ["sub/c.parquet", "a.parquet"]

    def test_uri(self, tmp_path):
        write_reviews(tmp_path / "a.parquet", 3, 0)
        assert len(read(f"file://{tmp_path}/a.parquet")[0]) == 3
        assert len(read(f"file://{tmp_path}")[0]) == 3

    def test_glob_behind_a_uri(self, tmp_path):
        write_reviews(tmp_path / "a.parquet", 3, 0)
        write_reviews(tmp_path / "b.parquet", 4, 0)
        assert len(read(f"file://{tmp_path}/*.parquet")[0]) == 7

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write_reviews(tmp_path / "a.parquet", 3, 0)
        assert len(read("~/a.parquet")[0]) == 3
        assert len(read("~/*.parquet")[0]) == 3

    def test_identity_of_a_file(self, tmp_path, monkeypatch):
        path = write_reviews(tmp_path / "a.parquet", 3, 0)
        monkeypatch.chdir(tmp_path)
        (file,) = list_files(SourceConfig(path="a.parquet"), "data.train")
        assert file.path == path
        assert file.num_bytes == (tmp_path / "a.parquet").stat().st_size
        assert file.modified_at

    @pytest.mark.parametrize("option", ["validation", "test"])
    def test_every_split_is_checked(self, tmp_path, option):
        path = write_reviews(tmp_path / "a.parquet", 3, 0)
        with pytest.raises(DataError, match=rf"data\.{option}\.path .*gone\.parquet"):
            check_sources(data(path, **{option: {"path": f"{tmp_path}/gone.parquet"}}), REVIEWS)

    def test_a_check_of_a_large_file_takes_under_a_second(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", make_reviews(200_000, 0))
        started_at_s = time.monotonic()
        check_sources(data(path), REVIEWS)
        assert time.monotonic() - started_at_s < 1.0


class TestRefusals:
    """What is wrong is found before Ray starts, and the message says where and what to do."""

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            (
                "revews.parquet",
                ["data.train.path", "revews.parquet", "no such file", "did you mean", "reviews.parquet"],
            ),
            ("*.zip", ["data.train.path", "*.zip", "matches no file"]),
            ("empty_folder", ["data.train.path", "empty_folder", "no file", ".jsonl"]),
            ("empty.parquet", ["data.train.path", "empty.parquet", "0 bytes"]),
            ("empty.csv", ["data.train.path", "empty.csv", "0 bytes"]),
            ("half.parquet", ["data.train.path", "half.parquet", "truncated"]),
            ("no_rows.parquet", ["data.train.path", "no_rows.parquet", "no rows"]),
            ("header_only.csv", ["data.train.path", "header_only.csv", "no rows"]),
            ("blank.jsonl", ["data.train.path", "blank.jsonl", "no rows"]),
            ("blank.conll", ["data.train.path", "blank.conll", "no rows"]),
            ("list.jsonl", ["data.train.path", "list.jsonl", "object"]),
            ("other.xlsx", ["data.train.path", "other.xlsx", "data.train.format", "parquet", "csv"]),
            ("columns.parquet", ["data.train.path", "columns.parquet", "'label'", "'labels'", "task.label_column"]),
            ("columns.csv", ["data.train.path", "columns.csv", "'text'", "'Text'", "task.text_column"]),
            ("columns.jsonl", ["data.train.path", "columns.jsonl", "'label'", "'target'", "task.label_column"]),
            ("plain.txt", ["data.train.path", "plain.txt", "'label'", "'text'"]),
            ("not_gzip.jsonl.gz", ["data.train.path", "not_gzip.jsonl.gz"]),
            ("ftp://host/a.csv", ["data.train.path", "ftp://host/a.csv"]),
            ([], ["data.train.path", "empty"]),
        ],
        ids=str,
    )
    def test_message(self, tmp_path, path, words):
        good = write_reviews(tmp_path / "reviews.parquet", 10, 0)
        (tmp_path / "empty_folder").mkdir()
        for name in ("empty.parquet", "empty.csv"):
            write_text(tmp_path / name, "")
        write_text(tmp_path / "half.parquet", open(good, "rb").read()[:-40])
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "no_rows.parquet")
        write_text(tmp_path / "header_only.csv", "text,label\n")
        write_text(tmp_path / "blank.jsonl", "\n \n")
        write_text(tmp_path / "blank.conll", "\n-DOCSTART- O\n\n")
        write_text(tmp_path / "list.jsonl", "[1, 2]\n")
        write_text(tmp_path / "other.xlsx", "x")
        write_parquet(tmp_path / "columns.parquet", [{"text": "a", "labels": "b"}])
        write_text(tmp_path / "columns.csv", "Text,label\na,b\n")
        write_text(tmp_path / "columns.jsonl", '{"text": "a", "target": 1}\n')
        write_text(tmp_path / "plain.txt", "a\n")
        write_text(tmp_path / "not_gzip.jsonl.gz", '{"text": "a", "label": 1}\n')
        full = path if isinstance(path, list) or "://" in path else f"{tmp_path}/{path}"
        task = TAGS if str(path).endswith(".conll") else REVIEWS
        with pytest.raises(DataError) as refusal:
            check_sources(data(full), task)
        missing = [word for word in words if word not in str(refusal.value)]
        assert not missing, str(refusal.value)

    def test_no_permission(self, tmp_path, monkeypatch):
        path = write_reviews(tmp_path / "a.parquet", 3, 0)

        def refuse(*_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(
            "raytrain.data.readers.parquet.pq.ParquetFile", refuse
        )  # tests may run as root, who may read all
        with pytest.raises(DataError, match=r"data\.train\.path.*permission.*a\.parquet"):
            check_sources(data(path), REVIEWS)


class TestBadRows:
    """A row that can't be parsed costs that row, and is named by file and line."""

    def test_jsonl(self, tmp_path):
        lines = [b'{"text": "a"}', b'{"text": ', b"", b"[1]", b'{"text": "\xff"}', b'{"text": "b"}', b'{"text": "hal']
        path = write_text(tmp_path / "a.jsonl", b"\n".join(lines))
        rows, bad = read(path)
        assert [(row["text"], row[ROW]) for row in rows] == [("a", 1), ("b", 6)]
        assert [(row.path, row.row) for row in bad] == [(path, 2), (path, 4), (path, 5), (path, 7)]
        assert "JSON" in bad[0].reason and "object" in bad[1].reason and "UTF-8" in bad[2].reason

    def test_jsonl_whose_first_line_is_broken(self, tmp_path):
        path = write_text(tmp_path / "a.jsonl", '{"text": \n{"text": "a", "label": "x"}\n')
        check_sources(data(path, on_error="quarantine"), REVIEWS)
        assert [row.row for row in read(path)[1]] == [1]

    def test_jsonl_escape_of_half_a_character(self, tmp_path):
        path = write_text(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "cut \\ud83d"}\n{"text": "b"}\n')
        rows, bad = read(path)
        assert [row["text"] for row in rows] == ["a", "b"]
        assert [row.row for row in bad] == [2]

    def test_jsonl_column_that_only_some_rows_have(self, tmp_path):
        rows = [{"text": "a", "label": "x"}] * CHUNK_ROWS + [{"text": "last"}]
        path = write_lines(tmp_path / "a.jsonl", rows)
        (file,) = list_files(SourceConfig(path=path), "data.train")
        last = list(read_chunks(read_tasks({"train": [file]})[0]))[-1]
        encoded_columns = set(REVIEWS.required_columns()) - set(last.table.column_names)
        assert encoded_columns == set(), "the task would find no column where it expects a missing value"

    def test_jsonl_values_of_several_types_keep_their_own(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"label": 1}, {"label": "x"}, {"label": None}, {"label": 2**70}])
        assert [row["label"] for row in read(path)[0]] == [1, "x", None, str(2**70)]

    def test_jsonl_number_too_large_for_arrow(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"id": 2**70}, {"id": 1}])
        assert len(read(path)[0]) == 2

    @pytest.mark.parametrize("ending", ["csv", "tsv"])
    def test_delimited(self, tmp_path, ending):
        separator = {"csv": b",", "tsv": b"\t"}[ending]
        lines = [b"text", b"label"], [b"a", b"x"], [b"short"], [b"a", b"b", b"long"], [b"\xff", b"x"], [b"b", b"y"]
        path = write_text(tmp_path / f"a.{ending}", b"\n".join(separator.join(line) for line in lines))
        rows, bad = read(path)
        assert [(row["text"], row[ROW]) for row in rows] == [("a", 2), ("b", 6)]
        assert [row.row for row in bad] == [3, 4, 5]
        assert "1 field " in bad[0].reason and "3 fields" in bad[1].reason and "UTF-8" in bad[2].reason

    def test_quote_that_is_never_closed(self, tmp_path):
        body = "".join(f"word word,{i}\n" for i in range(50_000))
        path = write_text(tmp_path / "a.csv", 'text,label\nfine,x\n"open,y\n' + body)
        rows, bad = read(path)
        assert [row["text"] for row in rows] == ["fine", *["word word"] * 50_000]
        assert [row.row for row in bad] == [3] and "never closed" in bad[0].reason

    def test_text(self, tmp_path):
        rows, bad = read(write_text(tmp_path / "a.txt", b"a\n\xff\nb\n"))
        assert [row["text"] for row in rows] == ["a", "b"]
        assert [row.row for row in bad] == [2]

    def test_conll(self, tmp_path):
        text = "a X O\nb X O\n\nc\nd X O\n\ne X O\nf O\n\ng X O\n\n\xff X O\n"
        path = write_text(tmp_path / "a.conll", text.encode("latin-1"))
        rows, bad = read(path)
        assert [row["tokens"] for row in rows] == [["a", "b"], ["g"]]
        assert [row.row for row in bad] == [4, 7, 12]
        assert "line 4" in bad[0].reason and "line 8" in bad[1].reason and "UTF-8" in bad[2].reason

    def test_conll_whose_first_line_is_broken(self, tmp_path):
        rows, bad = read(write_text(tmp_path / "a.conll", "alone\n\na O\n\nb O\n"))
        assert [row["tokens"] for row in rows] == [["a"], ["b"]]
        assert [row.row for row in bad] == [1]

    @pytest.mark.parametrize("row_group_size", [100, 1000])
    def test_broken_parquet_page(self, tmp_path, row_group_size):
        path = tmp_path / "a.parquet"
        write_parquet(path, make_reviews(1000, 0), row_group_size)
        raw = bytearray(path.read_bytes())
        raw[200:400] = b"\xff" * 200
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"a\.parquet.*row 1.*broken Parquet"):
            read(path)

    def test_gzip_that_ends_too_soon(self, tmp_path):
        lines = "".join(json.dumps(row) + "\n" for row in make_reviews(5_000, 0)).encode()
        path = write_text(tmp_path / "a.jsonl.gz", gzip.compress(lines)[:-2_000])
        with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
            read(path)
