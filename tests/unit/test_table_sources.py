"""Arrow and Feather files, saved Hugging Face datasets, zstd, and invalid text in typed columns. No Ray."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from raytrain.config import DataConfig, SequenceClassificationConfig, SourceConfig
from raytrain.data.listing import list_files
from raytrain.data.readers import read_chunks
from raytrain.data.readers.base import CHUNK_ROWS, ROW, BadRow
from raytrain.data.sources import check_sources, read_tasks
from raytrain.errors import DataError
from raytrain.tasks import make_task
from tests.tiny import make_reviews, write_conll

REVIEWS = make_task(SequenceClassificationConfig(kind="sequence_classification"), 32)
ROWS = make_reviews(CHUNK_ROWS + 100, 0)
NUMBERED = [{**row, ROW: number} for number, row in enumerate(ROWS, 1)]


def read(path: Path | str) -> tuple[list[dict[str, Any]], list[BadRow]]:
    rows: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for task in read_tasks({"train": list_files(SourceConfig(path=str(path)), "data.train")}):
        for chunk in read_chunks(task, ["text", "label"]):
            assert len(chunk.table) <= CHUNK_ROWS
            rows += chunk.table.to_pylist()
            bad += chunk.bad_rows
    return rows, bad


def check(path: Path | str) -> None:
    check_sources(DataConfig.model_validate({"train": {"path": str(path)}}), REVIEWS)


def write_stream(path: Path, table: pa.Table, batch_rows: int = 1000) -> Path:
    """As `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


def write_saved(folder: Path, tables: list[pa.Table]) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it."""
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_stream(folder / name, table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def with_invalid_text(rows: list[dict[str, str]], number: int) -> pa.Table:
    """Rows whose text of this number, from 1, is not UTF-8."""
    texts = [row["text"].encode() for row in rows]
    texts[number - 1] = b"caf\xe9"
    column = pa.array(texts, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(rows), column.buffers())
    return pa.table({"text": text, "label": [row["label"] for row in rows]})


@pytest.mark.parametrize("codec", ["uncompressed", "zstd"])
def test_feather_gives_its_rows_and_their_numbers(tmp_path: Path, codec: str) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(tmp_path / "a.feather"), compression=codec)
    check(tmp_path)
    assert read(tmp_path / "a.feather") == (NUMBERED, [])


def test_a_stream_gives_its_rows_and_their_numbers(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    categories = table.set_column(1, "label", table["label"].dictionary_encode()).append_column("n", [range(len(ROWS))])
    path = write_stream(tmp_path / "a.arrow", categories)
    check(path)
    assert read(path) == (NUMBERED, [])


def test_without_rows_and_without_the_column(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS[:3])
    with pytest.raises(DataError, match="has no rows"):
        check(write_stream(tmp_path / "a.arrow", table.slice(0, 0)))
    with pytest.raises(DataError, match=r"has no column 'label' \(it has 'text'\)"):
        check(write_stream(tmp_path / "b.arrow", table.select(["text"])))


@pytest.mark.parametrize("form", ["file", "stream"])
def test_a_damaged_file_is_never_a_shorter_one(tmp_path: Path, form: str) -> None:
    path, table = tmp_path / "a.arrow", pa.Table.from_pylist(ROWS[:500])
    if form == "stream":
        write_stream(path, table, 100)
    else:
        pyarrow.feather.write_feather(table, str(path), compression="uncompressed", chunksize=100)
    whole = path.read_bytes()
    for cut in (*range(1, 17), 1000, len(whole) // 2):  # 8: the mark at the end of a stream
        path.write_bytes(whole[:-cut])
        with pytest.raises(DataError, match="broken Arrow file"):
            read(path)
    path.write_bytes(b"FEA1" + whole)
    with pytest.raises(DataError, match="Feather version 1; write it again"):
        check(path)


def test_a_stream_that_ends_early_is_damaged(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS[:10])
    path = write_stream(tmp_path / "a.arrow", table)
    path.write_bytes(path.read_bytes() * 2)  # readers stop at the first mark
    with pytest.raises(DataError, match="more bytes follow the end of the stream"):
        read(path)


def test_invalid_text_in_a_typed_column_costs_its_row(tmp_path: Path) -> None:
    table = with_invalid_text(ROWS[:300], 250)
    pq.write_table(table, str(tmp_path / "a.parquet"), row_group_size=100)
    write_stream(tmp_path / "b.arrow", table, 100)
    for name in ("a.parquet", "b.arrow"):
        rows, bad = read(tmp_path / name)
        assert rows == NUMBERED[:249] + NUMBERED[250:300]
        assert [(one.row, one.reason) for one in bad] == [(250, "text is invalid UTF-8")]
        assert bad[0].data == {"text": "caf\udce9", "label": ROWS[249]["label"]}


def test_a_saved_dataset_has_its_own_files_in_its_own_order(tmp_path: Path) -> None:
    names = ["negative", "positive"]
    feature = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"text": [row["text"] for row in ROWS], "label": [names.index(row["label"]) for row in ROWS]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    split = write_saved(tmp_path / "saved" / "train", [table.slice(0, 3000), table.slice(3000)])
    write_stream(split / "cache-1f2e3d.arrow", table)  # what `map` has left there
    listed = json.loads((split / "state.json").read_text())
    (split / "state.json").write_text(json.dumps({**listed, "_data_files": listed["_data_files"][::-1]}))
    check(split)
    rows, bad = read(split)
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS[3000:] + ROWS[:3000]]
    assert [row["label"] for row in rows] == [row["label"] for row in ROWS[3000:] + ROWS[:3000]]
    assert (rows[0][ROW], rows[-1][ROW], bad) == (1, 3000, [])

    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"saved DatasetDict with the splits train, test: name .*saved/train"):
        check(tmp_path / "saved")
    (split / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"names .*data-00001-of-00002.arrow, which is not there"):
        check(split)


class TestZstd:
    @staticmethod
    def frames(data: bytes, size: int) -> bytes:
        parts = [data[begin : begin + size] for begin in range(0, len(data), size)]
        return b"".join(pa.compress(part, "zstd", asbytes=True) for part in parts)

    def test_several_frames_of_each_text_format(self, tmp_path: Path) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        (tmp_path / "a.jsonl.zst").write_bytes(self.frames(lines, 10_000))
        check(tmp_path)
        assert read(tmp_path / "a.jsonl.zst") == (NUMBERED, [])
        texts = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
        (tmp_path / "a.csv.ZST").write_bytes(self.frames(texts.encode(), 7_001))
        assert read(tmp_path / "a.csv.ZST") == ([{**row, ROW: row[ROW] + 1} for row in NUMBERED], [])
        plain = write_conll(tmp_path / "a.conll", 25, 3)
        (tmp_path / "b.conll.zst").write_bytes(self.frames(Path(plain).read_bytes(), 500))
        found = [
            [
                row
                for task in read_tasks({"train": list_files(SourceConfig(path=path), "data.train")})
                for chunk in read_chunks(task)
                for row in chunk.table.to_pylist()
            ]
            for path in (plain, str(tmp_path / "b.conll.zst"))
        ]
        assert len(found[0]) == 25 and found[0] == found[1]

    def test_a_file_that_is_cut_is_named(self, tmp_path: Path) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        whole = self.frames(lines, 200_000)
        (tmp_path / "a.jsonl.zst").write_bytes(whole[:-5])
        check(tmp_path)  # its first rows are there
        with pytest.raises(DataError, match=r"a\.jsonl\.zst can't be read to its end \(truncated\?\)"):
            read(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_no_code_of_a_file_runs(tmp_path: Path, ending: str, is_nested: bool) -> None:
    """P13. Ray Data registers a type whose values are unpickled when they are looked at."""
    import os
    import pickle

    import ray.data  # registers the type
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    mark = tmp_path / "code_has_run"

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    kind = ArrowPythonObjectType()
    pickled = pa.array([pickle.dumps(Evil())] * 3, kind.storage_type)
    texts = pa.ExtensionArray.from_storage(kind, pickled)
    if is_nested:
        texts = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts)
    table, path = pa.table({"text": texts, "label": ["a", "b", "a"]}), tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, path)
    if is_nested:
        with pytest.raises(DataError, match="column 'text' has values of the extension type .* inside others"):
            read(path)
    else:
        rows, _ = read(path)
        assert [row["text"] for row in rows] == pickled.to_pylist()
        assert len(REVIEWS.check_inputs(pa.Table.from_pylist(rows))) == 3, "each is a bad row"
    assert ray.data is not None and not mark.exists()
