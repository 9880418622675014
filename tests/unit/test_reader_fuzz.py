"""Whatever rows a file is written from come out as they went in, or as bad rows: never fewer in silence."""

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from raytrain.config import SourceConfig
from raytrain.data.listing import list_files
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import ROW, BadRow
from raytrain.data.sources import read_tasks

FUZZED = settings(max_examples=100, deadline=None)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# What CSV may trip over, more often than chance has it.
HARD_TEXT = st.text(st.sampled_from('ab",;\n\r\t\\ #=\u00a0\u3000\u2028\x1c'), max_size=8)
TEXT = ANY_TEXT | HARD_TEXT
SCALAR = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT
VALUE = SCALAR | st.lists(SCALAR, max_size=3)
WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t \ufeff"), min_size=1, max_size=6)
SENTENCE = st.lists(st.tuples(WORD, st.sampled_from(["O", "B-X", "I-X", "NN", "="])), min_size=1, max_size=4)


def read(name: str, content: str, **options: Any) -> tuple[list[dict[str, Any]], list[BadRow]]:
    """All rows of a file with this content, and its bad rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content.encode())
        source = SourceConfig.model_validate({"path": str(path), **options})
        (task,) = read_tasks({"train": list_files(source, "data.train")})
        chunks = list(read_chunks(task))
    rows = [row for chunk in chunks for row in chunk.table.to_pylist()]
    return rows, [bad for chunk in chunks for bad in chunk.bad_rows]


def delimited(rows: list[tuple[str, str]], delimiter: str, line_end: str, quoting: Any) -> str:
    if any("\r" in text for row in rows for text in row):
        quoting = csv.QUOTE_ALL  # Python's writer does not quote a line end that it does not write itself
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows([("text", "label"), *rows])
    return text.getvalue()


ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=8)
LINE_END = st.sampled_from(["\n", "\r\n"])
QUOTING = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])


@FUZZED
@given(ROWS, st.sampled_from(",;\t|"), LINE_END, QUOTING)
def test_csv(rows: list[tuple[str, str]], delimiter: str, line_end: str, quoting: Any) -> None:
    found, bad = read("a.csv", delimited(rows, delimiter, line_end, quoting), delimiter=delimiter)
    if not bad:
        assert [(row["text"], row["label"]) for row in found] == rows


@FUZZED
@given(ROWS, LINE_END, QUOTING, st.data())
def test_csv_with_a_quote_too_many_or_too_few(
    rows: list[tuple[str, str]], line_end: str, quoting: Any, data: st.DataObject
) -> None:
    rows = [(text.replace("\r", ""), label.replace("\r", "")) for text, label in rows]
    text = delimited(rows, ",", line_end, quoting)
    place = data.draw(st.integers(len(delimited([], ",", line_end, quoting)), len(text)))
    is_quote = text[place : place + 1] == '"'
    broken = text[:place] + text[place + 1 :] if is_quote else f'{text[:place]}"{text[place:]}'
    found, bad = read("a.csv", broken)
    assert bad or len(found) >= len(rows)


@FUZZED
@given(st.lists(st.fixed_dictionaries({"text": VALUE, "label": VALUE}), max_size=8), st.booleans())
def test_json(rows: list[dict[str, Any]], is_ascii: bool) -> None:
    """A list whose items have several types is a bad row; every other value keeps its type and its place."""
    lines = "".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in rows)
    for name, content in (("a.jsonl", lines), ("a.json", json.dumps(rows, ensure_ascii=is_ascii))):
        found, bad = read(name, content)
        assert sorted([row[ROW] for row in found] + [one.row for one in bad]) == list(range(1, len(rows) + 1))
        for row in found:
            written = rows[row[ROW] - 1]
            assert all(is_same(row[column], written[column]) for column in ("text", "label"))


def is_same(found: Any, written: Any) -> bool:
    """Whether a value is the same; 1 may come back as 1.0, and an integer beyond 64 bits as text."""
    if isinstance(written, list):
        return len(found) == len(written) and all(map(is_same, found, written))
    if isinstance(written, bool) or isinstance(found, bool):
        return found is written
    return found == written or (isinstance(written, int) and abs(written) >= 2**63 and found == str(written))


@FUZZED
@example([[("#", "=")]], "\t", False)
@example([[("#", "=")]], "\t", True)
@example([[("#", "=")]], " ", True)
@example([[("#", "O")], [("a", "O"), ("#", "B-X")]], " ", True)
@given(st.lists(SENTENCE, max_size=5), st.sampled_from(["\t", " "]), st.booleans())
def test_conll(sentences: list[list[tuple[str, str]]], separator: str, has_middle: bool) -> None:
    between = f"{separator}_{separator}" if has_middle else separator
    text = "".join("".join(f"{word}{between}{tag}\n" for word, tag in sentence) + "\n" for sentence in sentences)
    found, bad = read("a.conll", text)
    if not bad:
        assert [list(zip(row["tokens"], row["tags"], strict=True)) for row in found] == sentences
