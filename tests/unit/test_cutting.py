"""Where large files are cut does not change their rows, and the read tasks worked on together have equal bytes."""

import tempfile
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raytrain.config import SourceFormat
from raytrain.data import cutting
from raytrain.data.cutting import groups, spans_of
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import Reading, ReadTask, SourceFile
from raytrain.errors import DataError

COMMON = [b"a", b" ", b"\n", b"\n", b"\r\n", b"\r", b"\n\n", "\ufeff".encode(), "\u00e9".encode(), b"\xff"]
PIECES = {
    SourceFormat.TXT: COMMON,
    SourceFormat.JSONL: [*COMMON, b'{"a": 1}\n', b'{"a": "b"}\n'],
    SourceFormat.TSV: [*COMMON, b"\t", b'"', b"a\tb\n"],
    SourceFormat.CSV: [*COMMON, b",", b'"', b'"', b'"a\nb",', b"a,b\n", b'"a""",b\n', b'a, "b"\n'],
    SourceFormat.CONLL: [
        *[b"a O\n", b"a O\n\n", b"a\tb\tO\r\n\r\n", b"-DOCSTART-\n\n", b"-DOCSTART- O\n", b"#\n", b"# a\n"] * 12,
        *COMMON,
    ],
    SourceFormat.CONLLU: [
        *[b"# newdoc\n", b"1\t" + b"\t".join([b"a"] * 9) + b"\n", b"# a\n", b"\n", b"\r\n"] * 12,
        *COMMON,
    ],
}


def rows_of(tasks: list[ReadTask]) -> tuple[list[Any], list[Any]] | str:
    """Rows and bad rows; for a file that can't be read on, what is wrong with it."""
    try:
        chunks = [chunk for task in tasks for chunk in read_chunks(task, ["text", "a", "b", "tokens", "document"])]
    except DataError as error:
        return str(error)
    rows = [row for chunk in chunks for row in chunk.table.to_pylist()]
    return rows, [bad for chunk in chunks for bad in chunk.bad_rows]


def cut(file: SourceFile, num_bytes: int) -> list[ReadTask]:
    (spans,) = spans_of([file], num_bytes)
    assert not spans or [0, *(span.stop for span in spans)] == [*(span.start for span in spans), file.num_bytes]
    return [ReadTask("train", 0, file, span=span) for span in spans] or [ReadTask("train", 0, file)]


@pytest.mark.parametrize("form", list(PIECES))
def test_the_rows_are_those_of_the_whole_file(form: SourceFormat) -> None:
    is_cut: list[bool] = []

    @settings(max_examples=60, deadline=None)
    @example([b"a,b\n"] + [b'"a\nb",', b"a\n"] * 9, 4)
    @example([b"a O\n\n", b"-DOCSTART-\n\n", b"a b O\n\n"] * 9, 8)
    @example([BOM_UTF8, *[b"-DOCSTART- O\n\n", b"a O\n\n", b"b O\n\n"] * 9], 40)
    @example([BOM_UTF8, BOM_UTF8, *[b"-DOCSTART- O\n\n", b"a O\n\n", b"b O\n\n"] * 9], 40)
    @example([BOM_UTF8, *[b"# newdoc\n", b"1\t" + b"\t".join([b"a"] * 9) + b"\n\n"] * 9], 40)
    @given(st.lists(st.sampled_from(PIECES[form]), min_size=20, max_size=60), st.integers(1, 80))
    def holds(pieces: list[bytes], num_bytes: int) -> None:
        content = (b"text,a\n" if form == SourceFormat.CSV else b"") + b"".join(pieces)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            path.write_bytes(content)
            file = SourceFile(str(path), form, len(content), "")
            whole, parts = rows_of([ReadTask("train", 0, file)]), cut(file, num_bytes)
            is_cut.append(len(parts) > 1)
            assert rows_of(parts) == whole

    holds()
    assert sum(is_cut) > len(is_cut) // 10, "most files stay whole: the rows say nothing"


@pytest.mark.parametrize("form", [SourceFormat.JSONL, SourceFormat.CSV, SourceFormat.CONLL])
def test_parts_have_equal_bytes(tmp_path: Path, form: SourceFormat) -> None:
    line = {SourceFormat.JSONL: '{"a": 1}\n', SourceFormat.CSV: '"a ""b"",\n c",1\n', SourceFormat.CONLL: "a O\n\n"}[
        form
    ]
    path = tmp_path / "file"
    path.write_text("text,a\n" * (form == SourceFormat.CSV) + line * 10_000)
    file = SourceFile(str(path), form, path.stat().st_size, "")
    sizes = [task.span.stop - task.span.start for task in cut(file, 4000) if task.span is not None]
    assert len(sizes) == round(file.num_bytes / 4000) and max(sizes[:-1]) - min(sizes[:-1]) < 2 * len(line)


@pytest.mark.parametrize(
    ("name", "reading"), [("a.jsonl.gz", Reading()), ("a.jsonl", Reading(encoding="utf-16")), ("a.JSONL.GZ", Reading())]
)
def test_where_a_line_end_can_be_a_part_of_something_else(tmp_path: Path, name: str, reading: Reading) -> None:
    (tmp_path / name).write_bytes(b"\n" * 10_000)
    file = SourceFile(str(tmp_path / name), SourceFormat.JSONL, 10_000, "", reading)
    assert spans_of([file], 100) == [[]]


def test_a_record_that_needs_lines_of_the_next_part(tmp_path: Path) -> None:
    """One quote inside a field exchanges what is inside and outside of quotes for all rows after it."""
    path = tmp_path / "a.csv"
    path.write_text('text,a\n5" pipe,1\n' + '"two\nlines",1\n' * 200)
    file = SourceFile(str(path), SourceFormat.CSV, path.stat().st_size, "")
    assert rows_of(cut(file, 300)) == rows_of([ReadTask("train", 0, file)])
    assert len(cut(file, 300)) == 1


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=50), st.integers(1, 64))
def test_groups_have_each_task_once(sizes: list[int], num_cpus: int) -> None:
    found = groups(sizes, num_cpus)
    assert sorted(i for group in found for i in group) == list(range(len(sizes)))


def test_groups_have_equal_bytes() -> None:
    """One file has nine tenths of all bytes, and a hundred the rest."""
    total = 512 << 20
    part = cutting.bytes_per_task([SourceFile("", SourceFormat.TXT, total, "")])
    sizes = [part] * (total * 9 // 10 // part) + [total // 1000] * 100
    of_groups = [sum(sizes[i] for i in group) for group in groups(sizes, 8)]
    assert len(of_groups) == 64 and max(of_groups) <= 1.2 * sorted(of_groups)[32]


def test_what_can_not_be_cut_comes_first() -> None:
    assert groups([1 << 20, 1 << 20, 1 << 30, 1 << 20], 100)[0] == range(2, 3)


def test_a_part_of_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 1000)
    file = SourceFile(str(path), SourceFormat.JSONL, path.stat().st_size, "")
    tasks = cut(file, 3000)
    path.write_text('{"a": 1}\n' * 500)
    assert sum(len(chunk.table) for chunk in read_chunks(tasks[0])) > 300
    for task in tasks[1:]:
        with pytest.raises(DataError, match=r"a\.jsonl can.t be read .*it ends before byte \d,\d+, which it had"):
            list(read_chunks(task))
